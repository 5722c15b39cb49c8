"""Numbers of a round: its draws against the truths of the same examples ('..._unpaired': of others), and against y."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax import metrics
from diffem_jax.build.problem import Problem, rows
from diffem_jax.config import lookup
from diffem_jax.errors import UserError
from diffem_jax.run.stopping import HELD_OUT
from diffem_jax.types import example_keys, stream_key

Measure = Callable[[int, np.ndarray], metrics.Estimate]  # (round, draws [N, *X] of the first N observations) -> value
Maker = Callable[[Problem], Measure]
NEIGHBOURS, NEIGHBOUR_ROWS, SINKHORN_ROWS, FEWEST_EXAMPLES = 5, 2048, 2048, 16


def against_truth(compare: Callable[..., metrics.Estimate], unpaired: bool = False) -> Maker:
    """A measure of draws and truths."""
    return lambda problem: lambda number, x: compare(*_sides(problem, x, unpaired))


def of_features(compare: Callable[..., metrics.Estimate], unpaired: bool = False) -> Maker:
    """A measure of the features of draws and truths."""

    def make(problem: Problem) -> Measure:
        extract = _features(problem)
        return lambda number, x: compare(*map(extract, _sides(problem, x, unpaired)))

    return make


def _sides(problem: Problem, x: np.ndarray, unpaired: bool) -> tuple[np.ndarray, np.ndarray]:
    truth, half = np.asarray(problem.truth[: len(x)], np.float32), len(x) // 2
    return (x[:half], truth[half : 2 * half]) if unpaired else (x, truth)


def _features(problem: Problem) -> Callable[[np.ndarray], np.ndarray]:
    """The function that config.eval.features names, or x itself as a vector."""
    if not (name := problem.setup.config.eval.features):
        return lambda x: x.reshape(len(x), -1)
    function = lookup("eval.features", name, {})

    def checked(x: np.ndarray) -> np.ndarray:
        found = np.asarray(function(x))
        if found.ndim != 2 or len(found) != len(x):
            raise UserError(f"config.eval.features: {name!r} returned {found.shape} for {x.shape}; expected [N, D]")
        return found

    return checked


def sliced(x: np.ndarray, truth: np.ndarray) -> metrics.Estimate:
    """Sliced Wasserstein distance; all rounds share their directions."""
    return metrics.sliced_wasserstein(x, truth, stream_key(0, "sliced_wasserstein"))


def sinkhorn(unpaired: bool) -> Maker:
    """Sinkhorn divergence of 2,048 rows; if unpaired, against the truths of other examples."""

    def make(problem: Problem) -> Measure:
        truth = np.asarray(problem.truth[: len(problem.truth)])
        floor = metrics.sinkhorn_floor(truth)
        against = np.roll(truth, -SINKHORN_ROWS, axis=0) if unpaired else truth
        return lambda number, x: metrics.sinkhorn_divergence(x, against, floor=floor)

    return make


def manifolds(name: str) -> Maker:
    """One of precision, recall, density, coverage of the features, with 5 neighbours, of 2,048 rows at most."""

    def compare(x: np.ndarray, truth: np.ndarray) -> metrics.Estimate:
        sides = x[:NEIGHBOUR_ROWS], truth[:NEIGHBOUR_ROWS]
        return getattr(metrics.precision_recall_density_coverage(*sides, NEIGHBOURS), name)

    return of_features(compare)


def fidelity(extractor: str, output: str) -> Maker:
    """FID, Inception score or FD-DINOv2 by torch-fidelity, against the truths of the same examples."""

    def make(problem: Problem) -> Measure:
        name, weights = metrics.EXTRACTORS[extractor], _weights_file(problem, extractor)
        return lambda number, x: metrics.fidelity(*_sides(problem, x, False), extractor=name, weights=weights)[output]

    return make


def _weights_file(problem: Problem, part: str) -> str:
    """config.eval.weights, or in the folder of that name the one file with ``part`` in its name."""
    given = problem.setup.config.eval.weights
    if not given or not Path(given).is_dir():
        return given
    found = sorted(str(p) for p in Path(given).iterdir() if part in p.name.lower())
    if len(found) != 1:
        raise UserError(f"config.eval.weights: {given} holds {len(found)} files named like *{part}*; expected one")
    return found[0]


def accuracy(problem: Problem) -> Measure:
    """The share of draws that a classifier of the truths labels as their truths are labelled."""
    classifier = metrics.train_classifier(np.asarray(problem.truth), problem.labels)
    return lambda number, x: metrics.accuracy(classifier, x, problem.labels[: len(x)])


def observation_distance(problem: Problem) -> Measure:
    """Distance between the observations and fresh corruptions of the draws under the observations' own operators."""
    observe = jax.jit(jax.vmap(problem.setup.corruption.observe))

    def measure(number: int, x: np.ndarray) -> metrics.Estimate:
        indices = np.arange(len(x), dtype=np.int32)
        observed = rows(problem.observations, indices)
        key = stream_key(problem.setup.config.seed, "observation_distance", number)
        # Row i of the draws saw y_i: pairing it with another example's operator makes the two sets comparable.
        fresh = np.asarray(observe(example_keys(key, jnp.asarray(indices)), np.roll(x, 1, axis=0), observed.operator))
        seen, made = (metrics.observation_features(y, observed.operator) for y in (observed.y, fresh))
        return metrics.sliced_wasserstein(seen, made, key)

    return measure


