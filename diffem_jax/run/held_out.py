"""How well a posterior predicts measurements that it was not shown: a score of conditional draws without clean data.

Some of what an observation saw is held back (``hold_out`` of masks and projections), two draws of the posterior given the
rest predict it, and every held measurement y is scored by the fair CRPS of its two predictions,

    (|y_1 - y| + |y_2 - y|) / 2 - |y_1 - y_2| / 2,    y_s ~ p(. | x_s),  x_s ~ q(x | what was left).

The mean is a strictly proper score: least where the predictive law is right, worse for draws that are too wide, too narrow
or off. The same measurements are held back with the same randomness in every round, so that rounds can be compared.

Start and network were trained on the whole observations, so the score is one of rounds of a run, not of runs: a start that
overfits scores too well (``digits:mask90`` with a mixture start of ten of rank ten: 0.39 where the Gaussian has 0.45, though
its CRPS against the truth is 0.53 to 0.44).

Source: Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.build.problem import Problem, rows
from diffem_jax.errors import UserError
from diffem_jax.parallel import Parallel, most, process_count, process_index, total
from diffem_jax.run.draws import Drawing, draw_rows
from diffem_jax.types import Corruption, Key, Observation, example_keys, stream_key

NAME = "held_out"
SHARE = 0.1
"""Of what was seen; so little that the rest is nearly as informative as the whole."""
EXAMPLES = 2048
"""At most so many observations are asked."""


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


def make(problem: Problem, parallel: Parallel) -> Callable[[Callable[..., Any], Any], dict[str, float]]:
    """(mapped E-step, parameters) -> the record's fields; all processes call it together.

    Args:
        problem: the observations, of a corruption with ``hold_out``.
        parallel: how the E-step was mapped.
    """
    config, corruption = problem.setup.config, problem.setup.corruption
    count = min(config.eval.num_examples or problem.num_examples, EXAMPLES, problem.num_examples)
    batch = config.e_step.batch_size
    key = stream_key(config.seed, NAME)

    def keys(attempt: int) -> Key:
        return jax.random.fold_in(key, 2 + attempt)

    @jax.jit
    def held(indices: Array, observed: Observation) -> tuple[Observation, Array]:
        keys = example_keys(jax.random.fold_in(key, 0), indices)
        return jax.vmap(lambda k, o: corruption.hold_out(k, o, SHARE))(keys, observed)

    @jax.jit
    def scores(indices: Array, observed: Observation, at: Array, draws: Array) -> Array:
        def one(k: Key, observation: Observation, at: Array, x: Array) -> Array:
            made = jax.vmap(corruption.observe, (0, 0, None))(jax.random.split(k), x, observation.operator)
            near = 0.5 * jnp.sum(jnp.abs(made - observation.y[None]), 0) - 0.5 * jnp.abs(made[0] - made[1])
            return jnp.stack([jnp.sum(jnp.where(at, near, 0.0)), jnp.sum(at, dtype=near.dtype)])

        return jax.vmap(one, (0, 0, 0, 1))(example_keys(jax.random.fold_in(key, 1), indices), observed, at, draws)

    def measure(step: Callable[..., Any], params: Any) -> dict[str, float]:
        # Each process asks its share of the observations; at least one, so that all compute together.
        own = np.arange(process_index(), max(count, process_count()), process_count(), dtype=np.int32) % count
        counted = np.arange(process_index(), process_index() + len(own) * process_count(), process_count()) < count
        observed = rows(problem.observations, own)
        left, at = jax.tree.map(np.asarray, held(own, observed))
        size = most(len(own))
        x = []
        for draw in range(2):

            def read(indices: np.ndarray, first: int = draw * count) -> Observation:
                return rows(left, (indices - first) // process_count() % len(own))

            drawing = Drawing(step, parallel, parallel.replicate(params), read, keys, batch // process_count())
            x.append(draw_rows(drawing, own + draw * count, size=size)[0])
        sums = np.asarray(scores(own, observed, at, np.stack(x)))[counted]
        score, number = sums.astype(np.float64).T
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
