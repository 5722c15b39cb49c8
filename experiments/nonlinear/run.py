"""A run on a corruption that is not linear: do observations of the draws agree with y?

    python -m experiments.nonlinear.run [--variant=phase] [--workdir=runs/nonlinear] [--flags ...]

Trains ``digits:VARIANT`` through the command, draws a posterior for every observation from the start and from each
round that is kept, corrupts the draws again without noise and compares with y. Prints the table of README.md, writes
nonlinear_VARIANT.png.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from diffem_jax import metrics
from diffem_jax.draw import round_step
from diffem_jax.parallel import make_parallel
from diffem_jax.problem import Problem, load_problem, rows, stored_config
from diffem_jax.several import several_draws
from diffem_jax.workdir import Workdir

HERE = pathlib.Path(__file__).parent


def misfit(problem: Problem, observed: Any, x: np.ndarray) -> float:
    """The root mean square of y - A(x)."""
    forward = jax.jit(jax.vmap(problem.setup.corruption.forward))
    return float(np.sqrt(np.mean((observed.y - np.asarray(forward(x, observed.operator))) ** 2)))


def picture(path: pathlib.Path, truth: np.ndarray, drawn: dict[str, np.ndarray]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = {"hidden truth": truth, **drawn}
    figure, axes = plt.subplots(len(lines), 1, figsize=(9, 0.95 * len(lines)))
    for axis, (name, images) in zip(axes, lines.items(), strict=True):
        axis.imshow(np.concatenate(list(images[:12, ..., 0]), 1), cmap="gray", vmin=-2, vmax=2)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="phase", choices=("phase", "jpeg"))
    parser.add_argument("--workdir", default="runs/nonlinear")
    parser.add_argument("--flags", nargs="*", default=[], help="further flags of the command, without their dashes")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.workdir) / arguments.variant
    command = [sys.executable, "-m", "diffem_jax.main", f"--config=digits:{arguments.variant}", f"--workdir={folder}"]
    subprocess.run(command + [f"--{flag}" for flag in arguments.flags], check=True)
    workdir = Workdir(folder)
    parts = ("m_step_seconds", "e_step_seconds", "compile_seconds")
    seconds = sum(record.get(part, 0.0) for record in workdir.records() for part in parts)
    config = stored_config(workdir)
    problem, parallel = load_problem(config), make_parallel("jit")
    observed = rows(problem.observations, np.arange(problem.num_examples))
    truth, drawn = np.asarray(problem.truth), {}
    print(
        f"\ndigits:{arguments.variant}, noise {config.corruption.noise_std}; {seconds:.0f} s of M-steps, E-steps and compilation\n"
    )
    print("| draws of | rms of y - A(x) | in noise stds | PSNR |\n|---|---|---|---|")
    scale = config.corruption.noise_std

    def line(name: str, x: np.ndarray) -> None:
        value = misfit(problem, observed, x)
        print(f"| {name} | {value:.4f} | {value / scale:.2f} | {float(metrics.psnr(x, truth).value):.2f} |", flush=True)

    for number in (0, config.rounds):
        step, params = round_step(workdir, problem.setup, parallel, number)
        options: dict[str, Any] = {"seed": 1, "stream": "nonlinear", "batch": config.e_step.batch_size}
        x = several_draws(step, parallel, params, problem.observations, 1, **options)[0]
        name = f"round {number}" if number else "the start"
        drawn[name] = x
        line(name, x)
    print(f"| the hidden truth | {misfit(problem, observed, truth):.4f} | 1.00 | |")
    picture(HERE / f"nonlinear_{arguments.variant}.png", truth, drawn)


if __name__ == "__main__":
    main()
