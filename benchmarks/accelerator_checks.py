"""Whether an accelerator computes what a CPU computes; each check is a function small -> figures, and raises where it does not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax import em
from diffem_jax.build.engine import Engine, make_engine
from diffem_jax.build.methods import Setup, make_setup
from diffem_jax.config import default
from diffem_jax.corruptions import GaussianBlur, PixelMask, Projection
from diffem_jax.gaussians.gaussians import Mixture, condition_on_observation, mixture_posterior_mean
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.parallel import Parallel, make_parallel, snapshot
from diffem_jax.run.start import standard_normal
from diffem_jax.types import Observation, stream_key

BATCH = 16


def key(*places: int) -> Any:
    """A key of this script's own stream."""
    return stream_key(0, "accelerator", *places)


def tiny_setup(dtype: str = "float32") -> Setup:
    """A U-Net of two levels on images of 16 x 16 under a mask, with the start's moments."""
    c = default()
    with c.unlocked():
        c.corruption.update(name="pixel_mask", rate=0.5, noise_std=0.01)
        c.network = type(c)({"name": "unet", "channels": (16, 32), "blocks": 1, "heads": ((1, 2),), "embedding": 32})
        c.network.update(dropout=0.0, dtype=dtype, native_gradient=True)
        c.denoiser.base = "start_moments"
        c.e_step.update(steps=4, batch_size=BATCH)
        c.m_step.update(steps=200, batch_size=BATCH, learning_rate=1e-3)
    return make_setup(c, (16, 16, 3))


def images(count: int, size: int = 16) -> np.ndarray:
    """Smooth random images [count, size, size, 3]."""
    rng = np.random.default_rng(0)
    waves = np.cos(np.outer(np.arange(4), np.linspace(0, 3, size)))
    along = np.einsum("nkc,kx->nxkc", rng.normal(size=(count, 4, 3)), waves)
    return np.einsum("nxkc,ky->nxyc", along, waves).astype(np.float32) * 0.4


def host_state(setup: Setup, engine: Engine) -> Any:
    """What a training begins with, on the host."""
    return snapshot(em.make_state(jax.jit(engine.model.denoiser.init)(key(1)), setup.optimizer))


def engine_of(setup: Setup, parallel: Parallel) -> tuple[Engine, Any]:
    """The compiled steps, and a state on the host."""
    engine = make_engine(setup, parallel, standard_normal(setup.shape))
    return engine, host_state(setup, engine)


def update(engine: Engine, state: Any, x: np.ndarray) -> tuple[Any, Any]:
    """The state on the host after an update on each of x [S, B, *X], and what they say of themselves."""
    parallel, slots = engine.parallel, np.tile(np.arange(x.shape[1], dtype=np.int32), (len(x), 1))
    arguments = parallel.place(state), parallel.shard(x, 1), parallel.shard(slots, 1)
    return snapshot(engine.m_step(parallel.replicate(key(4)), *arguments))


def both_steps(setup: Setup, parallel: Parallel) -> tuple[np.ndarray, Any]:
    """Draws of a batch, and the state after two updates, on the host."""
    engine, state = engine_of(setup, parallel)
    # The last layer begins at zero, and nothing of the network would be seen.
    params = jax.tree.map(lambda p: p + 0.02 * np.ones(p.shape, np.float32), state.params)
    x, numbers = images(BATCH), np.arange(BATCH, dtype=np.int32)
    seen = snapshot(jax.jit(jax.vmap(setup.corruption.sample))(jax.random.split(key(2), BATCH), x))
    rows = parallel.shard((Observation(*seen), numbers))
    drawn = engine.e_step(parallel.replicate(key(3)), parallel.replicate(params), *rows)
    after, _ = update(engine, state._replace(params=params, ema_params=params), np.stack([x, x]))
    return parallel.gather(drawn), after


def distance(a: Any, b: Any) -> float:
    """|a - b| / |b| over all leaves; NaN never passes."""
    a, b = (np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)]) for tree in (a, b))
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-150))


def within(found: dict[str, float], limit: float) -> dict[str, Any]:
    """The figures with their limit; raises where one is above it."""
    if not all(value <= limit for value in found.values()):
        raise AssertionError(f"{found}; expected at most {limit}")
    return {**found, "limit": limit}


def randomness(small: bool) -> dict[str, Any]:
    """Keys are threefry's, and give the numbers that they give anywhere."""
    if jax.config.jax_default_prng_impl != "threefry2x32":
        raise AssertionError(f"keys of {jax.config.jax_default_prng_impl}; expected threefry2x32")
    bits = np.asarray(jax.jit(jax.vmap(lambda k: jax.random.bits(k, (4,))))(jax.random.split(key(5), 8)))
    with jax.default_device(jax.devices("cpu")[0]):
        same = np.asarray(jax.vmap(lambda k: jax.random.bits(k, (4,)))(jax.random.split(key(5), 8)))
    if not np.array_equal(bits, same):
        raise AssertionError("random bits differ from the CPU's")
    return {"keys": "threefry2x32", "bits equal to the CPU's": True}


