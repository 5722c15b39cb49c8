"""What is measured of a round on CIFAR-10: distances of features, accuracy, errors and calibration of its draws."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffem_jax import metrics
from diffem_jax.build.problem import Problem, load_problem, rows
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import stream_key
from experiments.cifar10 import resnet
from experiments.common import posterior_draws
from experiments.patches import classical as restoration

Draws = Callable[[Any, int, str], np.ndarray]


class Counts(NamedTuple):
    """Images of which one draw is measured, those of which ``draws`` are, and ``draws``."""

    images: int = 8192
    several: int = 512
    draws: int = 16


def of_round(folder: Workdir, problem: Problem, number: int) -> Draws:
    """How a round draws: (observations, draws per observation, stream) -> [draws, N, *X]; round 0 is the start."""
    return lambda observed, samples, stream: posterior_draws(folder, problem.setup, number, observed, samples, stream)


def measure(problem: Problem, draws: Draws, counts: Counts, features: Path | str | None) -> dict[str, Any]:
    """The measures of the first observations, by name; without a file of ``features`` no distances and no accuracy."""
    many, few = (min(problem.num_examples, count) for count in counts[:2])
    found: dict[str, Any] = {"images": many, "images of several draws": few, "draws": counts.draws}
    truth = np.asarray(problem.truth[np.arange(many)], np.float32)
    x = draws(rows(problem.observations, np.arange(many)), 1, "cifar10_one")[0]
    if features:
        weights, half, frechet_distance = resnet.load(features), many // 2, metrics.frechet_distance
        (f, classes), (true_f, true_classes) = resnet.measure(weights, x), resnet.measure(weights, truth)
        labels = np.asarray(problem.labels[:many])
        found |= {
            "frechet distance, same images": frechet_distance(f, true_f).value,
            "frechet distance, other images": frechet_distance(f[:half], true_f[half:]).value,
            "frechet distance of two halves of the truth": frechet_distance(true_f[:half], true_f[half:]).value,
            "accuracy of draws": float(np.mean(classes == labels)),
            "accuracy of the truth": float(np.mean(true_classes == labels)),
        }
    found["psnr of a draw"] = metrics.psnr(x, truth).value
    if counts.draws == 1:
        return found
    truth, x = truth[:few], draws(rows(problem.observations, np.arange(few)), counts.draws, "cifar10_several")
    return found | {
        "psnr of the mean": metrics.psnr(x.mean(0), truth).value,
        "psnr of the mean, by example": metrics.psnr_per_example(x.mean(0), truth).value,
        "crps": metrics.crps(x, truth).value,
        "spread": metrics.spread(x).value,
        "levels": list(metrics.LEVELS),
        "coverage": [e.value for e in metrics.coverage(x, truth)],
        "tarp": [e.value for e in metrics.tarp(x, truth, stream_key(0, "tarp"))],
    }


def classical(config: ConfigDict, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The same of what needs no training: biharmonic inpainting, or Richardson-Lucy and Wiener at their best by the truth."""
    problem = load_problem(config)
    truth = np.asarray(problem.truth[np.arange(options.images)], np.float32)
    observed = rows(problem.observations, np.arange(options.images))
    masked = problem.setup.corruption.hides_entries
    found = (restoration.biharmonic if masked else restoration.deconvolution)(observed, problem.setup.corruption)
    # The last of a name is its best.
    ordered = sorted(found, key=lambda name: metrics.psnr(found[name], truth).value)
    best, counts = {name.partition(",")[0]: found[name] for name in ordered}, Counts(len(truth), 1, 1)
    (options.work / options.corruption).mkdir(parents=True, exist_ok=True)
    for name, x in {"observation": observed.y, **best}.items():
        np.save(options.work / options.corruption / f"{name}.npy", x[:32])
    return {name: measure(problem, lambda *_, x=x: x[None], counts, options.features) for name, x in best.items()}
