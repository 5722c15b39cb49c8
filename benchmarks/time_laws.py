"""Laws of t in training at an equal number of updates: the published Beta(3, 3), uniform, and the one matched to the loss.

    python -m benchmarks.time_laws

Digits (pixels erased with rate 0.75), the published denoiser ('edm') and 'posterior'; two rounds of 250 updates of batch 128,
16 steps of dpmpp_2m_sde, all from one start. Means and standard deviations over three seeds. fit: the loss of the start's
draws after round 1; held out: that of the hidden truth after round 2, both with fresh y' and noise under the objective
of Beta(3, 3), the same noise for all. PSNR and CRPS of two draws an observation after round 2. spread: the standard
deviation of one example's loss, weight included, under each law after round 2, of the first seed.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import one_core, write
from configs import digits
from diffem_jax import em, starts
from diffem_jax.build import Setup, make_loss, make_model
from diffem_jax.data import index_stream
from diffem_jax.engine import make_engine
from diffem_jax.gaussians import Mixture
from diffem_jax.matched import settle
from diffem_jax.metrics import crps, psnr
from diffem_jax.parallel import make_parallel
from diffem_jax.problem import Problem, load_problem
from diffem_jax.types import EMState, example_keys, stream_key

DENOISERS, LAWS, SEEDS = ("edm", "posterior"), ("beta", "uniform", "matched"), 3
ROUNDS, UPDATES, DISPATCH, BATCH = 2, 250, 50, 128


def problem_of(denoiser: str, law: str) -> Problem:
    """The problem of one side."""
    config = digits.get_config("mask75")
    config.denoiser.preconditioning, config.m_step.time_law = denoiser, law
    config.m_step.steps, config.m_step.batch_size, config.m_step.updates_per_dispatch = UPDATES, BATCH, DISPATCH
    config.e_step.sampler, config.e_step.steps = "dpmpp_2m_sde", 16
    return load_problem(config)


def losses(setup: Setup, start: Mixture) -> Any:
    """(params, x [N, *X]) -> the losses of x under the setup's law, [N]."""
    loss = make_loss(setup, make_model(setup, start).denoiser, setup.corruption)

    def each(params: object, x: jax.Array) -> jax.Array:
        return jax.vmap(loss, (None, 0, 0))(params, example_keys(stream_key(0, "test"), jnp.arange(len(x))), x)

    return jax.jit(each)


def main() -> None:
    one_core()
    problem = problem_of("edm", "beta")
    corruption, truth = problem.setup.corruption, np.asarray(problem.truth)
    observations, every = jax.tree.map(jnp.asarray, problem.observations), np.arange(len(truth), dtype=np.int32)
    rank = problem.setup.config.start.rank
    start = starts.fit(stream_key(0, "start"), corruption, problem.observations, rank=rank, iterations=10).mixture
    draw = jax.jit(em.map_examples(starts.make_start_draw(corruption)))  # type: ignore[arg-type]
    first = np.asarray(draw(stream_key(0, "draw"), start, observations, every))
    result: dict[str, Any] = {}
    for denoiser in DENOISERS:
        objective = losses(problem_of(denoiser, "beta").setup, start)
        table = []
        for law in LAWS:
            began = time.process_time()
            setup = settle(problem_of(denoiser, law).setup, start)
            engine, own = make_engine(setup, make_parallel("jit"), start), losses(setup, start)
            found, spread = [], 0.0
            for seed in range(SEEDS):
                x, fit = first, 0.0
                params = engine.model.denoiser.init(stream_key(seed, "init"))
                for number in range(1, ROUNDS + 1):
                    state = train(engine, em.make_state(params, setup.optimizer), seed, number, x)
                    if number == 1:
                        fit = float(np.mean(objective(state.ema_params, first)))
                    if number < ROUNDS:
                        key = stream_key(seed, "e_step", number)
                        x = np.asarray(engine.e_step(key, state.ema_params, observations, every))
                    params = state.params
                keys = [stream_key(seed, "draws", i) for i in range(2)]
                draws = np.stack([engine.e_step(key, state.ema_params, observations, every) for key in keys])
                spread = spread or float(np.std(own(state.ema_params, first)))
                held = float(np.mean(objective(state.ema_params, truth)))
                found.append([fit, held, psnr(draws[0], truth).value, crps(draws, truth).value])
            mean, std = np.mean(found, axis=0), np.std(found, axis=0, ddof=1)
            row: dict[str, Any] = {"law": law, "spread": spread}
            for name, m, s in zip(("fit", "held out", "PSNR", "CRPS"), mean, std, strict=True):
                row |= {name: float(m), f"{name} std": float(s)}
            table.append(row)
            print(denoiser, row, f"{time.process_time() - began:.0f} s", flush=True)
        result[denoiser] = table
    write("time_laws", result)


def train(engine: Any, state: EMState, seed: int, number: int, x: np.ndarray) -> EMState:
    """One M-step."""
    batches, key = index_stream(seed, number, len(x), BATCH), stream_key(seed, "m_step", number)
    slots = np.tile(np.arange(BATCH, dtype=np.int32), (DISPATCH, 1))
    for _ in range(UPDATES // DISPATCH):
        chosen = np.stack([next(batches) for _ in range(DISPATCH)])
        state, _ = engine.m_step(key, state, x[chosen], slots)
    return state


if __name__ == "__main__":
    main()