def closed_forms(small: bool) -> dict[str, Any]:
    """E[x | y], E[x | x_t, y] and log p(y) of a Gaussian of rank 8 against float64, under the backend's default precision."""
    shape, size, found = (8, 8, 2), 128, {}
    factor = 0.5 * jax.random.normal(key(6), (8, *shape))
    law = Gaussian(jax.random.normal(key(7), shape), jnp.full(shape, 0.1), factor)
    x_t, sigma = jax.random.normal(key(8), shape), jnp.float32(0.7)
    f, mean = np.asarray(factor, np.float64).reshape(8, size), np.asarray(law.mean, np.float64).ravel()
    for corruption in (
        PixelMask(shape=shape, rate=0.5, noise_std=0.05),
        Projection(shape=shape, measurements=40, noise_std=0.05),
        GaussianBlur(shape=shape, std=1.0, noise_std=0.05),
    ):
        name = type(corruption).__name__
        used = law if corruption.has_diagonal_gram else law._replace(variance=jnp.float32(0.1))
        mixture = Mixture(jnp.zeros(1), jax.tree.map(lambda a: a[None], used))
        seen = corruption.sample(key(9), jax.random.normal(key(10), shape))
        a = jax.jacfwd(lambda u, o=seen, c=corruption: c.forward(u, o.operator))(jnp.zeros(shape))
        a, y = np.asarray(a, np.float64).reshape(-1, size), np.asarray(seen.y, np.float64).ravel()
        cov = f.T @ f + 0.1 * np.eye(size)
        gram = a @ cov @ a.T + 0.05**2 * np.eye(len(a))
        want = mean + cov @ a.T @ np.linalg.solve(gram, y - a @ mean)
        got = jax.jit(lambda o, c=corruption, u=used: condition_on_observation(c, u, o).mean)(seen)
        found[f"{name} E[x given y]"] = distance(np.ravel(got), want)
        both = np.linalg.inv(np.linalg.inv(cov) + a.T @ a / 0.05**2 + np.eye(size) / float(sigma) ** 2)
        right = np.linalg.solve(cov, mean) + a.T @ y / 0.05**2 + np.asarray(x_t, np.float64).ravel() / float(sigma) ** 2
        mean_of = partial(mixture_posterior_mean, corruption, mixture)
        got = jax.jit(lambda x, o, f=mean_of: f(x, jnp.ones(()), sigma, o))(x_t, seen)
        found[f"{name} E[x given x_t, y]"] = distance(np.ravel(got), both @ right)
    return within(found, 1e-4)


def maps(small: bool) -> dict[str, Any]:
    """The maps pmap and jit are one and the same."""
    with jax.default_matmul_precision("highest"):
        pmap, jit = (both_steps(tiny_setup(), make_parallel(name)) for name in ("pmap", "jit"))
    return within({"draws": distance(pmap[0], jit[0]), "state": distance(pmap[1].params, jit[1].params)}, 1e-3)


def same_as_cpu(small: bool) -> dict[str, Any]:
    """An E-step and two updates here and on the CPU of the same machine, convolutions in full float32 and by default."""
    cpu = jax.devices("cpu")[:1]
    with jax.default_device(cpu[0]):
        draws, state = both_steps(tiny_setup(), make_parallel("jit", cpu))
    found = {}
    for precision in ("highest", "default"):
        with jax.default_matmul_precision(precision):
            got = both_steps(tiny_setup(), make_parallel("jit", jax.devices()[:1]))
        found |= {f"draws, {precision}": distance(got[0], draws)}
        found |= {f"parameters, {precision}": distance(got[1].params, state.params)}
    within({name: value for name, value in found.items() if "highest" in name}, 1e-3)
    return found | {"limit of highest": 1e-3}


def repeated(updates: int = 4) -> dict[str, Any]:
    """The same updates twice, and once in two parts over the host: equal bits or how far apart."""
    engine, first = engine_of(tiny_setup(), make_parallel("jit"))
    x = np.stack([images(BATCH)] * (updates // 2))
    once, again = (update(engine, first, x)[0] for _ in range(2))
    parts, whole = update(engine, once, x)[0], update(engine, update(engine, first, x)[0], x)[0]
    off = {"repeated": distance(again.params, once.params), "resumed": distance(parts.params, whole.params)}
    return off | {f"{name}, bits equal": value == 0 for name, value in off.items()}


def resumed(small: bool) -> dict[str, Any]:
    """Bits of updates that are done again: by default, and in a process with deterministic operations."""
    found: dict[str, Any] = repeated()
    if small:
        return found
    code = "import json; from benchmarks.accelerator_checks import repeated; print(json.dumps(repeated()))"
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"}
    given: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120, "check": True}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | flags, **given)
    more = json.loads(done.stdout.strip().splitlines()[-1])
    if not more["resumed, bits equal"]:
        raise AssertionError(f"with --xla_gpu_deterministic_ops=true: {more}")
    return found | {f"deterministic: {name}": value for name, value in more.items()}


def bfloat16(small: bool) -> dict[str, Any]:
    """The mean loss of the last third of a training in bfloat16 over that in float32, the same examples and noise."""
    updates, losses = (6 if small else 120), {}
    for dtype in ("float32", "bfloat16"):
        x = images(updates * BATCH).reshape(updates, BATCH, 16, 16, 3)
        _, info = update(*engine_of(tiny_setup(dtype), make_parallel("jit")), x)
        losses[dtype] = np.asarray(info["loss"], np.float64)
    last = -(-updates // 3)
    ratio = float(losses["bfloat16"][-last:].mean() / losses["float32"][-last:].mean())
    gained = float(losses["float32"][-last:].mean() / losses["float32"][:last].mean())
    within({"away from 1": abs(ratio - 1)}, 0.05)
    return {"updates": updates, "bfloat16 over float32": ratio, "float32, last third over first": gained}


ITEMS: list[tuple[str, Callable[[bool], dict[str, Any]]]] = [
    ("randomness", randomness),
    ("closed forms against float64", closed_forms),
    ("steps against the CPU's", same_as_cpu),
    ("pmap against jit", maps),
    ("bfloat16 against float32", bfloat16),
    ("updates done again", resumed),
]
