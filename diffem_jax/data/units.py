"""The units of y: grey levels of 8 and 16 bits, ``data.scale``, and whether the values fit the noise that was stated."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.data import operators
from diffem_jax.errors import UserError
from diffem_jax.storage.rows import IN_MEMORY_BYTES, ArrayLike, Rows, as_rows, chunks, release
from diffem_jax.types import Observation

BITS = (8, 10, 12, 14, 16)
"""Depths of grey levels that files of 16 bits hold."""
LARGEST_RMS = 4.0
"""The largest root mean square of x that is taken for data in [-2, 2]."""
SMALLEST_RMS = 0.02
EXAMPLES = 256
"""Examples that the size of y is estimated from."""


def top_level(grey: np.ndarray) -> int:
    """White: 255 of uint8; of uint16 the full range of the least depth that holds every value, for instance 4095 for 12 bits."""
    if grey.dtype == np.uint8:
        return 255
    largest = 0
    for part in chunks(len(grey), grey[:1].nbytes):
        brightest: int = np.asarray(grey[part]).max().item()
        largest = max(largest, brightest)
        release(grey)
    return next(2**bits - 1 for bits in BITS if largest < 2**bits)


def in_units(y: np.ndarray, scale: float = 1.0) -> tuple[Rows, str]:
    """Rows of y in the units of x, and a sentence on the range of 16-bit levels or ''.

    Grey levels 0..top become [-2, 2]; where ``scale`` is not 1, every value is multiplied by it instead.

    Args:
        y: [N, ...] real numbers.
        scale: ``data.scale``.
    """
    if scale != 1 or y.dtype not in (np.uint8, np.uint16):
        return Rows(y, scale), ""
    top = top_level(y)
    note = f"16-bit grey levels: 0..{top} read as [-2, 2]" if y.dtype == np.uint16 else ""
    return Rows(y, 4.0 / top, -2.0), note


def grey_rows(stored: np.ndarray) -> ArrayLike:
    """Rows of x from what an image set stores: a plain array where that is small, lazy ``Rows`` where it is large."""
    return as_rows(stored) if stored.dtype != np.uint16 else kept(in_units(stored)[0])


def kept(rows: Rows) -> ArrayLike:
    """The rows in memory where they take at most ``IN_MEMORY_BYTES``, else as they are."""
    return np.asarray(rows) if rows.nbytes <= IN_MEMORY_BYTES else rows


def rms(values: Any, seen: Any = None) -> float:
    """The root mean square of up to ``EXAMPLES`` rows, of seen entries alone; 0 where there are none."""
    index = np.unique(np.linspace(0, len(values) - 1, EXAMPLES).astype(np.int64))
    rows = np.asarray(values[index], np.float64)
    weight = np.ones_like(rows) if seen is None else np.broadcast_to(np.asarray(seen[index]) > 0, rows.shape)
    return float(np.sqrt(np.sum(np.where(weight > 0, rows, 0.0) ** 2) / max(float(weight.sum()), 1.0)))


def gain(corruption: Any, operator: Any) -> float:
    """The root mean square of A x for x of root mean square 1: white noise or a constant, whichever is larger."""
    white = jax.random.normal(jax.random.key(0), corruption.shape)
    sizes = [jnp.sqrt(jnp.mean(corruption.forward(x, operator) ** 2)) for x in (white, jnp.ones_like(white))]
    return max(float(size) for size in sizes)


def check(observations: Observation, corruption: Any, where: str) -> None:
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
    seen = operators.seen_anywhere(corruption, observations.operator)
    size = rms(observations.y, seen)
    if size == 0:
        return
    masked = seen is not None and observations.y.shape[1:] == tuple(corruption.shape)
    first = jax.tree.map(lambda a: jnp.asarray(np.asarray(a[0])), observations.operator)
    per_x = 1.0 if masked else gain(corruption, first)
    noise, per_x = float(corruption.noise_std), max(per_x, 1e-30)
    most = math.hypot(LARGEST_RMS, max(noise, float(getattr(corruption, "noise_std_max", 0.0))) / per_x)
    if size >= 0.5 * noise and SMALLEST_RMS <= size / per_x <= most:
        return
    factor = rounded(per_x / size)
    below = f", less than the noise, config.corruption.noise_std={noise:g}" if size < 0.5 * noise else ""
    raise UserError(
        f"{where}: 'y' has values of size {size:.2g} (root mean square){below}; expected data in [-2, 2] and noise_std in the same "
        f"units; set config.data.scale={factor:g}, which multiplies y and is undone in draws, and give noise_std after "
        f"scaling{'; a table scales itself where data.path is its .csv' if len(corruption.shape) == 1 else ''}"
    )


def rounded(value: float) -> float:
    """One significant digit."""
    return float(f"{value:.1g}")
