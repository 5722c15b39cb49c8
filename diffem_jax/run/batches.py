"""What the updates of a round train on: reconstructions, and where asked the operators of their fresh corruptions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import numpy as np

from diffem_jax.build.methods import Model
from diffem_jax.build.problem import Problem, rows
from diffem_jax.storage.reconstructions import ReconstructionStore, index_stream
from diffem_jax.types import PyTree

OPERATOR_STREAM = 2**30
"""Added to the round, so that examples and operators are drawn in orders of their own."""

Batches = Callable[[int, int, slice], Iterator[PyTree]]


def round_batches(problem: Problem, model: Model, store: ReconstructionStore, number: int) -> Batches:
    """The batches of round ``number``: reconstructions of the round before, or what the method trains on instead.

    With m_step.operators 'data' each comes as (x, operator), the operator of an observation that follows from
    (seed, round, update, slot), independently of whose x it is.
    """
    config = problem.setup.config
    count, read = training_rows(problem, model, store, number)
    batches = row_batches(config.seed, number, count, config.m_step.batch_size, read)
    if not model.takes_operators:
        return batches

    def read_operators(indices: np.ndarray) -> PyTree:
        return rows(problem.observations.operator, indices)

    operators = row_batches(
        config.seed, OPERATOR_STREAM + number, problem.num_examples, config.m_step.batch_size, read_operators
    )
    return lambda *where: zip(batches(*where), operators(*where), strict=True)


def training_rows(
    problem: Problem, model: Model, store: ReconstructionStore, number: int
) -> tuple[int, Callable[[np.ndarray], PyTree]]:
    """How many rows round ``number`` trains on, and indices [n] -> n of them."""
    if model.trains_on == "observations":
        return problem.num_examples, lambda indices: rows(problem.observations, indices)
    if model.trains_on == "truth":
        truth = problem.truth
        assert truth is not None  # or the config was refused
        return problem.num_examples, lambda indices: np.asarray(truth[indices], np.float32)
    reader = store.round(number - 1).open()
    return len(reader), reader.rows


def row_batches(seed: int, stream: int, count: int, batch_size: int, read: Callable[[np.ndarray], PyTree]) -> Batches:
    """Batches of ``count`` rows in the order of a stream.

    Args:
        seed: the run's.
        stream: of the order.
        count: rows in all.
        batch_size: rows in one update, over all processes.
        read: indices [n] -> rows, a tree of arrays [n, ...].

    Returns:
        (first update, updates S in one call, this process's part of a batch) -> trees of arrays [S, B, ...], without end.
    """

    def batches(first: int, updates: int, own: slice) -> Iterator[PyTree]:
        order = index_stream(seed, stream, count, batch_size, first)
        while True:
            chosen = np.stack([next(order)[own] for _ in range(updates)])
            drawn = read(chosen.reshape(-1))
            yield jax.tree.map(lambda a, at=chosen: a.reshape(*at.shape, *a.shape[1:]), drawn)

    return batches