def observation_score(problem: Problem) -> Measure:
    """The energy score of the draws; all rounds share their randomness, so that differences are sharper than values."""

    def measure(number: int, x: np.ndarray) -> metrics.Estimate:
        observed = rows(problem.observations, np.arange(len(x)))
        key = stream_key(problem.setup.config.seed, "observation_score")
        return metrics.mean_estimate(metrics.observation_scores(problem.setup.corruption.observe, observed, x, key))

    return measure


OF_TRUTH: dict[str, Maker] = {
    "psnr": against_truth(metrics.psnr), "ssim": against_truth(metrics.ssim), "accuracy": accuracy,
    "sinkhorn": sinkhorn(False), "sinkhorn_unpaired": sinkhorn(True),
    "sliced_wasserstein": against_truth(sliced), "sliced_wasserstein_unpaired": against_truth(sliced, unpaired=True),
    "frechet": of_features(metrics.frechet_distance),
    "frechet_unpaired": of_features(metrics.frechet_distance, unpaired=True),
    "kid": of_features(metrics.kernel_distance), "kid_unpaired": of_features(metrics.kernel_distance, unpaired=True),
    **{f"features_{name}": manifolds(name) for name in metrics.Manifolds._fields},
    "lpips": against_truth(metrics.lpips), "fid": fidelity("inception", "frechet"),
    "inception_score": fidelity("inception", "inception_score"), "fd_dinov2": fidelity("dinov2", "frechet"),
}  # fmt: skip
"""Measures that need the truth -> makers of their functions."""
METRICS: dict[str, Maker] = OF_TRUTH | {f.__name__: f for f in (observation_distance, observation_score)}
"""What config.eval.metrics may name -> maker; it also takes 'module:name' of a maker."""


def make_measures(problem: Problem, optional: Iterable[str] = ()) -> Callable[[int, Any], dict[str, float]]:
    """(round, rows of the store) -> record fields, for the config's metrics and the measure that its stopping rule reads.

    UserError for an unknown metric, or one that the data cannot give; those of ``optional`` are then left out.
    """
    config = problem.setup.config
    rule, asked = config.stop.rule, list(config.eval.metrics)
    if rule == HELD_OUT and not problem.setup.corruption.can_hold_out:
        expected = "a corruption whose measurements can be held back one by one (random masks and projections)"
        found = f"not {config.corruption.name!r}"
        raise UserError(f"config.stop.rule: {HELD_OUT!r}; expected {expected}, {found}; use 'observation_score'")
    asked += [] if rule in ("none", HELD_OUT) else [rule]
    chosen = {}
    for name in dict.fromkeys([*asked, *optional]):
        try:
            chosen[name.rpartition(":")[2]] = _make_measure(problem, name)
        except UserError:
            if name in asked:
                raise

    def measure(number: int, draws: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
        if not chosen:
            return {}
        x = draws(np.arange(_count(problem)))
        return fields_of({name: function(number, x) for name, function in chosen.items()})

    return measure


def _count(problem: Problem) -> int:
    """How many examples are measured."""
    return min(problem.setup.config.eval.num_examples or problem.num_examples, problem.num_examples)


def _make_measure(problem: Problem, name: str) -> Measure:
    make, reason = lookup("eval.metrics", name, METRICS), ""
    if name in OF_TRUTH and problem.truth is None:
        reason = "needs clean data, and own observations have none"
    elif name == "accuracy" and problem.labels is None:
        reason = f"needs labels, which {problem.setup.config.data.name!r} lacks"
    elif name.startswith("sinkhorn") and problem.num_examples < 2 * SINKHORN_ROWS:
        reason = f"compares 2,048 rows and needs 4,096 examples, not {problem.num_examples}"
    elif name.startswith(("features_", "kid", "frechet")) and _count(problem) < FEWEST_EXAMPLES:
        reason = f"needs {FEWEST_EXAMPLES} examples, not {_count(problem)}"
    if reason:
        raise UserError(f"config.eval.metrics: {name!r} {reason}; remove it")
    return make(problem)


def fields_of(estimates: dict[str, metrics.Estimate]) -> dict[str, float]:
    """Value, standard error where it is known, and samples of each estimate, as metrics.jsonl has them."""
    record: dict[str, float] = {}
    for name, estimate in estimates.items():
        record[name] = float(estimate.value)
        if estimate.standard_error is not None and np.isfinite(estimate.standard_error):
            record[f"{name}_se"] = float(estimate.standard_error)
        record[f"{name}_samples"] = int(estimate.samples)
    return record
