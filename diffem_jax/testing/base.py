"""What the checks share."""

from typing import Any

import jax
import numpy as np


def require(holds: Any, what: str) -> None:
    """Raises an AssertionError that says what does not hold."""
    if not holds:
        raise AssertionError(what)


def require_finite(what: str, *arrays: Any) -> None:
    """Requires finite float32 arrays."""
    for array in arrays:
        require(array.dtype == np.float32, f"{what} must be float32, is {array.dtype}")
        require(np.isfinite(array).all(), f"{what} must be finite")


def equal(a: Any, b: Any) -> bool:
    """Whether two trees of arrays are the same, bit for bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(p), np.asarray(q), equal_nan=True) for p, q in pairs)
