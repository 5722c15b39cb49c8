"""Patches against classical restoration: 16x16x3 crops of photographs, half of the pixels erased, or blurred.

    python -m experiments.patches.classical [--only=mask50] [--work=runs/experiments/patches_classical] [--report]

Trains ``--config=patches:mask50`` and ``patches:blur`` (a finished run is passed over), then restores 256 observations of
the training set, whose truth no run saw: draws of the start and of the last round's network, the network's posterior
mean (average of eight evaluations at the largest noise), and the answers of scikit-image. Where a classical method has
a parameter it gets the value that is best for the hidden truth. Numbers go to classical.json, and from there (with
``--report`` without a run) into the tables of classical.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from skimage import restoration

import diffem_jax as dx
from diffem_jax.build.problem import load_problem, rows
from diffem_jax.metrics import psnr, psnr_per_example
from diffem_jax.storage.workdir import Workdir
from experiments import common, figures

HERE = Path(__file__).parent
COUNT = 256
VARIANTS = ("mask50", "blur")
BORDER = {"circular": "wrap", "reflect": "symmetric"}


def biharmonic(observations: Any, corruption: Any) -> dict[str, np.ndarray]:
    """Biharmonic inpainting of erased pixels."""
    del corruption
    pairs = zip(observations.y, observations.operator, strict=True)
    out = [restoration.inpaint_biharmonic(np.where(m > 0, y, 0.0), m[..., 0] == 0, channel_axis=-1) for y, m in pairs]
    return {"biharmonic inpainting": np.stack(out)}


def deconvolution(observations: Any, corruption: Any) -> dict[str, np.ndarray]:
    """Richardson-Lucy, Wiener and unsupervised Wiener deconvolution with the true kernel, on images in [0, 1]."""
    delta = np.zeros((*corruption.shape[:-1], 1), np.float32)
    delta[delta.shape[0] // 2, delta.shape[1] // 2] = 1.0
    wide = np.broadcast_to(delta, corruption.shape)
    kernel = np.asarray(
        corruption.forward(wide, None if observations.operator is None else rows(observations, [0]).operator)
    )
    kernel = kernel.reshape(corruption.shape)[..., 0]
    side = [slice(n // 2 - 4, n // 2 + 5) for n in kernel.shape]
    kernel = kernel[tuple(side)].clip(0) / kernel[tuple(side)].clip(0).sum()
    unit = (np.asarray(observations.y) + 2) / 4
    # A margin that goes on as the corruption does keeps the methods' own borders away.
    margin = 6
    wrapped = np.pad(unit, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode=BORDER[corruption.border])

    def each(method: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        out = np.stack([np.stack([method(x[..., c]) for c in range(x.shape[-1])], -1) for x in wrapped])
        return out[:, margin:-margin, margin:-margin] * 4 - 2

    answers = {}
    for count in (5, 10, 20, 40, 80):
        answers[f"Richardson-Lucy, {count} iterations"] = each(
            lambda x, n=count: restoration.richardson_lucy(x.clip(1e-3), kernel, num_iter=n)
        )
    for balance in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2):
        answers[f"Wiener, balance {balance:g}"] = each(
            lambda x, b=balance: restoration.wiener(x, kernel, b, clip=False)
        )
    answers["unsupervised Wiener"] = each(lambda x: restoration.unsupervised_wiener(x, kernel, clip=False, rng=0)[0])
    return answers


def train(variant: str, folder: Path) -> float:
    """The run's seconds: fit, M-steps and E-steps."""
    command = [sys.executable, "-m", "diffem_jax.main", f"--config=patches:{variant}", f"--workdir={folder}"]
    subprocess.run(command, check=True)
    records = [r for r in Workdir(folder).records() if r.get("kind") == "round"]
    return sum(r.get("m_step_seconds", 0.0) + r["e_step_seconds"] for r in records)


def compare(variant: str, folder: Path) -> dict[str, Any]:
    """PSNR of every answer: of the pooled squared error, and the mean of the images' own."""
    seconds = train(variant, folder)
    model = dx.load(folder)
    problem = load_problem(model.config)
    index = np.arange(COUNT)
    truth = np.asarray(problem.truth[index])
    observations = jax.tree.map(np.asarray, rows(problem.observations, index))
    answers = {
        "start, one draw": model.start_draws(observations)[0],
        "DiffEM, one draw": model.posterior_draws(observations)[0],
        "DiffEM, posterior mean": model.posterior_means(observations, 8),
    }
    classical = biharmonic if variant.startswith("mask") else deconvolution
    found = classical(observations, model.corruption)
    score = {name: psnr(np.clip(x, -2, 2), truth).value for name, x in found.items()}
    best: dict[str, str] = {}
    for name in sorted(score, key=score.__getitem__):
        best[name.split(",")[0]] = name
    answers |= {name: found[name] for name in best.values()}
    table = {
        name: {
            "psnr": float(psnr(np.clip(x, -2, 2), truth).value),
            "psnr_per_image": float(psnr_per_example(np.clip(x, -2, 2), truth).value),
        }
        for name, x in answers.items()
    }
    top = max(best.values(), key=score.__getitem__)
    shown = [observations.y, answers[top], *(answers[n] for n in list(answers)[:3]), truth]
    titles = ["observation", top, "start, one draw", "DiffEM, one draw", "DiffEM, posterior mean", "truth"]
    figures.strips(HERE / f"classical_{variant}.png", dict(zip(titles, shown, strict=True)), 10)
    return {"seconds": seconds, "answers": table}


def tables(results: dict[str, Any]) -> str:
    """A table per variant: what this package answers, then the classical methods."""
    lines = []
    for variant, result in sorted(results.items()):
        lines += [f"`patches:{variant}`, {result['seconds'] / 60:.1f} minutes of training", ""]
        lines += ["| answer | PSNR, dB | mean of the images' PSNR, dB |", "|---|---|---|"]
        ordered = sorted(
            result["answers"].items(), key=lambda item: (not item[0].startswith(("start", "DiffEM")), item[0])
        )
        lines += [f"| {n} | {r['psnr']:.2f} | {r['psnr_per_image']:.2f} |" for n, r in ordered]
        lines.append("")
    return "\n".join(lines).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=VARIANTS)
    parser.add_argument("--work", type=Path, default=Path("runs/experiments/patches_classical"))
    parser.add_argument("--report", action="store_true", help="run nothing: the tables of classical.json")
    given = parser.parse_args()
    path = HERE / "classical.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    wanted = [given.only] if given.only else VARIANTS
    for variant in () if given.report else wanted:
        results[variant] = compare(variant, given.work / variant)
        path.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
    print(tables(results))
    common.write_page(HERE / "classical.md", tables(results))


if __name__ == "__main__":
    main()
