"""Numbers and pictures of a round: draws against the hidden truth, where there is one, and against the observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffem_jax import metrics
from diffem_jax.build.problem import Problem, rows
from diffem_jax.config import lookup
from diffem_jax.errors import UserError
from diffem_jax.run import held_out
from diffem_jax.run.set_measures import SETS
from diffem_jax.types import example_keys, stream_key


def _rows_used(problem: Problem) -> np.ndarray:
    limit = problem.setup.config.eval.num_examples or problem.num_examples
    return np.arange(min(limit, problem.num_examples))


def _psnr(problem: Problem) -> Callable[[int, np.ndarray], Any]:
    return lambda number, x: metrics.psnr(x, np.asarray(problem.truth[: len(x)]))


def _ssim(problem: Problem) -> Callable[[int, np.ndarray], Any]:
    return lambda number, x: metrics.ssim(x, np.asarray(problem.truth[: len(x)]))


def _accuracy(problem: Problem) -> Callable[[int, np.ndarray], Any]:
    if problem.labels is None:
        raise UserError(
            f"config.eval.metrics: 'accuracy' needs labels, which {problem.setup.config.data.name!r} lacks; remove it"
        )
    classifier = metrics.train_classifier(np.asarray(problem.truth), problem.labels)
    return lambda number, x: metrics.accuracy(classifier, x, problem.labels[: len(x)])


def _observation_distance(problem: Problem) -> Callable[[int, np.ndarray], Any]:
    """Distance between the observations and fresh corruptions of the draws under the observations' own operators."""
    setup, seed = problem.setup, problem.setup.config.seed
    corruption = setup.corruption

    def again(key: jax.Array, x: jax.Array, operators: Any, indices: jax.Array) -> jax.Array:
        return jax.vmap(corruption.observe)(example_keys(key, indices), x, operators)  # type: ignore[attr-defined]

    compiled = jax.jit(again)

    def measure(number: int, x: np.ndarray) -> Any:
        indices = np.arange(len(x))
        observed = rows(problem.observations, indices)
        # Row i of the draws saw y_i: pairing it with another example's operator makes the two sets comparable.
        order = np.roll(indices, 1)
        key = stream_key(seed, "observation_distance", number)
        fresh = np.asarray(compiled(key, x[order], observed.operator, indices.astype(np.int32)))
        seen = metrics.observation_features(observed.y, observed.operator)
        made = metrics.observation_features(fresh, observed.operator)
        return metrics.sliced_wasserstein(seen, made, key)

    return measure


def _observation_score(problem: Problem) -> Callable[[int, np.ndarray], Any]:
    """One key for all rounds: their scores share their randomness, so that differences are sharper than values."""
    corruption, seed = problem.setup.corruption, problem.setup.config.seed

    def measure(number: int, x: np.ndarray) -> Any:
        key = stream_key(seed, "observation_score")
        observed = rows(problem.observations, np.arange(len(x)))
        return metrics.mean_estimate(metrics.observation_scores(corruption.observe, observed, x, key))

    return measure


METRICS: dict[str, tuple[Callable[[Problem], Callable[[int, np.ndarray], Any]], bool]] = {
    "psnr": (_psnr, True),
    "ssim": (_ssim, True),
    "accuracy": (_accuracy, True),
    **SETS,
    "observation_distance": (_observation_distance, False),
    "observation_score": (_observation_score, False),
}
"""Metric -> (maker of its function, whether it needs the truth); a config also takes 'module:name' of a maker."""


def make_measures(problem: Problem) -> Callable[[int, Any], dict[str, float]]:
    """(round, draws) -> record fields, for the config's metrics; those that need a truth are refused where there is none.

    Raises:
        UserError: an unknown metric, or one that the data cannot give.
    """
    chosen = {}
    rule = problem.setup.config.stop.rule
    if rule == held_out.NAME:
        held_out.check(problem)
    names = [*problem.setup.config.eval.metrics, *([] if rule in ("none", held_out.NAME) else [rule])]
    for name in dict.fromkeys(names):
        entry = lookup("eval.metrics", name, METRICS)
        maker, needs_truth = entry if isinstance(entry, tuple) else (entry, False)
        if needs_truth and problem.truth is None:
            raise UserError(
                f"config.eval.metrics: {name!r} needs clean data, and own observations have none; remove it"
            )
        chosen[name.rpartition(":")[2]] = maker(problem)
    used = _rows_used(problem)

    def measure(number: int, draws: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
        if not chosen:
            return {}
        x = draws(used)
        record: dict[str, float] = {}
        for name, function in chosen.items():
            estimate = function(number, x)
            record[name] = float(estimate.value)
            if estimate.standard_error is not None and np.isfinite(estimate.standard_error):
                record[f"{name}_se"] = float(estimate.standard_error)
            record[f"{name}_samples"] = int(estimate.samples)
        return record

    return measure
