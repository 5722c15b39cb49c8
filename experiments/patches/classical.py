"""Patches against classical restoration: 16x16x3 crops of photographs, half of the pixels erased, or blurred.

    python -m experiments.patches.classical [--only=mask50] [--report]

Trains ``--config=patches:mask50`` and ``patches:blur`` (a finished run is passed over), then restores 256 observations of
the training set, whose truth no run saw: draws of the start and of the last round's network, the network's posterior
mean (average of eight evaluations at the largest noise), and the answers of scikit-image. Where a classical method has
a parameter it gets the value that is best for the hidden truth. Numbers go to classical.json, and from there (with
``--report`` without a run) into the tables of classical.md.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from skimage import restoration

import diffem_jax as dx
from diffem_jax.build.problem import load_problem, rows
from diffem_jax.metrics import psnr, psnr_per_example
from experiments import common, figures

HERE = Path(__file__).parent
COUNT = 256
VARIANTS = ("mask50", "blur")
BORDER = {"circular": "wrap", "reflect": "symmetric"}


def biharmonic(observations: Any, corruption: Any) -> dict[str, np.ndarray]:
    """Biharmonic inpainting of erased pixels."""
    pairs = zip(observations.y, observations.operator, strict=True)
    out = [restoration.inpaint_biharmonic(np.where(m > 0, y, 0.0), m[..., 0] == 0, channel_axis=-1) for y, m in pairs]
    return {"biharmonic inpainting": np.stack(out)}


def deconvolution(observations: Any, corruption: Any) -> dict[str, np.ndarray]:
    """Richardson-Lucy, Wiener and unsupervised Wiener deconvolution with the true kernel, on images in [0, 1]."""
    delta = np.zeros(corruption.shape, np.float32)
    delta[delta.shape[0] // 2, delta.shape[1] // 2] = 1.0
    operator = None if observations.operator is None else rows(observations, [0]).operator
    kernel = np.asarray(corruption.forward(delta, operator)).reshape(corruption.shape)[..., 0]
    side = [slice(n // 2 - 4, n // 2 + 5) for n in kernel.shape]
    kernel = kernel[tuple(side)].clip(0) / kernel[tuple(side)].clip(0).sum()
    unit = (np.asarray(observations.y) + 2) / 4
    # A margin that goes on as the corruption does keeps the methods' own borders away.
    margin = 6
    wrapped = np.pad(unit, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode=BORDER[corruption.border])

    def each(method: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        out = np.stack([np.stack([method(x[..., c]) for c in range(x.shape[-1])], -1) for x in wrapped])
        return out[:, margin:-margin, margin:-margin] * 4 - 2

    lucy = {n: lambda x, n=n: restoration.richardson_lucy(x.clip(1e-3), kernel, n) for n in (5, 10, 20, 40, 80)}
    balances = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    wiener = {b: lambda x, b=b: restoration.wiener(x, kernel, b, clip=False) for b in balances}
    return {
        **{f"Richardson-Lucy, {count} iterations": each(method) for count, method in lucy.items()},
        **{f"Wiener, balance {balance:g}": each(method) for balance, method in wiener.items()},
        "unsupervised Wiener": each(lambda x: restoration.unsupervised_wiener(x, kernel, clip=False, rng=0)[0]),
    }


def compare(variant: str) -> dict[str, Any]:
    """PSNR of every answer: of the pooled squared error, and the mean of the images' own."""
    folder = common.train(common.ROOT / "runs/experiments/patches_classical" / variant, f"--config=patches:{variant}")
    rounds = [r for r in folder.records() if r.get("kind") == "round"]
    seconds = sum(r.get("m_step_seconds", 0.0) + r["e_step_seconds"] for r in rounds)
    model = dx.load(folder.root)
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
    table, measures = {}, {"psnr": psnr, "psnr_per_image": psnr_per_example}
    for name, x in (answers | found).items():
        table[name] = {key: float(of(np.clip(x, -2, 2), truth).value) for key, of in measures.items()}
    ordered = sorted(found, key=lambda name: table[name]["psnr"])
    top, best = ordered[-1], {name.split(",")[0]: name for name in ordered}
    table = {name: scores for name, scores in table.items() if name in answers or name in best.values()}
    answers[top] = found[top]
    shown = [observations.y, answers[top], *(answers[n] for n in list(answers)[:3]), truth]
    titles = ["observation", top, "start, one draw", "DiffEM, one draw", "DiffEM, posterior mean", "truth"]
    figures.strips(HERE / f"classical_{variant}.png", dict(zip(titles, shown, strict=True)), 10)
    return {"seconds": seconds, "answers": table}


def tables(results: dict[str, Any]) -> str:
    """A table per variant: what this package answers, then the classical methods."""
    parts = []
    for variant, result in sorted(results.items()):
        parts.append(f"`patches:{variant}`, {result['seconds'] / 60:.1f} minutes of training")
        found = sorted(result["answers"].items(), key=lambda one: (not one[0].startswith(("start", "DiffEM")), one[0]))
        rows = [[name, f"{answer['psnr']:.2f}", f"{answer['psnr_per_image']:.2f}"] for name, answer in found]
        parts.append(common.markdown(["answer", "PSNR, dB", "mean of the images' PSNR, dB"], rows))
    return "\n\n".join(parts)


if __name__ == "__main__":
    common.run_each(__doc__ or "", HERE / "classical.json", "classical.md", VARIANTS, compare, tables)
