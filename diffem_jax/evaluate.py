"""Numbers and pictures of a round: draws against the hidden truth, where there is one, and against the observations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffem_jax import held_out, metrics, plots
from diffem_jax.config import nearest
from diffem_jax.parallel import Parallel
from diffem_jax.problem import Problem, rows
from diffem_jax.set_measures import SETS
from diffem_jax.several import several_draws
from diffem_jax.types import Observation, UserError, example_keys, stream_key


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
        return metrics.observation_distance(seen, made, key)

    return measure


def _observation_score(problem: Problem) -> Callable[[int, np.ndarray], Any]:
    """One key for all rounds: their scores share their randomness, so that differences are sharper than values."""
    corruption, seed = problem.setup.corruption, problem.setup.config.seed

    def measure(number: int, x: np.ndarray) -> Any:
        key = stream_key(seed, "observation_score")
        observed = rows(problem.observations, np.arange(len(x)))
        return metrics.observation_score(corruption.observe, observed, x, key)

    return measure


METRICS: dict[str, tuple[Callable[[Problem], Callable[[int, np.ndarray], Any]], bool]] = {
    "psnr": (_psnr, True),
    "ssim": (_ssim, True),
    "accuracy": (_accuracy, True),
    **SETS,
    "observation_distance": (_observation_distance, False),
    "observation_score": (_observation_score, False),
}
"""Metric -> (maker of its function, whether it needs the truth)."""


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
        if name not in METRICS:
            raise UserError(f"config.eval.metrics: {name!r} is not known; {nearest(name, METRICS)}")
        maker, needs_truth = METRICS[name]
        if needs_truth and problem.truth is None:
            raise UserError(
                f"config.eval.metrics: {name!r} needs clean data, and own observations have none; remove it"
            )
        chosen[name] = maker(problem)
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


def shown_observations(problem: Problem, observed: Observation) -> Any:
    """Observations as a picture shows them: y itself, or where it has another shape than x what the network sees."""
    if observed.y.shape[1:] == problem.setup.shape:
        return observed.y
    condition = np.asarray(jax.vmap(problem.setup.corruption.condition)(observed))
    return condition[..., : problem.setup.shape[-1]]


def picture(problem: Problem, draws: Callable[[np.ndarray], np.ndarray], path: Path, title: str) -> None:
    """The PNG of a round: observations, reconstructions and truth; a corner plot for short vectors."""
    vectors = len(problem.setup.shape) == 1
    count = min(problem.num_examples, 4096 if vectors else 10)
    indices = np.arange(count)
    shown = shown_observations(problem, rows(problem.observations, indices))
    truth = None if problem.truth is None else np.asarray(problem.truth[:count])
    plots.picture(path, shown, draws(indices), truth, title=title)


def spread_picture(
    problem: Problem, step: Callable[..., Any], parallel: Parallel, params: Any, path: Path, title: str
) -> None:
    """The PNG of several draws an observation: one E-step batch in all, so that it costs next to nothing.

    Images: draws, mean, spread and truth of six observations; short vectors: a corner plot of the draws for one.
    """
    batch = problem.setup.config.e_step.batch_size
    vectors = len(problem.setup.shape) == 1
    count = 1 if vectors else min(6, problem.num_examples, max(1, batch // 2))
    observed = rows(problem.observations, np.arange(count))
    samples = min(4096 if vectors else 16, max(2, batch // count))
    options: dict[str, Any] = {"seed": problem.setup.config.seed, "stream": "spread", "batch": batch}
    x = several_draws(step, parallel, params, observed, samples, **options, quiet=True, pad=True)
    truth = None if problem.truth is None else np.asarray(problem.truth[:count])
    if vectors:
        plots.picture(path, shown_observations(problem, observed), x[:, 0], truth, title=f"{title}: p(x | y) of one y")
    else:
        plots.spread_grid(path, shown_observations(problem, observed), x, truth, title=title)
