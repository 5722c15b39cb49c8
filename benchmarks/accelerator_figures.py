"""How fast E-step and M-step are on an accelerator, against plain convolutions and the card's peak; functions small -> figures."""

import contextlib
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator_checks import host_state, key
from benchmarks.common import interleave
from benchmarks.flops import flops as count_flops
from benchmarks.loop import train
from configs import cifar10, manifold
from diffem_jax.build.engine import Engine, make_engine
from diffem_jax.build.methods import Setup, make_setup
from diffem_jax.networks.convolution import convolve
from diffem_jax.parallel import make_parallel, snapshot
from diffem_jax.run.start import standard_normal
from diffem_jax.storage.programs import keep_compiled
from diffem_jax.types import Observation

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "TPU v5 lite": 197e12, "TPU v5p": 459e12, "TPU v4": 275e12}
"""Dense bfloat16 operations a second by the makers' data sheets."""
UPDATES = 10
PROGRAMS = tempfile.TemporaryDirectory(prefix="diffem_programs_")


def rate(flops: float, seconds: float) -> dict[str, float]:
    """TFLOP/s, and the share of the card's dense bfloat16 peak where that is known."""
    kind, found = jax.devices()[0].device_kind, {"TFLOP/s": flops / seconds / 1e12}
    peak = next((value for name, value in PEAKS.items() if name in kind), None)
    return found | ({"share of bfloat16 peak": flops / seconds / peak} if peak else {})


def seconds_of(call: Callable[[], Any], repeats: int = 3) -> float:
    """The median seconds of a call, after one that compiles."""
    return statistics.median(interleave({"": call}, repeats, time.perf_counter)[""])


@functools.cache
def unet(small: bool, dtype: str, batch: int, remat: bool = False, blocks: int = 2) -> tuple[Setup, Engine]:
    """The published steps of configs/cifar10.py, with so many blocks a level (published: 5)."""
    c = cifar10.get_config("mask75_paper")
    with c.unlocked():
        c.network.update({"dtype": dtype, "remat": remat, "blocks": blocks})
        if small:
            c.network.update({"channels": (8, 16), "blocks": 1, "heads": ((1, 2),), "embedding": 16})
        c.m_step.batch_size = c.e_step.batch_size = batch
        c.e_step.steps = 2 if small else 8
    setup = make_setup(c, (8, 8, 3) if small else (32, 32, 3))
    return setup, make_engine(setup, make_parallel("jit", jax.devices()[:1]), standard_normal(setup.shape))


def noise(*shape: int) -> np.ndarray:
    """Rows to train on."""
    return np.random.default_rng(0).uniform(-2, 2, shape).astype(np.float32)


def time_m_step(setup: Setup, engine: Engine, updates: int, repeats: int = 3) -> dict[str, Any]:
    """Seconds an update, FLOP/s, compilation and memory of ``updates`` in one dispatch."""
    keep_compiled(Path(PROGRAMS.name))
    batch, parallel = setup.config.m_step.batch_size, engine.parallel
    k, state = parallel.replicate(key(2)), parallel.place(host_state(setup, engine))
    x = parallel.shard(noise(updates, batch, *setup.shape), 1)
    slots = parallel.shard(np.tile(np.arange(batch, dtype=np.int32), (updates, 1)), 1)
    began = time.perf_counter()
    lowered = engine.m_step.lower(k, state, x, slots)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    flops = float(count_flops(engine.m_step, k, state, x, slots)) / updates
    holder = {"state": state}

    def call() -> Any:
        holder["state"], info = compiled(k, holder["state"], x, slots)
        return info["loss"]

    loss = np.asarray(call())
    each = seconds_of(call, repeats) / updates
    memory = compiled.memory_analysis()
    found: dict[str, Any] = {"ms an update": 1e3 * each, "examples a second": batch / each}
    found |= {"GFLOP an update": flops / 1e9}
    found |= rate(flops, each) | {"seconds of tracing": traced - began, "seconds of compilation": done - traced}
    found |= {"GB of temporaries": memory.temp_size_in_bytes / 1e9 if memory else None}
    found |= {"finite": bool(np.isfinite(loss).all())}
    stats = jax.devices()[0].memory_stats() or {}
    return found | {f"GB {name}": stats[name] / 1e9 for name in ("peak_bytes_in_use",) if name in stats}


