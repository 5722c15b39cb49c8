"""A run on a corruption that is not linear: do observations of the draws agree with y?

    python -m experiments.nonlinear.run [--variant=phase] [--flags ...] [--report]

Trains ``digits:VARIANT`` through the command, draws a posterior for every observation from the start and from each
round that is kept, corrupts the draws again without noise and compares with y. Writes results.json (its entry of the
variant), nonlinear_VARIANT.png and the tables of README.md.
"""

import argparse
import json
import pathlib
from typing import Any

import jax
import numpy as np

from diffem_jax import metrics
from diffem_jax.build.problem import Problem, load_problem, rows, stored_config
from experiments import common, figures

HERE = pathlib.Path(__file__).parent


def misfit(problem: Problem, observed: Any, x: np.ndarray) -> float:
    """The root mean square of y - A(x)."""
    forward = jax.jit(jax.vmap(problem.setup.corruption.forward))
    return float(np.sqrt(np.mean((observed.y - np.asarray(forward(x, observed.operator))) ** 2)))


def tables(results: dict[str, Any]) -> str:
    """The part of the README that is made from the results."""
    parts = []
    for variant, result in results.items():
        flags = " ".join(result["flags"])
        title = f"`digits:{variant}`{f' with `{flags}`' if flags else ''}, noise {result['noise']}"
        lines = [f"{title}; {result['seconds']:.0f} s of M-steps, E-steps and compilation", ""]
        lines += ["| draws of | rms of y - A(x) | in noise stds | PSNR |", "|---|---|---|---|"]
        for row in result["draws"]:
            psnr = "" if row["psnr"] is None else f"{row['psnr']:.2f}"
            lines.append(f"| {row['of']} | {row['misfit']:.4f} | {row['misfit'] / result['noise']:.2f} | {psnr} |")
        parts += ["\n".join(lines), f"![Truth, start, last round](nonlinear_{variant}.png)"]
    return "\n\n".join(parts)


def measure(variant: str, folder: pathlib.Path, flags: list[str]) -> dict[str, Any]:
    """Trains (a finished run is passed over), draws, and compares with y and with the hidden truth."""
    workdir = common.train(folder, f"--config=digits:{variant}", *(f"--{flag}" for flag in flags))
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
    return {"noise": config.corruption.noise_std, "seconds": seconds, "flags": flags, "draws": draws}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="phase", choices=("phase", "jpeg"))
    parser.add_argument("--flags", nargs="*", default=[], help="further flags of the command, without their dashes")
    parser.add_argument("--report", action="store_true", help="run nothing: the tables of what is there")
    given = parser.parse_args()
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    if not given.report:
        folder = common.ROOT / "runs" / "experiments" / "nonlinear" / given.variant
        results[given.variant] = measure(given.variant, folder, given.flags)
        path.write_text(json.dumps(results, indent=1) + "\n")
    common.write_page(HERE / "README.md", tables(results))


if __name__ == "__main__":
    main()
