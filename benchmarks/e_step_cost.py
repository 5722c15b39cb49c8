"""Quality and seconds of a draw against the number of network evaluations, per sampler, conditional and MMPS.

    python -m benchmarks.e_step_cost

Digits, pixels erased with rate 0.5: a conditional network and an unconditional one of the same size are trained for one
round on the start's draws; every sampler then draws from both. PSNR is of the draws against the hidden truth.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import write
from configs import digits
from diffem_jax import build, checkpoints, em, metrics
from diffem_jax.problem import load_problem
from diffem_jax.round_zero import load_start
from diffem_jax.samplers import EVALUATIONS, SAMPLERS
from diffem_jax.schedules import TIME_GRIDS
from diffem_jax.train import run_em
from diffem_jax.types import stream_key


def trained(method: str, folder: str) -> tuple[Any, Any, Any]:
    config = digits.get_config()
    with config.unlocked():
        config.rounds, config.method = 1, method
        config.eval.metrics = ()
    workdir = run_em(config, folder)
    problem = load_problem(config)
    return problem, build.make_model(problem.setup, load_start(workdir)), checkpoints.load(workdir.last_round())


def main() -> None:
    table = []
    for method in ("diffem", "em_mmps"):
        with tempfile.TemporaryDirectory() as folder:
            problem, model, state = trained(method, folder)
            observations = jax.tree.map(jnp.asarray, problem.observations)
            indices, truth = jnp.arange(problem.num_examples), np.asarray(problem.truth)
            params = jax.tree.map(jnp.asarray, state["ema_params"])
            for name in SAMPLERS if method == "diffem" else ("ddpm", "ddim"):
                for evaluations in (8, 16, 32, 64, 256):
                    if method == "em_mmps" and evaluations > 64:
                        continue
                    schedule = problem.setup.schedule
                    steps = evaluations // EVALUATIONS.get(name, 1)
                    times = TIME_GRIDS["log_uniform"](schedule, steps)
                    step = jax.jit(em.make_e_step(model.bind, SAMPLERS[name](schedule), times, problem.setup.shape))
                    key = stream_key(0, "bench")
                    jax.block_until_ready(step(key, params, observations, indices))
                    began = time.perf_counter()
                    x = np.asarray(step(key, params, observations, indices))
                    seconds = time.perf_counter() - began
                    table.append(
                        {
                            "method": method,
                            "sampler": name,
                            "evaluations": evaluations,
                            "psnr": float(metrics.psnr(x, truth).value),
                            "milliseconds_a_draw": 1e3 * seconds / len(x),
                        }
                    )
                    print(table[-1], flush=True)
    write("e_step_cost", {"digits": table})


if __name__ == "__main__":
    main()
