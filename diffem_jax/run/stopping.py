"""What is known of a round without clean data: how well its posterior predicts measurements, and which round to keep.

Some of what an observation saw is held back (``Corruption.hold_out``), draws of the posterior given the rest predict it with
its noise, y_s ~ p(. | x_s), x_s ~ q(x | what was left), and every held-back measurement y is compared with its predictions: the
same ones with the same randomness in every round. Start and network were trained on the whole observations, so these numbers
compare rounds of a run, not runs: a start that overfits scores too well.

Source: Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", section 4.2; Lemos et al. 2023,
arXiv 2302.03026.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from diffem_jax import metrics
from diffem_jax.build.problem import Problem, rows
from diffem_jax.parallel import most, process_count, process_index, total
from diffem_jax.report.console import Progress
from diffem_jax.run.e_step import Drawing, draw_rows
from diffem_jax.run.termination import Check
from diffem_jax.storage.workdir import Record
from diffem_jax.types import Corruption, Key, Observation, PyTree, example_keys, stream_key

HELD_OUT = "held_out"
SHARE = 0.1  # of what was seen; so little that the rest is nearly as informative as the whole
SCORED, CALIBRATED = (2048, 2), (256, 16)  # observations at most, and draws of each, for ``score`` and ``calibration``
ENTRIES, FEWEST = 2**20, 32  # of all draws at most, and observations at least: of large images fewer tell as much


class Predictions(NamedTuple):
    """This process's observations [n, *Y], which of their entries were held back [n, *Y], and S predictions [S, n, *Y]."""

    y: np.ndarray
    held: np.ndarray
    predicted: np.ndarray


