"""Whether the values of y fit the noise that was stated and data in [-2, 2]."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.data.operators import seen_anywhere
from diffem_jax.errors import UserError
from diffem_jax.types import Observation

SMALLEST_RMS, LARGEST_RMS = 0.02, 4.0
"""Between these the root mean square of x is taken for that of data in [-2, 2]."""
EXAMPLES = 256
"""Examples that the size of y is estimated from."""


def check_units(observations: Observation, corruption: Any, where: str) -> None:
    """Compares the size of y with the noise and with data in [-2, 2].

    Args:
        observations: rows with a leading axis N, in the units of x.
        corruption: what made them; only linear ones are looked at.
        where: names the file in messages.

    Raises:
        UserError: y is smaller than its own noise, or x would be far outside of or far below [-2, 2]; with the factor that
            brings x to a root mean square of about 1.
    """
    if not corruption.is_linear:
        return
    seen = seen_anywhere(corruption, observations.operator)
    size = _rms(observations.y, seen)
    if size == 0:
        return
    per_x = 1.0
    if seen is None or observations.y.shape[1:] != tuple(corruption.shape):
        per_x = max(
            _gain(corruption, jax.tree.map(lambda a: jnp.asarray(np.asarray(a[0])), observations.operator)), 1e-30
        )
    noise = float(corruption.noise_std)
    most = math.hypot(LARGEST_RMS, max(noise, float(getattr(corruption, "noise_std_max", 0.0))) / per_x)
    if size >= 0.5 * noise and SMALLEST_RMS <= size / per_x <= most:
        return
    below = f", less than the noise, config.corruption.noise_std={noise:g}" if size < 0.5 * noise else ""
    table = "; a table scales itself where data.path is its .csv" if len(corruption.shape) == 1 else ""
    raise UserError(
        f"{where}: 'y' has values of size {size:.2g} (root mean square){below}; expected data in [-2, 2] and noise_std in the same "
        f"units; set config.data.scale={float(f'{per_x / size:.1g}'):g}, which multiplies y and is undone in draws, and give "
        f"noise_std after scaling{table}"
    )


def _rms(values: Any, seen: Any) -> float:
    """The root mean square of up to ``EXAMPLES`` rows, of seen entries alone; 0 where there are none."""
    index = np.unique(np.linspace(0, len(values) - 1, EXAMPLES).astype(np.int64))
    rows = np.asarray(values[index], np.float64)
    weight = np.ones_like(rows) if seen is None else np.broadcast_to(np.asarray(seen[index]) > 0, rows.shape)
    return float(np.sqrt(np.sum(np.where(weight > 0, rows, 0.0) ** 2) / max(float(weight.sum()), 1.0)))


def _gain(corruption: Any, operator: Any) -> float:
    """The root mean square of A x for x of root mean square 1: white noise or a constant, whichever is larger."""
    white = jax.random.normal(jax.random.key(0), corruption.shape)
    return max(float(jnp.sqrt(jnp.mean(corruption.forward(x, operator) ** 2))) for x in (white, jnp.ones_like(white)))
