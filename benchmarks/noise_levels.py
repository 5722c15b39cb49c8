"""Several noise levels per example in one update, at the same number of network evaluations per update.

    python -m benchmarks.noise_levels

Digits (pixels erased with rate 0.75), base 'start_moments', whose preparation of an observation is worth sharing: 512
network evaluations per update as 512 examples of 1 level, 256 of 2 or 128 of 4. Processor seconds of 25 updates (medians of
three), and the loss of fresh examples after 200 updates on draws of the start, of which the standard error is given too.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import interleave, one_core, write
from configs import digits
from diffem_jax import em
from diffem_jax.build.engine import make_engine
from diffem_jax.build.methods import make_model
from diffem_jax.build.problem import load_problem
from diffem_jax.gaussians import starts
from diffem_jax.parallel import make_parallel
from diffem_jax.storage.reconstructions import index_stream
from diffem_jax.types import example_keys, stream_key

EVALUATIONS, DISPATCH, UPDATES = 512, 25, 200


def main() -> None:
    one_core()
    config = digits.get_config("mask75")
    config.network.features, config.denoiser.base = (256, 256, 256), "start_moments"
    config.m_step.steps, config.m_step.updates_per_dispatch = UPDATES, DISPATCH
    problem, parallel = load_problem(config), make_parallel("jit")
    setup, every = problem.setup, np.arange(problem.num_examples, dtype=np.int32)
    start = starts.fit(
        stream_key(0, "start"), setup.corruption, problem.observations, rank=config.start.rank, iterations=10
    ).mixture
    x = np.asarray(
        jax.jit(em.map_examples(starts.make_start_draw(setup.corruption)))(
            stream_key(0, "draw"), start, jax.tree.map(jnp.asarray, problem.observations), every
        )
    )
    one = make_model(setup, start).loss

    @jax.jit
    def fresh(params: object) -> jax.Array:
        keys = example_keys(stream_key(1, "test"), jnp.asarray(every))
        return jax.vmap(one, (None, 0, 0))(params, keys, x)

    sides, losses = {}, {}
    for levels in (1, 2, 4):
        config.m_step.noise_levels, config.m_step.batch_size = levels, EVALUATIONS // levels
        engine, batch = make_engine(setup._replace(config=config), parallel, start), EVALUATIONS // levels
        slots = np.tile(np.arange(batch, dtype=np.int32), (DISPATCH, 1))
        holder = {"state": em.make_state(engine.model.denoiser.init(stream_key(0, "init")), setup.optimizer)}
        batches = index_stream(0, 1, len(x), batch)

        def updates(engine=engine, slots=slots, holder=holder, batches=batches):
            chosen = np.stack([next(batches) for _ in range(DISPATCH)])
            holder["state"], info = engine.m_step(stream_key(0, "m_step"), holder["state"], x[chosen], slots)
            return info["loss"]

        for _ in range(UPDATES // DISPATCH):
            updates()
        losses[levels] = np.asarray(fresh(holder["state"].ema_params))
        sides[str(levels)] = updates
        print(levels, losses[levels].mean(), flush=True)
    seconds = interleave(sides, 3, time.process_time)
    table = [
        {
            "levels": levels,
            "examples per update": EVALUATIONS // levels,
            "milliseconds per update": 1e3 * seconds[str(levels)] / DISPATCH,
            "loss": float(values.mean()),
            "standard error": float(values.std() / np.sqrt(len(values))),
            "standard error of the difference from 1 level": float((values - losses[1]).std() / np.sqrt(len(values))),
        }
        for levels, values in losses.items()
    ]
    write("noise_levels", {"digits": table})


if __name__ == "__main__":
    main()
