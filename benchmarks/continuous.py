"""Continuous EM against ordinary rounds on digits (pixels erased with rate 0.75), at the same number of updates.

    python -m benchmarks.continuous

450 updates of batch 512 of a small network: three rounds of 150, or 18 rounds of 25 that each redraw a sixth of the
examples, with a burn-in of 150 updates and without. PSNR of a draw of every observation by the last average, against the
hidden truth, and of the start; all ways begin with the same network and the same draws of the start. E-steps: how often
all examples were redrawn, the last draw left out.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import one_core, write
from configs import digits
from diffem_jax import em, metrics, refresh, starts
from diffem_jax.data import index_stream
from diffem_jax.engine import make_engine
from diffem_jax.parallel import make_parallel
from diffem_jax.problem import load_problem, rows
from diffem_jax.types import stream_key

PARTS, DISPATCH = 6, 25
WAYS: dict[str, dict[str, Any]] = {
    "rounds": {"schedule": "cosine"},
    "rounds, constant rate, all carried over": {},
    "continuous": {"parts": PARTS, "burn_in": PARTS - 1},
    "continuous without burn-in": {"parts": PARTS, "burn_in": 0},
}


def run(seed: int, parts: int = 1, burn_in: int = 0, schedule: str = "constant") -> dict[str, float]:
    config = digits.get_config("mask75")
    config.seed, config.rounds = seed, 3 * parts
    config.network.features = (256, 256, 256)
    config.m_step.steps = 450 // config.rounds
    config.m_step.updates_per_dispatch, config.m_step.learning_rate_schedule = DISPATCH, schedule
    config.m_step.carry = "params" if schedule == "cosine" else "all"
    config.e_step.parts, config.e_step.burn_in, config.e_step.batch_size, config.e_step.steps = parts, burn_in, 300, 16
    problem, parallel = load_problem(config), make_parallel("jit")
    setup, count, m = problem.setup, problem.num_examples, config.m_step
    start = starts.fit(
        stream_key(seed, "start"), setup.corruption, problem.observations, rank=config.start.rank, iterations=10
    ).mixture
    engine = make_engine(setup, parallel, start)
    first = jax.jit(em.map_examples(starts.make_start_draw(setup.corruption)))

    def draw(step: Any, number: int, params: Any, at: np.ndarray) -> np.ndarray:
        out = []
        for begin in range(0, len(at), 300):
            batch = at[np.arange(begin, begin + 300) % len(at)]
            out.append(step(stream_key(seed, "e_step", number), params, rows(problem.observations, batch), batch))
        return np.concatenate([np.asarray(one) for one in out])[: len(at)]

    every = np.arange(count, dtype=np.int32)
    x = draw(first, 0, start, every)
    result = {"start": float(metrics.psnr(x, np.asarray(problem.truth)).value), "updates": 0, "e_steps": 0.0}
    state = em.make_state(engine.model.denoiser.init(stream_key(seed, "init")), setup.optimizer)
    slots = np.tile(np.arange(m.batch_size, dtype=np.int32), (DISPATCH, 1))
    seconds = 0.0
    for number in range(1, config.rounds + 1):
        if m.carry == "params":
            state = em.make_state(jax.tree.map(jnp.array, state.params), setup.optimizer)
        batches = index_stream(seed, number, count, m.batch_size)
        began = time.process_time()
        for _ in range(m.steps // DISPATCH):
            chosen = np.stack([next(batches) for _ in range(DISPATCH)])
            state, _ = engine.m_step(stream_key(seed, "m_step", number), state, x[chosen], slots)
        at = every[refresh.redrawn(config, number, count)]
        if len(at) and number < config.rounds:
            x = np.array(x)
            x[at] = draw(engine.e_step, number, state.ema_params, at)
            result["e_steps"] += len(at) / count
        seconds += time.process_time() - began
        result["updates"] += m.steps
    last = draw(engine.e_step, config.rounds, state.ema_params, every)
    return {**result, "psnr": float(metrics.psnr(last, np.asarray(problem.truth)).value), "cpu_seconds": seconds}


def main() -> None:
    one_core()
    seeds = 1
    table = []
    for name, changes in WAYS.items():
        found = [run(seed, **changes) for seed in range(seeds)]
        table.append({"way": name, **{key: float(np.mean([row[key] for row in found])) for key in found[0]}})
        table[-1]["psnr of each seed"] = " ".join(f"{row['psnr']:.2f}" for row in found)
        print(table[-1], flush=True)
    write("continuous", {"digits": table})


if __name__ == "__main__":
    main()
