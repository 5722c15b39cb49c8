"""What the host loop of the M-step loses: to a slow reader, to checkpoints of a large state, to compiling a second time; and fsdp.

    python -m benchmarks.loop [reader] [checkpoint] [start] [fsdp]

    reader      a reader that sleeps for 80% of a call's compute time, against one that returns at once
    checkpoint  a state of 0.9 GB: what a rolling checkpoint, written behind, adds to the loop
    start       the same tiny run started twice: programs compiled and programs found on disk
    fsdp        eight CPU devices: losses against 'jit', and the share of the state that a device holds

Sides take turns; medians over the turns, wall-clock seconds.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import excess, interleave, medians, write
from diffem_jax import em
from diffem_jax.config import default
from diffem_jax.parallel import make_parallel
from diffem_jax.run import m_step
from diffem_jax.run.termination import StopRequest
from diffem_jax.types import stream_key

TURNS = 5
CALL_SECONDS = 0.1
TINY = """--config=digits --config.data.num_examples=200 --config.network.features=(16,) --config.rounds=1 --config.start.rank=4
--config.m_step.steps=20 --config.m_step.batch_size=64 --config.e_step.batch_size=64 --config.e_step.steps=4"""
COUNTING = """
import atexit, jax
from diffem_jax import main
counts = {"misses": 0, "hits": 0}
def note(event, **_):
    for name in counts: counts[name] += event == f"/jax/compilation_cache/cache_{name}"
