"""A run on a corruption that is not linear: do observations of the draws agree with y?

    python -m experiments.nonlinear.run [--only=phase] [--report]

Trains ``digits:VARIANT`` through the command, draws a posterior for every observation from the start and from each
round that is kept, corrupts the draws again without noise and compares with y. Writes results.json (its entry of the
variant), nonlinear_VARIANT.png and the tables of README.md.
"""

import pathlib
from typing import Any

import jax
import numpy as np

from diffem_jax import metrics
from diffem_jax.build.problem import Problem, load_problem, rows, stored_config
from experiments import common, figures

HERE = pathlib.Path(__file__).parent
VARIANTS = {"phase": ["config.rounds=1"], "jpeg": ["config.m_step.steps=800", "config.rounds=2"]}
"""With what each runs instead of the config's own."""


def misfit(problem: Problem, observed: Any, x: np.ndarray) -> float:
    """The root mean square of y - A(x)."""
    forward = jax.jit(jax.vmap(problem.setup.corruption.forward))
    return float(np.sqrt(np.mean((observed.y - np.asarray(forward(x, observed.operator))) ** 2)))


def tables(results: dict[str, Any]) -> str:
    """The part of the README that is made from the results."""
    parts = []
    for variant, result in results.items():
        title = f"`digits:{variant}` with `{' '.join(result['flags'])}`, noise {result['noise']}"
        rows = []
        for row in result["draws"]:
            psnr = "" if row["psnr"] is None else f"{row['psnr']:.2f}"
            rows.append([row["of"], f"{row['misfit']:.4f}", f"{row['misfit'] / result['noise']:.2f}", psnr])
        parts.append(f"{title}; {result['seconds']:.0f} s of M-steps, E-steps and compilation")
        parts.append(common.markdown(["draws of", "rms of y - A(x)", "in noise stds", "PSNR"], rows))
        parts.append(f"![Truth, start, last round](nonlinear_{variant}.png)")
    return "\n\n".join(parts)


def measure(variant: str) -> dict[str, Any]:
    """Trains (a finished run is passed over), draws, and compares with y and with the hidden truth."""
    flags = [f"--{flag}" for flag in VARIANTS[variant]]
    workdir = common.train(common.ROOT / "runs/experiments/nonlinear" / variant, f"--config=digits:{variant}", *flags)
    parts = ("m_step_seconds", "e_step_seconds", "compile_seconds")
    seconds = sum(record.get(part, 0.0) for record in workdir.records() for part in parts)
    config = stored_config(workdir)
    problem = load_problem(config)
    observed = rows(problem.observations, np.arange(problem.num_examples))
    truth, drawn = np.asarray(problem.truth), {}
    for number in (0, config.rounds):
        x = common.posterior_draws(workdir, problem.setup, number, problem.observations, 1, "nonlinear")[0]
        drawn[f"round {number}" if number else "the start"] = x
    figures.strips(HERE / f"nonlinear_{variant}.png", {"hidden truth": truth, **drawn})
    draws: list[dict[str, Any]] = [
        {"of": name, "misfit": misfit(problem, observed, x), "psnr": float(metrics.psnr(x, truth).value)}
        for name, x in drawn.items()
    ]
    draws.append({"of": "the hidden truth", "misfit": misfit(problem, observed, truth), "psnr": None})
    return {"noise": config.corruption.noise_std, "seconds": seconds, "flags": VARIANTS[variant], "draws": draws}


if __name__ == "__main__":
    common.run_each(__doc__, HERE / "results.json", "README.md", VARIANTS, measure, tables)
