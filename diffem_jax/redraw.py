"""Draws that are not finite are drawn again, and counted: a sampler under guidance can overflow where the prior is steep."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ATTEMPTS = 4


def not_finite(x: np.ndarray) -> np.ndarray:
    """Positions of the examples [N, ...] that hold NaN or infinity."""
    return np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))


def redraw(
    x: np.ndarray,
    again: Callable[[int, np.ndarray, int], np.ndarray],
    most: Callable[[int], int] = int,
    attempts: int = ATTEMPTS,
) -> tuple[np.ndarray, int]:
    """Replaces draws that are not finite by new ones, each with a key of its own attempt.

    A draw's key is that of (attempt, example), so the outcome does not depend on which examples share a batch.

    Args:
        x: draws [N, ...].
        again: (attempt from 1, positions [B], size) -> draws [B, ...]; ``size`` is at least B and the same on all
            processes, which may have to compute together.
        most: the largest of a number over all processes.
        attempts: how often at most.

    Returns:
        the draws, and how many new ones were taken. After the last attempt some may still not be finite: look.
    """
    count = 0
    for attempt in range(1, attempts + 1):
        bad = not_finite(x)
        size = most(len(bad))
        if not size:
            break
        fresh = again(attempt, bad if len(bad) else np.zeros(1, np.int64), size)
        if len(bad):
            x = np.array(x)
            x[bad] = fresh
        count += len(bad)
    return x, count