jax.monitoring.register_event_listener(note)
seconds = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, s, **_: seconds.append(s) if event == "/jax/core/compile/backend_compile_duration" else None)
atexit.register(lambda: print("counted", counts["misses"], counts["hits"], sum(seconds)))
main.run()
"""


def loss(params: Any, key: Any, x: Any) -> Any:
    """Two dense layers that reconstruct noisy rows."""
    hidden = jnp.tanh((x + 0.1 * jax.random.normal(key, x.shape)) @ params["in"])
    return jnp.mean((hidden @ params["out"] - x) ** 2)


def train(mapped: Any, state: Any, x: np.ndarray, calls: int, every: int = 10**6, pause: float = 0.0) -> float:
    """Seconds of a training by the loop of the package: ``calls`` calls on the rows x [S, B, D], read in ``pause`` seconds."""
    parallel = make_parallel("jit", jax.devices()[:1])

    def batches(first: int, updates: int, own: slice) -> Any:
        while True:
            time.sleep(pause)
            yield x

    with tempfile.TemporaryDirectory() as folder:
        training = m_step.Training(
            label="benchmark", number=1, first_step=0, steps=calls * len(x), dispatch=len(x), batch_size=x.shape[1],
            every=every, m_step=mapped, batches=batches, folder=Path(folder), record={},
        )  # fmt: skip
        key, stop = stream_key(0, "m_step", 1), StopRequest()
        began = time.monotonic()
        with contextlib.redirect_stdout(None):
            m_step.train(training, parallel, key, lambda: state, stop, lambda line: None)
        return time.monotonic() - began


def reader() -> dict[str, float]:
    """The loop with a slow reader against one that costs nothing; a call computes for a fixed time, whoever else does."""
    calls, x, state = 60, np.ones((1, 8, 4), np.float32), em.make_state(jnp.zeros(3), optax.sgd(0.1))

    def compute(value: Any) -> Any:
        time.sleep(CALL_SECONDS)
        return value

    def step(key: Any, state: Any, x: Any, slots: Any) -> Any:
        done = jax.pure_callback(compute, jax.ShapeDtypeStruct((), jnp.float32), state.params[0] + x.sum())
        after = state._replace(params=state.params + 1e-9 * done)
        return after, {"loss": done[None], "gradient_norm": done[None]}

    mapped = make_parallel("jit", jax.devices()[:1]).map_m_step(step)
    pauses = {"fast": 0.0, "slow": 0.8 * CALL_SECONDS}
    sides = {name: lambda pause=pause: train(mapped, state, x, calls, pause=pause) for name, pause in pauses.items()}
    seconds = interleave(sides, TURNS, time.monotonic)
    found = {f"{name}_reader_seconds": value for name, value in medians(seconds).items()}
    return {"calls": calls, "call_seconds": CALL_SECONDS, **found, "lost": excess(seconds["slow"], seconds["fast"])}


def checkpoint() -> dict[str, float]:
    """What one checkpoint of 0.9 GB adds to the loop, and that as a share of the default interval of updates."""
    width, rows, calls = 2**14, 1720, 9
    optimizer = optax.adam(1e-4)
    mapped = make_parallel("jit", jax.devices()[:1]).map_m_step(em.make_m_step(loss, optimizer, ema_decay=0.9))
    kernel = jnp.full((rows, width), 1e-2)
    state = em.make_state({"in": kernel, "out": kernel.T}, optimizer)
    x = np.random.default_rng(0).normal(size=(2, 8, rows)).astype(np.float32)
    steps = calls * len(x)

    # every = steps / 3 writes two: none after the last update, which the round's own checkpoint holds
    run = partial(train, mapped, state, x, calls)
    sides = {"none": run, "two": partial(run, steps // 3)}
    seconds = interleave(sides, 2, time.monotonic)
    update, interval = statistics.median(seconds["none"]) / steps, default().checkpoint.every_steps
    extra = statistics.median((two - none) / 2 for none, two in zip(seconds["none"], seconds["two"], strict=True))
    found = {"state_gb": 4 * 4 * 2 * rows * width / 1e9, "update_seconds": update, "interval": interval}
    return found | {"checkpoint_seconds": extra, "lost": extra / (interval * update)}


def start() -> dict[str, Any]:
    """Programs that a first and a second start compile."""
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        names = {k: v for k, v in os.environ.items() if "JAX" not in k}
        environment = {**names, "DIFFEM_DATA_DIR": folder, "JAX_PLATFORMS": "cpu"}
        for name in ("first", "second"):
            began = time.monotonic()
            command = [sys.executable, "-c", COUNTING, *TINY.split(), f"--workdir={folder}/{name}"]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(done.stderr[-2000:])
            misses, hits, seconds = done.stdout.split("counted ")[1].split()
            found = {"compiled": int(misses), "found": int(hits), "compile_seconds": float(seconds)}
            result[name] = found | {"seconds": time.monotonic() - began}
    return result


def fsdp() -> dict[str, float]:
    """Differences of ten updates of a network of 8 MB from 'jit' on eight CPU devices, and the share of the state on one."""
    found, devices = {}, jax.devices("cpu")
    for way in ("jit", "fsdp"):
        parallel, optimizer = make_parallel(way, devices), optax.adam(1e-3)
        step = parallel.map_m_step(em.make_m_step(loss, optimizer, ema_decay=0.9))
        keys = jax.random.split(jax.random.key(0))
        params = {"in": jax.random.normal(keys[0], (64, 2048)) / 8, "out": jax.random.normal(keys[1], (2048, 64)) / 45}
        state = parallel.place(em.make_state(params, optimizer))
        leaves = jax.tree.leaves(state)
        share = sum(a.addressable_data(0).nbytes for a in leaves) / sum(a.nbytes for a in leaves)
        x = np.random.default_rng(0).normal(size=(10, 64, 64)).astype(np.float32)
        slots = np.tile(np.arange(64, dtype=np.int32), (10, 1))
        state, info = step(parallel.replicate(jax.random.key(1)), state, parallel.shard(x, 1), parallel.shard(slots, 1))
        found[way] = share, np.asarray(info["loss"])
    (whole, expected), (share, losses) = found["jit"], found["fsdp"]
    shares = {"devices": len(devices), "share_jit": whole, "share_fsdp": share}
    return shares | {"largest_relative_difference_of_losses": float(np.max(np.abs(losses / expected - 1)))}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # for fsdp; the others take the first device
    parts = {"reader": reader, "checkpoint": checkpoint, "start": start, "fsdp": fsdp}
    device = {"device": jax.devices()[0].device_kind}
    write("loop", device | {name: parts[name]() for name in sys.argv[1:] or parts})