def m_step(
    small: bool, dtype: str, batch: int, precision: str = "default", updates: int = UPDATES, **network: Any
) -> dict[str, Any]:
    """The M-step of the CIFAR-10 U-Net."""
    with jax.default_matmul_precision(precision):
        return time_m_step(*unet(small, dtype, 8 if small else batch, **network), 2 if small else updates)


def e_step(small: bool, dtype: str, batch: int) -> dict[str, Any]:
    """Draws of the CIFAR-10 U-Net."""
    setup, engine = unet(small, dtype, 8 if small else batch)
    count, parallel, steps = setup.config.e_step.batch_size, engine.parallel, setup.config.e_step.steps
    x, params = noise(count, *setup.shape), parallel.replicate(host_state(setup, engine).params)
    seen = snapshot(jax.jit(jax.vmap(setup.corruption.sample))(jax.random.split(key(3), count), x))
    rows = parallel.shard((Observation(*seen), np.arange(count, dtype=np.int32)))
    arguments = parallel.replicate(key(4)), params, *rows
    began = time.perf_counter()
    compiled = engine.e_step.lower(*arguments).compile()
    compiling = time.perf_counter() - began
    flops = float(count_flops(engine.e_step, *arguments))
    each = seconds_of(lambda: compiled(*arguments)) / steps
    found = {"ms a step": 1e3 * each, "images a second and step": count / each}
    return found | rate(flops / steps, each) | {"compile": compiling}


def ceiling(small: bool) -> dict[str, Any]:
    """A square product in bfloat16, float32 by default and float32 in full."""
    n, found = (128 if small else 8192), {}
    for name, dtype, precision in (
        ("bfloat16", jnp.bfloat16, "default"),
        ("float32 default", jnp.float32, "default"),
        ("float32 highest", jnp.float32, "highest"),
    ):
        a, b = (jax.random.normal(key(5, i), (n, n), dtype) for i in range(2))
        with jax.default_matmul_precision(precision):
            product = jax.jit(lambda a, b: a @ b)
            found[f"{name} TFLOP/s"] = 2 * n**3 / seconds_of(lambda p=product, a=a, b=b: p(a, b), 5) / 1e12
    return found


def convolutions(small: bool, dtype: str) -> dict[str, Any]:
    """Plain 3 x 3 convolutions of the U-Net's shapes, forward and gradient, XLA's own and as shifted products."""
    found = {}
    for side, width in ((8, 8),) if small else ((32, 128), (16, 256), (8, 384)):
        batch, name = 8 if small else 256, f"{side} x {side} x {width}"
        x = jax.random.normal(key(6), (batch, side, side, width), dtype)
        kernel = 0.03 * jax.random.normal(key(7), (3, 3, width, width), dtype)
        # Eight in a row: one alone is over in less than a launch of the host takes.
        teraflops = 8 * 2e-12 * batch * side * side * 9 * width * width

        def several(x: Any, k: Any, f: Any) -> Any:
            return functools.reduce(lambda h, _: f(h, k, (1, 1)), range(8), x)

        def loss(x: Any, k: Any, f: Any) -> Any:
            return jnp.sum(several(x, k, f).astype(jnp.float32) ** 2)

        forward = jax.jit(partial(several, f=convolve.fun))
        found[f"{name} forward TFLOP/s"] = teraflops / seconds_of(partial(forward, x, kernel))
        for kind, function in (("native", convolve.fun), ("shifted", convolve)):
            both = jax.jit(jax.grad(partial(loss, f=function), argnums=(0, 1)))
            found[f"{name} {kind} gradient TFLOP/s"] = 3 * teraflops / seconds_of(partial(both, x, kernel))
    return found


