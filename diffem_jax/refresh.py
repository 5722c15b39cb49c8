"""Continuous EM: a round's E-step that redraws a part of the examples and keeps the other reconstructions as they are.

With P = ``e_step.parts`` each example is redrawn once in every P rounds after the ``e_step.burn_in``, by the newest
network. Rounds of a P-th of the updates then refresh the data as often as full rounds, in small pieces (stepwise EM), and the
network never meets a wholly new data set.
"""

from __future__ import annotations

import zlib

import numpy as np
from ml_collections import ConfigDict

from diffem_jax.data import ReconstructionStore


def redrawn(config: ConfigDict, number: int, count: int) -> np.ndarray:
    """Which of ``count`` draws the E-step of round ``number`` draws, bool [count]; the start (round 0) draws all.

    Of every P neighbours each is drawn in another round of a cycle of P; whose turn it is follows from (seed, cycle)
    alone. So every shard of a round has equally much to do.
    """
    parts, done = config.e_step.parts, number - 1 - config.e_step.burn_in
    if number == 0:
        return np.ones(count, bool)
    if done < 0:
        return np.zeros(count, bool)
    cycle, turn = divmod(done, parts)
    sequence = np.random.SeedSequence([zlib.crc32(b"refresh"), config.seed, cycle])
    rows = np.tile(np.arange(parts), (-(-count // parts), 1))
    return np.random.Generator(np.random.Philox(sequence)).permuted(rows, axis=1).reshape(-1)[:count] == turn


def merged(
    store: ReconstructionStore, number: int, indices: np.ndarray, drawn: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """The reconstructions of some examples in round ``number``: new where drawn, else those of the round before.

    Args:
        store: holds round ``number`` - 1 unless everything is drawn.
        number: the round.
        indices: the examples [n].
        drawn: bool [n], whether an example was drawn.
        x: the draws of those that were.

    Returns:
        [n, *X].
    """
    if drawn.all():
        return x
    before = store.round(number - 1).open()
    # Under an overridden e_step.draws the round before may hold fewer draws an observation.
    rows = np.array(before.rows(indices % len(before)))
    if drawn.any():
        rows[drawn] = x
    return rows
