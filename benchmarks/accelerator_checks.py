"""Whether an accelerator computes what a CPU computes; each check is a function small -> figures, and raises where it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax import em
from diffem_jax.build.engine import make_engine
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
        c.corruption.update({"name": "pixel_mask", "rate": 0.5, "noise_std": 0.01})
        channels = {"channels": (16, 32), "blocks": 1, "heads": ((1, 2),), "embedding": 32, "dropout": 0.0}
        c.network = type(c)({"name": "unet", **channels, "dtype": dtype, "native_gradient": True})
        c.denoiser.base = "start_moments"
        c.e_step.steps, c.e_step.batch_size = 4, BATCH
        c.m_step.steps, c.m_step.batch_size, c.m_step.learning_rate = 200, BATCH, 1e-3
    return make_setup(c, (16, 16, 3))


def images(count: int, size: int = 16) -> np.ndarray:
    """Smooth random images [count, size, size, 3]."""
    rng = np.random.default_rng(0)
    waves = np.einsum(
        "nkc,kx->nxkc", rng.normal(size=(count, 4, 3)), np.cos(np.outer(np.arange(4), np.linspace(0, 3, size)))
    )
    across = np.cos(np.outer(np.linspace(0, 3, size), np.arange(4)))
    return np.einsum("nxkc,yk->nxyc", waves, across).astype(np.float32) * 0.4


def both_steps(setup: Setup, parallel: Parallel, updates: int = 2) -> tuple[np.ndarray, Any]:
    """Draws of a batch, and the state after some updates, on the host."""
    engine = make_engine(setup, parallel, standard_normal(setup.shape))
    state = em.make_state(jax.jit(engine.model.denoiser.init)(key(1)), setup.optimizer)
    # The last layer begins at zero, and nothing of the network would be seen.
    params = jax.tree.map(lambda p: p + 0.02 * np.ones(p.shape, np.float32), snapshot(state.params))
    x, numbers = images(BATCH), np.arange(BATCH, dtype=np.int32)
    seen = snapshot(jax.jit(jax.vmap(setup.corruption.sample))(jax.random.split(key(2), BATCH), x))
    drawn = engine.e_step(
        parallel.replicate(key(3)), parallel.replicate(params), *parallel.shard((Observation(*seen), numbers))
    )
    host = snapshot(state)._replace(params=params, ema_params=params)
    data = parallel.shard(np.broadcast_to(x, (updates, *x.shape)).copy(), 1)
    slots = parallel.shard(np.tile(numbers, (updates, 1)), 1)
    after, _ = engine.m_step(parallel.replicate(key(4)), parallel.place(host), data, slots)
    return parallel.gather(drawn), snapshot(after)


def distance(a: Any, b: Any) -> float:
    """|a - b| / |b| over all leaves; NaN never passes."""
    leaves = [
        (np.asarray(x, np.float64), np.asarray(y, np.float64))
        for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    ]
    return float(
        np.sqrt(sum(np.sum((x - y) ** 2) for x, y in leaves) / max(sum(np.sum(y**2) for _, y in leaves), 1e-300))
    )


def within(found: dict[str, float], limit: float) -> dict[str, Any]:
    """The figures with their limit; raises where one is above it."""
    if not all(value <= limit for value in found.values()):
        raise AssertionError(f"{found}; expected at most {limit}")
    return {**found, "limit": limit}


def randomness(small: bool) -> dict[str, Any]:
    """Keys are threefry's, and give the numbers that they give anywhere."""
    del small
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
    del small
    shape, found = (8, 8, 2), {}
    size = int(np.prod(shape))
    factor = 0.5 * jax.random.normal(key(6), (8, *shape))
    law = Gaussian(jax.random.normal(key(7), shape), jnp.full(shape, 0.1), factor)
    mixture = Mixture(jnp.zeros(1), jax.tree.map(lambda a: a[None], law))
    x_t, sigma = jax.random.normal(key(8), shape), jnp.float32(0.7)
    f, mean = np.asarray(factor, np.float64).reshape(8, size), np.asarray(law.mean, np.float64).ravel()
    for corruption in (
        PixelMask(shape=shape, rate=0.5, noise_std=0.05),
        Projection(shape=shape, measurements=40, noise_std=0.05),
        GaussianBlur(shape=shape, std=1.0, noise_std=0.05),
    ):
        name, scalar = type(corruption).__name__, not corruption.has_diagonal_gram
        used = law._replace(variance=jnp.float32(0.1)) if scalar else law
        used_mixture = Mixture(jnp.zeros(1), jax.tree.map(lambda a: a[None], used)) if scalar else mixture
        seen = corruption.sample(key(9), jax.random.normal(key(10), shape))
        a = np.asarray(
            jax.jacfwd(lambda u, o=seen, c=corruption: c.forward(u, o.operator))(jnp.zeros(shape)), np.float64
        )
        a, y = a.reshape(-1, size), np.asarray(seen.y, np.float64).ravel()
        cov = f.T @ f + 0.1 * np.eye(size)
        gram = a @ cov @ a.T + 0.05**2 * np.eye(len(a))
        want = mean + cov @ a.T @ np.linalg.solve(gram, y - a @ mean)
        posterior = jax.jit(lambda o, c=corruption, u=used: condition_on_observation(c, u, o).mean)(seen)
        found[f"{name} E[x given y]"] = distance(np.ravel(posterior), want)
        both = np.linalg.inv(np.linalg.inv(cov) + a.T @ a / 0.05**2 + np.eye(size) / float(sigma) ** 2)
        right = np.linalg.solve(cov, mean) + a.T @ y / 0.05**2 + np.asarray(x_t, np.float64).ravel() / float(sigma) ** 2
        got = jax.jit(
            lambda x, o, c=corruption, m=used_mixture: mixture_posterior_mean(c, m, x, jnp.ones(()), sigma, o)
        )(x_t, seen)
        found[f"{name} E[x given x_t, y]"] = distance(np.ravel(got), both @ right)
    return within(found, 1e-4)


