"""Overhead of the host loop: M-step updates against a bare jitted scan, E-step against the bare network evaluations.

    python -m benchmarks.overhead

Both sides train the same network with the same loss, optimiser and batch; the bare side has its data on the device
already and no moving average, log, checkpoint or progress. Sides alternate; medians of nine, in processor seconds on one
core, where the host's work cannot hide behind the device's.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import interleave, one_core, write
from configs import digits, manifold
from diffem_jax.problem import load_problem, rows
from diffem_jax.rounds import Run
from diffem_jax.types import example_keys, stream_key
from diffem_jax.workdir import Workdir

REPEATS = 9


def measure(config: Any, updates: int) -> dict[str, float]:
    with config.unlocked():
        config.m_step.steps = updates
        config.eval.metrics = ()
        config.checkpoint.every_steps = 10**6
    problem = load_problem(config)
    with tempfile.TemporaryDirectory() as folder:
        workdir = Workdir(folder)
        workdir.create()
        run = Run(problem, workdir, lambda line: None, lambda number, draws: {})
        run.e_step(0, run.start, run.start_step)
        m, draw = config.m_step, run.store.round(0).open().rows
        x = draw(np.arange(updates * m.batch_size) % problem.num_examples)
        staged = jax.device_put(x.reshape(updates, m.batch_size, *problem.setup.shape))
        slots = np.arange(m.batch_size, dtype=np.int32)
        loss, optimizer = run.engine.model.loss, run.setup.optimizer

        @jax.jit
        def bare(params: Any, opt_state: Any, key: Any, data: Any) -> Any:
            def update(carry: Any, batch: Any) -> Any:
                params, opt_state, step = carry
                keys = example_keys(jax.random.fold_in(key, step), slots)

                def mean_loss(p: Any) -> Any:
                    return jax.vmap(loss, (None, 0, 0))(p, keys, batch).mean()

                value, gradient = jax.value_and_grad(mean_loss)(params)
                change, opt_state = optimizer.update(gradient, opt_state, params)
                return (optax.apply_updates(params, change), opt_state, step + 1), value

            return jax.lax.scan(update, (params, opt_state, 0), data)

        fresh = run.fresh_state()
        # A copy a call, made outside of the timing: the loop donates its state.
        states = iter([jax.tree.map(jnp.array, fresh) for _ in range(REPEATS + 1)])
        key = stream_key(config.seed, "m_step", 1)
        m_times = interleave(
            {
                "loop": lambda: run.m_step(1, next(states)),
                "bare": lambda: bare(fresh.params, fresh.opt_state, key, staged),
            },
            REPEATS,
            clock=time.process_time,
        )
        e = config.e_step
        count = problem.num_examples // e.batch_size * e.batch_size
        observed = rows(problem.observations, np.arange(e.batch_size))
        bind, times, shape = run.engine.model.bind, run.setup.times, run.setup.shape

        @jax.jit
        def evaluations(params: Any, key: Any, observations: Any) -> Any:
            """The network evaluations of a sampler and nothing else."""

            def one(k: Any, o: Any) -> Any:
                denoise = bind(params, o)
                return jax.lax.scan(lambda x, t: (denoise(x, t), None), jax.random.normal(k, shape), times[:-1])[0]

            return jax.vmap(one)(example_keys(key, np.arange(e.batch_size)), observations)

        # A round that is not in the store yet, so that every call draws all of it.
        number = iter(range(1, 1000))
        params = jax.tree.map(np.asarray, fresh.ema_params)
        e_times = interleave(
            {
                "loop": lambda: run.e_step(next(number), params, run.engine.e_step),
                "bare": lambda: [evaluations(params, key, observed) for _ in range(count // e.batch_size)],
            },
            REPEATS,
            clock=time.process_time,
        )
        for path in Path(folder).glob("reconstructions/*/*"):
            path.unlink()
    padded = -(-problem.num_examples // e.batch_size) * e.batch_size
    return {
        "m_step_loop_seconds": m_times["loop"],
        "m_step_bare_seconds": m_times["bare"],
        "m_step_overhead": m_times["loop"] / m_times["bare"] - 1,
        "e_step_loop_seconds": e_times["loop"],
        "e_step_bare_seconds": e_times["bare"] * padded / count,
        "e_step_overhead": e_times["loop"] / (e_times["bare"] * padded / count) - 1,
    }


def main() -> None:
    one_core()
    write(
        "overhead",
        {"digits": measure(digits.get_config(), 100), "manifold": measure(manifold.get_config("quick"), 100)},
    )


if __name__ == "__main__":
    main()