def predict(problem: Problem, drawing: Drawing, examples: int, draws: int, check: Check = lambda: None) -> Predictions:
    """Predictions for at most ``examples`` observations by ``draws`` draws of each; all processes call it together."""
    config, corruption = problem.setup.config, problem.setup.corruption
    count = min(config.eval.num_examples or problem.num_examples, examples, problem.num_examples)
    count = min(count, max(FEWEST, ENTRIES // (draws * math.prod(problem.setup.shape))))
    processes = process_count()
    # Each process asks its share of the observations; at least one, so that all compute together.
    own = np.arange(process_index(), max(count, processes), processes, dtype=np.int32) % count
    counted = process_index() + processes * np.arange(len(own)) < count
    keys = partial(jax.random.fold_in, stream_key(config.seed, HELD_OUT))
    observed = rows(problem.observations, own)
    left, held = jax.tree.map(np.asarray, _hold_out(corruption, keys(0), own, observed))
    wanted = np.concatenate([own + draw * count for draw in range(draws)])
    with Progress("held-out draws", len(wanted), "draws", quiet=process_index() != 0) as progress:
        given = lambda i: rows(left, i % count // processes % len(own)), lambda attempt: keys(2 + attempt), wanted
        x, _ = draw_rows(drawing, *given, size=most(len(wanted)), advance=progress.advance, check=check)
    x = x.reshape(draws, len(own), *x.shape[1:])
    predicted = np.asarray(_observe(corruption, keys(1), own, observed.operator, x))
    return Predictions(observed.y[counted], held[counted], predicted[:, counted])


@partial(jax.jit, static_argnums=0)
def _hold_out(corruption: Corruption, key: Key, indices: Array, observed: Observation) -> tuple[Observation, Array]:
    return jax.vmap(lambda k, o: corruption.hold_out(k, o, SHARE))(example_keys(key, indices), observed)


@partial(jax.jit, static_argnums=0)
def _observe(corruption: Corruption, key: Key, indices: Array, operators: PyTree, x: Array) -> Array:
    def one(k: Key, operator: PyTree, x: Array) -> Array:
        return jax.vmap(corruption.observe, (0, 0, None))(jax.random.split(k, len(x)), x, operator)

    return jax.vmap(one, (0, 0, 1), 1)(example_keys(key, indices), operators, x)


def score(predictions: Predictions) -> dict[str, float]:
    """The fair CRPS of two predictions, its standard error and the number of measurements.

        (|y_1 - y| + |y_2 - y|) / 2 - |y_1 - y_2| / 2

    Its mean is strictly proper: least where the predictive distribution is right.
    """
    y, held, predicted = predictions
    near = 0.5 * np.abs(predicted - y).sum(axis=0) - 0.5 * np.abs(predicted[0] - predicted[1])
    entries = tuple(range(1, held.ndim))
    near = np.where(held, near, 0.0).sum(axis=entries, dtype=np.float64)
    number = held.sum(axis=entries, dtype=np.float64)
    # Of a ratio of sums: its error is that of the residuals.
    whole, samples = total(np.array([near.sum(), number.sum()]))
    mean = whole / max(samples, 1.0)
    spread = total(np.array([np.sum((near - mean * number) ** 2)]))[0]
    error = float(np.sqrt(spread) / max(samples, 1.0))
    return {HELD_OUT: float(mean), f"{HELD_OUT}_se": error, f"{HELD_OUT}_samples": int(samples)}


def calibration(predictions: Predictions) -> dict[str, float]:
    """``held_out_coverage_<p>`` and, jointly, ``held_out_tarp_<p>``: each p / 100 for a calibrated posterior."""
    held = predictions.held
    y, predicted = (np.where(held, a, 0.0).astype(np.float32) for a in (predictions.y, predictions.predicted))
    # TARP's point is another observation's prediction, so that it does not look at y.
    points = np.where(held, np.roll(predicted[0], 1, axis=0), 0.0)
    within = [metrics.coverage_shares(predicted, y, level)[held] for level in metrics.LEVELS]
    joint = [metrics.tarp_shares(predicted, y, points, level) for level in metrics.LEVELS]
    sums = total(np.array([len(within[0]), len(y), *map(np.sum, (*within, *joint))], np.float64))
    record = {}
    for name, number, shares in zip(("coverage", "tarp"), sums[:2], np.split(sums[2:], 2), strict=True):
        for level, share in zip(metrics.LEVELS, shares, strict=True):
            record[f"{HELD_OUT}_{name}_{100 * level:.0f}"] = float(share / max(number, 1.0))
    return record


class Decision(NamedTuple):
    """The best round so far (None before the first), its value, and whether the run may end."""

    picked: int | None
    value: float
    end: bool


def decide(records: list[Record], rule: str, patience: int) -> Decision:
    """The round of least ``rule`` after the start, and whether ``patience`` rounds brought no better one."""
    rounds = [r for r in records if r.get("kind") == "round" and r["round"] > 0 and rule in r]
    # A measure that is not finite recommends nothing, and would win every comparison.
    values = {r["round"]: r[rule] for r in rounds if math.isfinite(r[rule])}
    if not values:
        return Decision(None, float("inf"), False)
    best = min(values, key=lambda number: (values[number], number))
    return Decision(best, values[best], max(r["round"] for r in rounds) - best >= patience)


def stop_record(records: list[Record], rule: str, patience: int) -> Record | None:
    """What metrics.jsonl keeps of the decision, as of the last round; None without a rule."""
    decision = decide(records, rule, patience)
    if decision.picked is None:
        return None
    reason = f"no better {rule} in {patience} rounds" if decision.end else "all rounds are done"
    last = max(r["round"] for r in records if r.get("kind") == "round")
    found = {"kind": "stop", "round": last, "picked": decision.picked, "rule": rule, rule: decision.value}
    return found | {"reason": f"{reason}; kept round {decision.picked}"}


def picked_round(records: list[Record]) -> int | None:
    """The round that the last stop record picked, if there is one."""
    stops = [r for r in records if r.get("kind") == "stop" and "picked" in r]
    return max(stops, key=lambda r: r["round"])["picked"] if stops else None