def maps(small: bool) -> dict[str, Any]:
    """The maps pmap and jit are one and the same."""
    del small
    with jax.default_matmul_precision("highest"):
        pmap, jit = (both_steps(tiny_setup(), make_parallel(name)) for name in ("pmap", "jit"))
    return within({"draws": distance(pmap[0], jit[0]), "state": distance(pmap[1].params, jit[1].params)}, 1e-3)


def same_as_cpu(small: bool) -> dict[str, Any]:
    """An E-step and two updates here and on the CPU of the same machine, convolutions in full float32 and by default."""
    del small
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
    setup, parallel = tiny_setup(), make_parallel("jit")
    engine = make_engine(setup, parallel, standard_normal(setup.shape))
    first = snapshot(em.make_state(jax.jit(engine.model.denoiser.init)(key(1)), setup.optimizer))
    x, numbers = np.broadcast_to(images(BATCH), (updates, BATCH, 16, 16, 3)).copy(), np.arange(BATCH, dtype=np.int32)

    def train(state: Any, count: int) -> Any:
        slots = parallel.shard(np.tile(numbers, (count, 1)), 1)
        data = parallel.shard(x[:count], 1)
        return snapshot(engine.m_step(parallel.replicate(key(4)), parallel.place(state), data, slots)[0])

    once, again = train(first, updates // 2), train(first, updates // 2)
    whole, parts = train(train(first, updates // 2), updates // 2), train(once, updates // 2)
    return {
        "repeated, bits equal": distance(again.params, once.params) == 0,
        "repeated": distance(again.params, once.params),
        "resumed, bits equal": distance(parts.params, whole.params) == 0,
        "resumed": distance(parts.params, whole.params),
    }


def resumed(small: bool) -> dict[str, Any]:
    """Bits of updates that are done again: by default, and in a process with deterministic operations."""
    found: dict[str, Any] = repeated()
    if small:
        return found
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    command = [
        sys.executable,
        "-c",
        "import json; from benchmarks.accelerator_checks import repeated; print(json.dumps(repeated()))",
    ]
    told = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "XLA_FLAGS": flags}, check=True
    )
    more = json.loads(told.stdout.strip().splitlines()[-1])
    if not more["resumed, bits equal"]:
        raise AssertionError(f"with --xla_gpu_deterministic_ops=true: {more}")
    return found | {f"deterministic: {name}": value for name, value in more.items()}


def bfloat16(small: bool) -> dict[str, Any]:
    """The mean loss of the last third of a training in bfloat16 over that in float32, the same examples and noise."""
    updates, losses = (6 if small else 120), {}
    for dtype in ("float32", "bfloat16"):
        setup, parallel = tiny_setup(dtype), make_parallel("jit")
        engine = make_engine(setup, parallel, standard_normal(setup.shape))
        state = parallel.place(snapshot(em.make_state(jax.jit(engine.model.denoiser.init)(key(1)), setup.optimizer)))
        x = images(updates * BATCH).reshape(updates, BATCH, 16, 16, 3)
        slots = parallel.shard(np.tile(np.arange(BATCH, dtype=np.int32), (updates, 1)), 1)
        _, info = engine.m_step(parallel.replicate(key(4)), state, parallel.shard(x, 1), slots)
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
