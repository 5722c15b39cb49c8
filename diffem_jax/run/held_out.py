"""How well a posterior predicts measurements that it was not shown: a score and a calibration without clean data.

Some of what an observation saw is held back (``Corruption.hold_out``), draws of the posterior given the rest predict it with
its noise, y_s ~ p(. | x_s), x_s ~ q(x | what was left), and every held-back measurement y is compared with its predictions.

* ``make_score``: the fair CRPS of two predictions, (|y_1 - y| + |y_2 - y|) / 2 - |y_1 - y_2| / 2. Its mean is strictly proper:
  least where the predictive distribution is right, worse for draws that are too wide, too narrow or off.
* ``make_calibration``: how often central intervals hold y (``metrics.coverage``), and jointly over an observation's held-back
  measurements the expected coverage of TARP (``metrics.tarp``).

The same measurements are held back with the same randomness in every round, so that rounds can be compared. Start and
network were trained on the whole observations, so these are numbers of rounds of a run, not of runs: a start that overfits
scores too well.

Source: Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", section 4.2; Lemos et al. 2023,
arXiv 2302.03026.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from diffem_jax import metrics
from diffem_jax.build.problem import Problem, rows
from diffem_jax.errors import UserError
from diffem_jax.parallel import Parallel, most, process_count, process_index, total
from diffem_jax.run.draws import Drawing, draw_rows
from diffem_jax.types import Corruption, Key, Observation, PyTree, example_keys, stream_key

NAME = "held_out"
SHARE = 0.1
"""Of what was seen; so little that the rest is nearly as informative as the whole."""
EXAMPLES = 2048
"""At most so many observations are scored."""
CALIBRATION_EXAMPLES, CALIBRATION_DRAWS = 256, 16

Measure = Callable[[Callable[..., Any], Any], dict[str, float]]
"""(mapped E-step, parameters) -> fields of a record; all processes call it together."""


class Predictions(NamedTuple):
    """Held-back measurements and what the draws say of them, this process's share.

    Attributes:
        y: the observations, [n, *Y].
        held: which of their entries were held back, bool [n, *Y].
        predicted: S predictions of each, [S, n, *Y].
    """

    y: np.ndarray
    held: np.ndarray
    predicted: np.ndarray


def possible(corruption: Corruption) -> bool:
    """Whether the corruption can hold measurements back."""
    return corruption.can_hold_out


def check(problem: Problem) -> None:
    """Refuses a corruption that cannot hold measurements back.

    Raises:
        UserError: with the other rule.
    """
    if not possible(problem.setup.corruption):
        raise UserError(
            f"config.stop.rule: {NAME!r}; expected a corruption whose measurements can be held back one by one (random masks "
            f"and projections), not {problem.setup.config.corruption.name!r}; use 'observation_score'"
        )


def make_predictor(
    problem: Problem, parallel: Parallel, examples: int, draws: int
) -> Callable[[Callable[..., Any], Any], Predictions]:
    """(mapped E-step, parameters) -> ``Predictions`` of at most ``examples`` observations by ``draws`` draws each."""
    config, corruption = problem.setup.config, problem.setup.corruption
    count = min(config.eval.num_examples or problem.num_examples, examples, problem.num_examples)
    key = stream_key(config.seed, NAME)

    def keys(attempt: int) -> Key:
        return jax.random.fold_in(key, 2 + attempt)

    @jax.jit
    def hold_out(indices: Array, observed: Observation) -> tuple[Observation, Array]:
        keys = example_keys(jax.random.fold_in(key, 0), indices)
        return jax.vmap(lambda k, o: corruption.hold_out(k, o, SHARE))(keys, observed)

    @jax.jit
    def observe(indices: Array, observed: Observation, x: Array) -> Array:
        def one(k: Key, operator: PyTree, x: Array) -> Array:
            return jax.vmap(corruption.observe, (0, 0, None))(jax.random.split(k, draws), x, operator)

        return jax.vmap(one, (0, 0, 1), 1)(example_keys(jax.random.fold_in(key, 1), indices), observed.operator, x)

    def predict(step: Callable[..., Any], params: Any) -> Predictions:
        # Each process asks its share of the observations; at least one, so that all compute together.
        processes = process_count()
        own = np.arange(process_index(), max(count, processes), processes, dtype=np.int32) % count
        counted = process_index() + processes * np.arange(len(own)) < count
        observed = rows(problem.observations, own)
        left, held = jax.tree.map(np.asarray, hold_out(own, observed))

        def read(indices: np.ndarray) -> Observation:
            return rows(left, indices % count // processes % len(own))

        drawing = Drawing(step, parallel, parallel.replicate(params), read, keys, config.e_step.batch_size // processes)
        wanted = np.concatenate([own + draw * count for draw in range(draws)])
        x, _ = draw_rows(drawing, wanted, size=most(len(wanted)))
        x = x.reshape(draws, len(own), *x.shape[1:])
        predicted = np.asarray(observe(own, observed, x))
        return Predictions(observed.y[counted], held[counted], predicted[:, counted])

    return predict


def make_score(problem: Problem, parallel: Parallel) -> Measure:
    """The held-out CRPS, its standard error and the number of measurements.

    Args:
        problem: the observations, of a corruption that can hold measurements back.
        parallel: how the E-step is mapped.
    """
    predict = make_predictor(problem, parallel, EXAMPLES, 2)

    def measure(step: Callable[..., Any], params: Any) -> dict[str, float]:
        y, held, predicted = predict(step, params)
        near = 0.5 * np.abs(predicted - y).sum(axis=0) - 0.5 * np.abs(predicted[0] - predicted[1])
        entries = tuple(range(1, held.ndim))
        score = np.where(held, near, 0.0).sum(axis=entries, dtype=np.float64)
        number = held.sum(axis=entries, dtype=np.float64)
        # Of a ratio of sums: its error is that of the residuals.
        whole, held_back = total(np.array([score.sum(), number.sum()]))
        mean = whole / max(held_back, 1.0)
        spread = total(np.array([np.sum((score - mean * number) ** 2)]))[0]
        return {
            NAME: float(mean),
            f"{NAME}_se": float(np.sqrt(spread) / max(held_back, 1.0)),
            f"{NAME}_samples": int(held_back),
        }

    return measure


def make_calibration(problem: Problem, parallel: Parallel) -> Measure:
    """``held_out_coverage_<p>`` and ``held_out_tarp_<p>``, each p / 100 for a calibrated posterior.

    Args:
        problem: the observations, of a corruption that can hold measurements back.
        parallel: how the E-step is mapped.
    """
    predict = make_predictor(problem, parallel, CALIBRATION_EXAMPLES, CALIBRATION_DRAWS)

    def measure(step: Callable[..., Any], params: Any) -> dict[str, float]:
        y, held, predicted = predict(step, params)
        y, predicted = (np.where(held, a, 0.0).astype(np.float32) for a in (y, predicted))
        # TARP's point is another observation's prediction, so that it does not look at y.
        points = np.roll(predicted[0], 1, axis=0)
        within = [metrics.coverage_shares(predicted, y, level)[held] for level in metrics.LEVELS]
        joint = [metrics.tarp_shares(predicted, y, np.where(held, points, 0.0), level) for level in metrics.LEVELS]
        sums = total(np.array([len(within[0]), len(y), *map(np.sum, (*within, *joint))], np.float64))
        shares = np.split(sums[2:], 2)
        record = {}
        for name, share, number in zip(("coverage", "tarp"), shares, sums[:2], strict=True):
            for level, value in zip(metrics.LEVELS, share, strict=True):
                record[f"{NAME}_{name}_{100 * level:.0f}"] = float(value / max(number, 1.0))
        return record

    return measure


def calibration_lines(record: dict[str, float]) -> list[str]:
    """One plain line on the 90% intervals, and what to do where they are off by more than five points."""
    share = record[f"{NAME}_coverage_90"]
    lines = [f"calibration: 90% intervals hold {100 * share:.0f}% of held-back measurements"]
    if abs(share - 0.9) > 0.05:
        cure = (
            "draws are too narrow: train longer (m_step.steps, rounds), take more draws per observation (e_step.draws), or check "
            "that corruption.noise_std is not too small"
            if share < 0.9
            else "draws are too wide: train longer (m_step.steps, rounds), or check that corruption.noise_std is not too large"
        )
        lines.append(f"warning: that is {100 * abs(share - 0.9):.0f} points off; {cure}")
    return lines
