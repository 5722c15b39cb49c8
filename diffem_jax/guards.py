"""What stops a run: numbers that are not finite, a signal, a disk that is full."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from diffem_jax.types import EMState, UserError

PRIOR = "prior"
"""The label of the prior's training."""


class Preempted(Exception):
    """The process was asked to end; its rolling checkpoint is written."""


class NonFinite(Exception):
    """A loss, a gradient, a parameter or a draw of a round is NaN or infinite."""

    def __init__(self, message: str, number: int, draws: bool = False, prior: bool = False):
        super().__init__(message)
        self.number, self.draws, self.prior = number, draws, prior


def write_shard(stored: Any, shard: int, x: np.ndarray) -> None:
    """Writes a shard of reconstructions; what the file system refuses is a ``UserError``."""
    try:
        stored.write_shard(shard, x, jax.process_index())
    except OSError as error:
        raise UserError(
            f"{stored.folder}: shard {shard} could not be written ({error}); expected free space and write permission; "
            "what was finished is whole: make space and run the same command again"
        ) from error


def check_state(state: EMState, number: int, done: int, label: str, first_step: int) -> None:
    """Raises ``NonFinite`` for parameters that are NaN or infinite after ``done`` updates of the loop ``label``."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.ema_params))):
        where = f"update {done}, step {first_step + done} of the run"
        raise NonFinite(f"{label}: parameters are NaN or infinite after {where}", number, prior=label == PRIOR)
