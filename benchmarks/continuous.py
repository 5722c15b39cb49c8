"""Continuous EM against ordinary rounds on digits (pixels erased with rate 0.75), at the same number of updates.

    python -m benchmarks.continuous

900 updates of batch 512 of a small network: three rounds of 300; or 18 rounds of 50, each of which redraws a sixth of the
examples after a burn-in of 300 updates. PSNR is of fresh draws of all observations by the last network, against the hidden
truth; processor seconds are those of the whole command without its compilation, three seeds each.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.common import one_core, write
from configs import digits
from diffem_jax import metrics, pretrained
from diffem_jax.problem import load_problem
from diffem_jax.progress import CompileClock
from diffem_jax.train import run_em

UPDATES, ROUNDS, PARTS = 900, 3, 6
WAYS: dict[str, dict[str, Any]] = {
    "rounds": {},
    "rounds, optimiser carried over": {"m_step.carry": "all", "m_step.learning_rate_schedule": "constant"},
    "continuous": {
        "m_step.carry": "all",
        "m_step.learning_rate_schedule": "constant",
        "e_step.parts": PARTS,
        "e_step.burn_in": PARTS - 1,
        "rounds": ROUNDS * PARTS,
    },
    "continuous, no burn-in": {
        "m_step.carry": "all",
        "m_step.learning_rate_schedule": "constant",
        "e_step.parts": PARTS,
        "rounds": ROUNDS * PARTS,
    },
}


def run(seed: int, changes: dict[str, Any]) -> dict[str, float]:
    config = digits.get_config("mask75")
    config.seed, config.rounds, config.eval.metrics = seed, ROUNDS, ()
    config.network.features = (256, 256, 256)
    config.update_from_flattened_dict(changes)
    config.m_step.steps = UPDATES // config.rounds
    clock = CompileClock()
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        workdir = run_em(config, folder, say=lambda line: None)
        seconds = time.process_time() - began - clock.seconds
        work = sum(
            r.get("m_step_seconds", 0.0) + r["e_step_seconds"] for r in workdir.records() if r["kind"] == "round"
        )
        problem = load_problem(config)
        x = pretrained.load(folder).posterior_draws(problem.observations, seed=1)[0]
    psnr = float(metrics.psnr(x, np.asarray(problem.truth)).value)
    return {"psnr": psnr, "cpu_seconds": seconds, "step_seconds": work}


def main() -> None:
    one_core()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for seed in range(3):
        for name, changes in WAYS.items():
            found[name].append(run(seed, changes))
            print(name, found[name][-1], flush=True)
    table = [
        {
            "way": name,
            "psnr": float(np.mean([row["psnr"] for row in rows])),
            "psnr_of_seeds": " ".join(f"{row['psnr']:.2f}" for row in rows),
            "cpu_seconds": float(np.median([row["cpu_seconds"] for row in rows])),
        }
        for name, rows in found.items()
    ]
    write("continuous", {"digits": table})


if __name__ == "__main__":
    main()
