"""What the updates of a round train on: reconstructions, and beside them the operators of their fresh corruptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffem_jax.build import draws_from_data
from diffem_jax.data import ReconstructionStore, index_stream
from diffem_jax.problem import Problem, rows

OPERATOR_STREAM = 2**30
"""Added to the round, so that examples and operators are drawn in orders of their own."""


def training_rows(problem: Problem, store: ReconstructionStore, number: int) -> tuple[int, Callable[[np.ndarray], Any]]:
    """How many rows round ``number`` trains on, and indices [n] -> n of them."""
    method = problem.setup.config.method
    if method == "ambient":
        return problem.num_examples, lambda indices: rows(problem.observations, indices)
    if method == "oracle":
        truth = problem.truth
        assert truth is not None  # or the config was refused
        return problem.num_examples, lambda indices: np.asarray(truth[indices], np.float32)
    reader = store.round(number - 1).open()
    return len(reader), reader.rows


def operator_rows(problem: Problem, number: int, done: int) -> Callable[[Any, slice], Any]:
    """(x [S, B, *X], slots of this process) -> what the loss takes.

    That is x, and for ``m_step.operators`` 'data' the operator of an observation beside each. Whose operator follows
    from (seed, round, update, slot), independently of whose x it is.

    Args:
        problem: what the run works on.
        number: the round.
        done: the updates of the round that are done already.
    """
    config = problem.setup.config
    if not draws_from_data(problem.setup):
        return lambda x, mine: x
    size = config.m_step.batch_size
    others = index_stream(config.seed, OPERATOR_STREAM + number, problem.num_examples, size, done)

    def add(x: Any, mine: slice) -> Any:
        chosen = np.stack([next(others)[mine] for _ in range(len(x))])
        picked = rows(problem.observations.operator, chosen.reshape(-1))
        return x, jax.tree.map(lambda a: a.reshape(*chosen.shape, *a.shape[1:]), picked)

    return add
