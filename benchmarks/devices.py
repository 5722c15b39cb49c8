"""One and two devices, pmap and jit, one and two processes: what the map costs, in processor seconds.

    python -m benchmarks.devices

Needs two cores. The processor seconds of a call are the sum over its devices: 'strong' splits
the same batch over more devices and should cost the same, 'weak' gives every device a whole batch and should cost twice as
much on two. What is above that is the map's own. A call of an empty M-step shows the map's cost a call. Two processes
have one device and one core each and talk over gloo on this machine; what they spend in waiting for each other counts.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

STAGE = "--process"
if STAGE not in sys.argv:
    jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from benchmarks.common import interleave, write  # noqa: E402
from configs import digits  # noqa: E402
from diffem_jax import em  # noqa: E402
from diffem_jax.build.engine import make_engine  # noqa: E402
from diffem_jax.build.problem import load_problem, rows  # noqa: E402
from diffem_jax.parallel import Parallel, initialize, make_parallel, process_count, process_index  # noqa: E402
from diffem_jax.run.start import standard_normal  # noqa: E402
from diffem_jax.types import stream_key  # noqa: E402

DISPATCH, BATCH, STEPS = 5, 512, 8
WAYS = ("pmap", "jit")


def steps(parallel: Parallel, batch: int, problem: Any) -> dict[str, Callable[[], Any]]:
    """A dispatch of the M-step and a batch of the E-step, this process's part of them."""
    engine = make_engine(problem.setup, parallel, standard_normal(problem.setup.shape))
    local = batch // process_count()
    mine = np.arange(process_index() * local, (process_index() + 1) * local, dtype=np.int32)
    key = parallel.replicate(stream_key(0, "m_step"))
    data = parallel.shard(np.zeros((DISPATCH, local, *problem.setup.shape), np.float32), 1)
    slots = parallel.shard(np.tile(mine, (DISPATCH, 1)), 1)
    host = em.make_state(engine.model.denoiser.init(stream_key(0, "init")), problem.setup.optimizer)
    holder = {"state": parallel.replicate(host)}
    observed = parallel.shard(rows(problem.observations, mine % problem.num_examples))
    indices, params = parallel.shard(mine), parallel.replicate(jax.tree.map(jnp.array, host.params))

    def m_step() -> Any:
        holder["state"], info = engine.m_step(key, holder["state"], data, slots)
        return info["loss"]

    return {"m_step": m_step, "e_step": lambda: engine.e_step(key, params, observed, indices)}


def empty(parallel: Parallel) -> Callable[[], Any]:
    """100 calls of an M-step with one parameter."""
    optimizer = optax.sgd(0.1)
    step = parallel.map_m_step(
        em.make_m_step(lambda p, k, x: jnp.sum(p * x), optimizer, ema_decay=0.9, mean=parallel.mean)
    )
    x = parallel.shard(np.zeros((1, 2), np.float32), 1)
    slots, key = parallel.shard(np.arange(2, dtype=np.int32)[None], 1), parallel.replicate(stream_key(0, "empty"))
    holder = {"state": parallel.replicate(em.make_state(jnp.zeros(()), optimizer))}

    def call() -> Any:
        for _ in range(100):
            holder["state"], info = jax.block_until_ready(step(key, holder["state"], x, slots))
        return info["loss"]

    return call


def small() -> Any:
    config = digits.get_config()
    config.network.features = (256, 256, 256)
    config.e_step.steps, config.m_step.steps, config.m_step.updates_per_dispatch = STEPS, DISPATCH, DISPATCH
    return load_problem(config)


def process(number: int, count: int, port: int) -> None:
    """One of several processes: its processor seconds, as JSON on stdout."""
    # A core each: one that waits for the other spins, and would spin on the other's core.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    if count > 1:
        initialize(f"localhost:{port}", count, number)
    problem, found = small(), {}
    for way in WAYS:
        for name, seconds in interleave(steps(make_parallel(way), BATCH, problem), clock=time.process_time).items():
            found[f"{way} {name}"] = seconds
    print(json.dumps(found), flush=True)


def processes(count: int) -> dict[str, float]:
    """The sum of the processes' processor seconds."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.devices", STAGE]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen([*command, str(i), str(count), str(port)], stdout=subprocess.PIPE, text=True, env=environment)
        for i in range(count)
    ]
    found = [json.loads(p.communicate()[0].strip().splitlines()[-1]) for p in started]
    return {name: sum(one[name] for one in found) for name in found[0]}


def main() -> None:
    if STAGE in sys.argv:
        number, count, port = map(int, sys.argv[-3:])
        process(number, count, port)
        return
    # With one core XLA has one thread, and an all-reduce of two fake devices waits for ever: leave it two.
    problem, sides, calls = small(), {}, {}
    layouts = {"1 device": (1, 1), "2 devices, same batch": (2, 1), "2 devices, twice the batch": (2, 2)}
    for way in WAYS:
        for label, (count, times) in layouts.items():
            parallel = make_parallel(way, jax.devices()[:count])
            for name, step in steps(parallel, BATCH * times, problem).items():
                sides[name, way, label] = step
        for count in (1, 2):
            calls[f"{way} {count}"] = empty(make_parallel(way, jax.devices()[:count]))
    seconds = interleave(sides, clock=time.process_time)
    table = []
    for name in ("m_step", "e_step"):
        for way in WAYS:
            single, strong, weak = found = [seconds[name, way, label] for label in layouts]
            shares = {"strong overhead": strong / single - 1, "weak overhead": weak / (2 * single) - 1}
            table.append({"step": name, "map": way, **dict(zip(layouts, found, strict=True)), **shares})
    each = {name: 1e6 * value / 100 for name, value in interleave(calls, clock=time.process_time).items()}
    one, two = processes(1), processes(2)
    many = [
        {"step": name, "1 process": one[name], "2 processes": two[name], "overhead": two[name] / one[name] - 1}
        for name in one
    ]
    write("devices", {"processor seconds": table, "microseconds per call of an empty M-step": each, "processes": many})


if __name__ == "__main__":
    main()