def attention(small: bool) -> dict[str, Any]:
    """Attention at level 1, 256 positions and 4 heads of 64, bfloat16: XLA's and cuDNN's, forward and backward, ms."""
    found = {}
    q = jax.random.normal(key(8), (4 if small else 256, 256, 4, 64), jnp.bfloat16)

    def loss(q: Any, name: str) -> Any:
        return jnp.sum(jax.nn.dot_product_attention(q, q, q, implementation=name).astype(jnp.float32) ** 2)

    for name in ("xla",) if small else ("xla", "cudnn"):
        with contextlib.suppress(Exception):  # cuDNN's is not everywhere
            both = jax.jit(jax.grad(partial(loss, name=name)))
            found[f"{name} ms"] = 1e3 * seconds_of(partial(both, q))
    return found


def dispatches(small: bool) -> dict[str, Any]:
    """Milliseconds an update of the manifold's MLP, by updates in a dispatch."""
    c = manifold.get_config("quick")
    setup = make_setup(c, (5,))
    engine = make_engine(setup, make_parallel("jit", jax.devices()[:1]), standard_normal(setup.shape))
    counts = (1, 2) if small else (1, 10, 50)
    return {f"{n} a dispatch, ms": time_m_step(setup, engine, n)["ms an update"] for n in counts}


def stalls(small: bool) -> dict[str, Any]:
    """What a reader that takes 80% of the compute time, and a checkpoint in the middle, add to an M-step."""
    setup, engine = unet(small, "bfloat16", 8 if small else 256)
    updates, calls = (2, 4) if small else (UPDATES, 12)
    host, x = host_state(setup, engine), noise(updates, setup.config.m_step.batch_size, *setup.shape)
    once = partial(train, engine.m_step, host, x, calls)
    once()  # compiles
    plain = statistics.median(once() for _ in range(2))
    found = {"seconds": plain, "slow reader adds": once(pause=0.8 * plain / calls) / plain - 1}
    found |= {"a checkpoint adds seconds": once(every=updates * (calls // 2)) - plain}
    return found | {"GB of the checkpoint": sum(leaf.nbytes for leaf in jax.tree.leaves(host)) / 1e9}


def second_start(small: bool) -> dict[str, Any]:
    """Seconds of compilation of a program that an earlier process has compiled, as far as clearing JAX's memory shows it."""
    unet.cache_clear()
    jax.clear_caches()
    found = time_m_step(*unet(small, "bfloat16", 8 if small else 256), 2 if small else UPDATES, 1)
    return {name: found[name] for name in ("seconds of tracing", "seconds of compilation")}


ITEMS: list[tuple[str, Callable[[bool], dict[str, Any]]]] = [
    ("matrix products", ceiling),
    ("M-step, U-Net of 2 blocks, bfloat16, batch 256", partial(m_step, dtype="bfloat16", batch=256)),
    ("plain convolutions, bfloat16", partial(convolutions, dtype="bfloat16")),
    ("E-step, U-Net of 2 blocks, bfloat16, batch 512", partial(e_step, dtype="bfloat16", batch=512)),
    ("M-step, U-Net of 2 blocks, float32 default, batch 256", partial(m_step, dtype="float32", batch=256)),
    ("M-step, U-Net of 2 blocks, bfloat16, batch 256, remat", partial(m_step, dtype="bfloat16", batch=256, remat=True)),
    ("stalls", stalls),
    ("second start", second_start),
    ("M-step, U-Net of 5 blocks, bfloat16, batch 256", partial(m_step, dtype="bfloat16", batch=256, blocks=5)),
    ("updates a dispatch, manifold", dispatches),
    ("M-step, U-Net of 2 blocks, bfloat16, batch 64", partial(m_step, dtype="bfloat16", batch=64)),
    ("M-step, U-Net of 2 blocks, bfloat16, batch 512", partial(m_step, dtype="bfloat16", batch=512)),
    ("attention", attention),
    ("M-step, U-Net of 2 blocks, float32 highest, batch 256", partial(m_step, dtype="float32", batch=256, precision="highest", updates=2)),
    ("plain convolutions, float32 default", partial(convolutions, dtype="float32")),
    ("M-step, U-Net of 2 blocks, bfloat16, batch 128", partial(m_step, dtype="bfloat16", batch=128)),
    ("E-step, U-Net of 2 blocks, float32 default, batch 512", partial(e_step, dtype="float32", batch=512)),
]  # fmt: skip
