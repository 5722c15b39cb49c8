"""What the checks share."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffem_jax.gaussians.linalg import Gaussian


def require(holds: Any, what: str) -> None:
    """Raises an AssertionError that says what does not hold."""
    if not holds:
        raise AssertionError(what)


def finite(what: str, *arrays: Any) -> None:
    """Requires finite float32 arrays."""
    for array in arrays:
        require(array.dtype == np.float32, f"{what} must be float32, is {array.dtype}")
        require(np.isfinite(array).all(), f"{what} must be finite")


def law(size: int = 4) -> Gaussian:
    """A Gaussian with a mean, unequal variances and correlated entries."""
    mean = jnp.linspace(-1.0, 1.0, size)
    variance = jnp.linspace(0.1, 0.6, size)
    return Gaussian(mean, variance, 0.7 * jnp.cos(jnp.arange(size, dtype=jnp.float32))[None])
