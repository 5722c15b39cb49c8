"""Measures of sets of reconstructions against sets of truths, for ``evaluate.METRICS``.

'Paired' compares a set with the truths of the same examples, which share their noise; names that end in '_unpaired'
compare the first half of the reconstructions with the truths of the second half, which no reconstruction comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffem_jax import metrics
from diffem_jax.build.parts import lookup
from diffem_jax.build.problem import Problem
from diffem_jax.errors import UserError
from diffem_jax.types import stream_key

Measure = Callable[[int, np.ndarray], Any]
Maker = Callable[[Problem], Measure]
NEIGHBOURS = 5
NEIGHBOUR_ROWS = 2048


def _sides(problem: Problem, x: np.ndarray, unpaired: bool) -> tuple[np.ndarray, np.ndarray]:
    truth = np.asarray(problem.truth[: len(x)], np.float32)
    half = len(x) // 2
    return (x[:half], truth[half : 2 * half]) if unpaired else (x, truth)


def sliced(unpaired: bool) -> Maker:
    """Sliced Wasserstein distance to the truth; all rounds share their directions."""

    def make(problem: Problem) -> Measure:
        def measure(number: int, x: np.ndarray) -> Any:
            return metrics.sliced_wasserstein(*_sides(problem, x, unpaired), stream_key(0, "sliced_wasserstein"))

        return measure

    return make


def sinkhorn(unpaired: bool) -> Maker:
    """Sinkhorn divergence of 2,048 rows; unpaired ones against the truths of other examples."""

    def make(problem: Problem) -> Measure:
        truth = np.asarray(problem.truth[: len(problem.truth)])
        if len(truth) < 4096:
            raise UserError(
                f"config.eval.metrics: 'sinkhorn' compares 2,048 rows and needs 4,096 examples, not {len(truth)}; remove it"
            )
        floor = metrics.sinkhorn_floor(truth)
        against = np.roll(truth, -2048, axis=0) if unpaired else truth
        return lambda number, x: metrics.sinkhorn_divergence(x, against, floor=floor)

    return make


def features(problem: Problem) -> Callable[[np.ndarray], np.ndarray]:
    """The function that config.eval.features names, or x itself as a vector.

    Raises:
        UserError: it cannot be imported, or does not return one vector an example.
    """
    name = problem.setup.config.eval.features
    if not name:
        return lambda x: x.reshape(len(x), -1)
    function = lookup("eval.features", name, {})

    def checked(x: np.ndarray) -> np.ndarray:
        found = np.asarray(function(x))
        if found.ndim != 2 or len(found) != len(x):
            raise UserError(
                f"config.eval.features: {name!r} returned {found.shape} for {x.shape}; expected [N, D], a vector an example"
            )
        return found

    return checked


def of_features(compare: Callable[..., Any], unpaired: bool = False) -> Maker:
    """A measure of the features of both sides."""

    def make(problem: Problem) -> Measure:
        function = features(problem)

        def measure(number: int, x: np.ndarray) -> Any:
            return compare(*map(function, _sides(problem, x, unpaired)))

        return measure

    return make


def manifolds(name: str) -> Maker:
    """One of precision, recall, density, coverage of the features, with 5 neighbours, of 2,048 rows at most."""

    def compare(x: np.ndarray, truth: np.ndarray) -> Any:
        sides = x[:NEIGHBOUR_ROWS], truth[:NEIGHBOUR_ROWS]
        return getattr(metrics.precision_recall_density_coverage(*sides, NEIGHBOURS), name)

    return of_features(compare)


def weights_file(problem: Problem, part: str) -> str:
    """config.eval.weights, or in the folder of that name the one file with ``part`` in its name."""
    given = problem.setup.config.eval.weights
    if not given or not Path(given).is_dir():
        return given
    found = sorted(str(p) for p in Path(given).iterdir() if part in p.name.lower())
    if len(found) != 1:
        raise UserError(f"config.eval.weights: {given} holds {len(found)} files named like *{part}*; expected one")
    return found[0]


def fidelity(extractor: str, output: str) -> Maker:
    """FID, Inception score or FD-DINOv2 by torch-fidelity, against the truths of the same examples."""

    def make(problem: Problem) -> Measure:
        weights = weights_file(problem, extractor)
        name = metrics.EXTRACTORS[extractor]

        def measure(number: int, x: np.ndarray) -> Any:
            return metrics.fidelity(*_sides(problem, x, False), extractor=name, weights=weights)[output]

        return measure

    return make


def lpips(problem: Problem) -> Measure:
    """LPIPS with AlexNet."""
    return lambda number, x: metrics.lpips(*_sides(problem, x, False))


SETS: dict[str, tuple[Maker, bool]] = {
    "sinkhorn": (sinkhorn(False), True),
    "sinkhorn_unpaired": (sinkhorn(True), True),
    "sliced_wasserstein": (sliced(False), True),
    "sliced_wasserstein_unpaired": (sliced(True), True),
    "frechet": (of_features(metrics.frechet_distance), True),
    "frechet_unpaired": (of_features(metrics.frechet_distance, True), True),
    "kid": (of_features(metrics.kernel_distance), True),
    "kid_unpaired": (of_features(metrics.kernel_distance, True), True),
    **{f"features_{name}": (manifolds(name), True) for name in metrics.Manifolds._fields},
    "lpips": (lpips, True),
    "fid": (fidelity("inception", "frechet"), True),
    "inception_score": (fidelity("inception", "inception_score"), True),
    "fd_dinov2": (fidelity("dinov2", "frechet"), True),
}
"""Metric -> (maker of its function, whether it needs the truth)."""
