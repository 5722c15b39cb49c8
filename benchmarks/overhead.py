"""Overhead of the host loop: M-step updates against a bare jitted scan, E-step against the bare jitted sampler.

    python -m benchmarks.overhead

Both sides train the same network with the same loss, optimiser and batch; the bare side has its data on the device
already and no moving average, log, checkpoint or progress. A round has as many updates as the config gives it. "Network" is
an E-step's network evaluations alone, without the noise and the solves of a sampler. Sides alternate; medians over the turns, in processor seconds on one core, where the host's work cannot hide behind the device's.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import draw_round, excess, interleave, make_run, medians, one_core, write
from configs import digits, manifold
from diffem_jax.build.problem import load_problem, rows
from diffem_jax.run.m_step import training_rows
from diffem_jax.run.rounds import fresh_state, run_m_step
from diffem_jax.types import example_keys, stream_key

UPDATE_TURNS, DRAW_TURNS = 7, 21


def compare(name: str, sides: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Median seconds of each side, and what the loop takes more than the bare one."""
    seconds = interleave(sides, turns)
    found = {f"{name}_{side}_seconds": value for side, value in medians(seconds).items()}
    return found | {f"{name}_overhead": excess(seconds["loop"], seconds["bare"])}


def measure(config: Any) -> dict[str, float]:
    updates = config.m_step.steps
    with config.unlocked():
        config.eval.metrics = ()
        config.checkpoint.every_steps = 10**6
    problem = load_problem(config)
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(problem, folder)
        draw_round(run, 0, run.start_draw, run.start)
        m, model = config.m_step, run.engine.model
        count, read = training_rows(problem, model, run.store, 1)
        x = read(np.arange(updates * m.batch_size) % count)
        staged = jax.device_put(jax.tree.map(lambda a: a.reshape(updates, m.batch_size, *a.shape[1:]), x))
        slots = np.arange(m.batch_size, dtype=np.int32)
        loss, optimizer = model.loss, problem.setup.optimizer

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

        fresh = fresh_state(run)
        # A copy a call, made outside of the timing: the loop donates its state.
        states = iter([jax.tree.map(jnp.array, fresh) for _ in range(UPDATE_TURNS + 1)])
        key, e = stream_key(config.seed, "m_step", 1), config.e_step
        m_step = compare(
            "m_step",
            {
                "loop": lambda: run_m_step(run, 1, next(states)),
                "bare": lambda: bare(fresh.params, fresh.opt_state, key, staged),
            },
            UPDATE_TURNS,
        )
        # The last batch is padded to the others' shape, and its draws are as long.
        batches = -(-problem.num_examples * e.draws // e.batch_size)
        indices = np.arange(e.batch_size, dtype=np.int32)
        observed = rows(problem.observations, indices)
        bind, times, shape = model.bind, problem.setup.times, problem.setup.shape

        @jax.jit
        def evaluations(params: Any, key: Any, observations: Any) -> Any:
            """The network evaluations of a sampler and nothing else."""

            def one(k: Any, o: Any) -> Any:
                denoise = bind(params, o)
                return jax.lax.scan(lambda x, t: (denoise(x, t), None), jax.random.normal(k, shape), times[:-1])[0]

            return jax.vmap(one)(example_keys(key, indices), observations)

        # A round that is not in the store yet, so that every call draws all of it.
        number = iter(range(1, 1000))
        params, parallel, mapped = jax.tree.map(np.asarray, fresh.ema_params), run.engine.parallel, run.engine.e_step
        placed, one_key = parallel.replicate(params), parallel.replicate(key)
        batch = parallel.shard((observed, indices))
        e_step = compare(
            "e_step",
            {
                "loop": lambda: draw_round(run, next(number), mapped, params),
                "bare": lambda: [mapped(one_key, placed, *batch) for _ in range(batches)],
                "network": lambda: [evaluations(params, key, observed) for _ in range(batches)],
            },
            DRAW_TURNS,
        )
    return {"updates": updates, **m_step, **e_step}


if __name__ == "__main__":
    one_core()
    write("overhead", {"digits": measure(digits.get_config()), "manifold": measure(manifold.get_config("quick"))})
