"""What every measure returns, and the checks that they share."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from diffem_jax.errors import UserError


class Estimate(NamedTuple):
    """A number, its standard error (None where it has none), and how many samples stand behind it."""

    value: float
    standard_error: float | None
    samples: int


def mean_estimate(values: ArrayLike) -> Estimate:
    """The mean of independent values [N] with its standard error std / sqrt(N)."""
    values = np.asarray(values, np.float64)
    n = values.shape[0]
    error = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return Estimate(float(values.mean()), error, n)


def flat(x: ArrayLike, dtype: type = np.float32) -> np.ndarray:
    """[N, ...] -> [N, D]."""
    x = np.asarray(x, dtype)
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def same_shape(x: np.ndarray, truth: np.ndarray, what: str) -> None:
    """Raises a ``UserError`` unless both arrays have one shape."""
    if x.shape != truth.shape:
        raise UserError(f"{what}: {x.shape}; expected the truth's shape {truth.shape}; pass matching rows")


def point_sets(x: ArrayLike, y: ArrayLike, what: str, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """``flat`` of both; a ``UserError`` unless the two sets of points have one dimension and hold something."""
    x, y = flat(x, dtype), flat(y, dtype)
    if x.shape[1:] != y.shape[1:] or not len(x) or not len(y):
        raise UserError(f"{what}: {x.shape} against {y.shape}; expected two non-empty sets of points of one dimension")
    return x, y
