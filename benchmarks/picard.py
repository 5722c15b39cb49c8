"""Sampling in parallel over time: how many iterations come close to the sequential draw, and what they cost.

    python -m benchmarks.picard

The pretrained digits (pixels erased with rate 0.5), 64 observations. Against the sequential draw with the same key:
root mean square difference and PSNR against the hidden truth. Evaluations in sequence are what a machine with idle devices
waits for; evaluations in all are what this CPU pays.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.common import one_core, write
from diffem_jax import metrics, pretrained
from diffem_jax.build import make_setup
from diffem_jax.problem import load_problem, rows
from diffem_jax.samplers import EVALUATIONS

COUNT = 64
CASES = (("ddim", 32), ("dpmpp_2m", 32))


def main() -> None:
    one_core()
    problem = load_problem(pretrained.load("digits").config)
    at, table = np.arange(COUNT), []
    observations, truth = rows(problem.observations, at), np.asarray(problem.truth)[at]
    for name, steps in CASES:
        evaluations = steps * EVALUATIONS.get(name, 1)
        exact: Any = None
        for iterations in (0, 4, 8, 16, evaluations):
            posterior = pretrained.load("digits")
            e = posterior.config.e_step
            e.sampler, e.steps, e.picard, e.batch_size = name, steps, iterations, COUNT
            posterior.setup = make_setup(posterior.config, posterior.shape)
            posterior.posterior_draws(observations)
            began = time.process_time()
            x = posterior.posterior_draws(observations)[0]
            seconds = time.process_time() - began
            exact = x if exact is None else exact
            table.append(
                {
                    "sampler": name,
                    "steps": steps,
                    "iterations": iterations or "sequential",
                    "evaluations in sequence": iterations or evaluations,
                    "evaluations in all": 1 + (iterations - 1) * evaluations if iterations else evaluations,
                    "difference": float(np.sqrt(np.mean((x - exact) ** 2))),
                    "psnr": float(metrics.psnr(x, truth).value),
                    "cpu milliseconds a draw": 1e3 * seconds / COUNT,
                }
            )
            print(table[-1], flush=True)
    write("picard", {"digits": table})


if __name__ == "__main__":
    main()
