"""The operators of a user's observations: which arrays of a file they are, and what each may hold.

An operator is a tree of arrays; ``corruption.operator_names()`` says what they are called in a file, in the order of
``jax.tree.leaves``. Each has one entry per example, or is one for all.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.corruptions.masks import Mask
from diffem_jax.data import checks
from diffem_jax.errors import UserError
from diffem_jax.storage.rows import ArrayLike, kept, read_parts
from diffem_jax.types import PyTree

MOST_ZEROS = 0.01
"""The largest share of zeros in y of floating point, without NaN, that is taken as all seen."""


def is_mask(name: str) -> bool:
    """Whether an array of this name holds zeros and ones alone: 'mask', or a stage's 'mask_2'."""
    return name.rstrip("0123456789").rstrip("_") == "mask"


def seen_anywhere(corruption: Any, operator: PyTree) -> Any:
    """Which entries of y are measured under operators [N, ...], as rows that broadcast to those of y; None where all are."""
    if isinstance(corruption, Mask):
        return operator
    if corruption.observed(corruption.draw_operator(jax.random.key(0))) is True:
        return None
    return _Seen(corruption.observed, operator)


class _Seen:
    """Rows of ``observed``, computed when they are asked for."""

    def __init__(self, observed: Any, operator: PyTree):
        self.observed, self.operator = jax.vmap(observed), operator

    def __getitem__(self, index: Any) -> np.ndarray:
        if np.ndim(index) == 0 and not isinstance(index, slice):
            return self[np.asarray([index])][0]
        part = jax.tree.map(lambda a: jnp.asarray(np.asarray(a[index])), self.operator)
        return np.asarray(self.observed(part))


def fit_operator(
    array: ArrayLike, count: int, expected: jax.ShapeDtypeStruct, name: str, where: str, size: int
) -> ArrayLike:
    """One array of the operators, checked, with a leading axis N = ``count``; whole numbers are indices below ``size``."""
    indices, shape = expected.dtype.kind == "i", tuple(expected.shape)
    checks.check_dtype(array, where, integers=is_mask(name) or indices)
    if isinstance(array, np.ndarray) and array.ndim > len(shape) + 1 and math.prod(array.shape[1:]) == math.prod(shape):
        array = array.reshape(len(array), *shape)
    if array.shape == shape:
        array = np.broadcast_to(np.asarray(array), (count, *shape))
    elif array.shape[1:] != shape:
        raise UserError(
            f"{where} has shape {array.shape}; expected {(count, *shape)}, or {shape} for all examples; reshape it (a mask of "
            "images ends in an axis of length 1)"
        )
    elif len(array) != count:
        raise UserError(f"{where} holds {len(array)} entries; expected {count}, as 'y' has; one per example")
    if is_mask(name):
        checks.check_mask(array, where)
    elif indices:
        return checks.read_indices(array, expected.dtype, size, where)
    else:
        checks.check_values(array, where, largest=1e6)
    if name.startswith("noise_std"):
        checks.check_positive(array, where)
    return kept(array)


def make_mask(y: np.ndarray, one_channel: bool, where: str) -> tuple[np.ndarray, str]:
    """The mask of y [N, *X] where the file has none, and a sentence on it: NaN are hidden, all else is seen.

    The mask is uint8 [N, *X], or [N, *spatial, 1] for ``one_channel``: pixels must then be NaN in all channels or none.

    Raises:
        UserError: no NaN but many zeros, which look like hidden entries, or NaN in some channels of a pixel alone.
    """
    one_channel = one_channel and y.ndim > 2
    mask = np.ones((*y.shape[:-1], 1) if one_channel else y.shape, np.uint8)
    missing, zeros = 0, 0
    for start, rows in read_parts(y) if y.dtype.kind == "f" else ():
        unknown = np.isnan(rows)
        zeros, missing = zeros + int((rows == 0).sum()), missing + int(unknown.sum())
        if one_channel and (unknown.any(-1) != unknown.all(-1)).any():
            raise UserError(
                f"{where}: 'y' is NaN in some channels of a pixel alone; expected a mask per channel; set "
                "config.corruption.per_channel=True"
            )
        mask[start : start + len(rows)] = ~(unknown[..., :1] if one_channel else unknown)
    if missing:
        share = f"the {missing / y.size:.1%} of 'y' that are NaN are taken as hidden, the rest as seen"
        return mask, f"{where}: no 'mask'; {share}"
    if zeros > MOST_ZEROS * y.size:
        raise UserError(
            f"{where}: no array 'mask' in it, and {zeros / y.size:.0%} of 'y' is exactly 0; expected a mask "
            f"{('N', *mask.shape[1:])}, or NaN where nothing was seen; add one"
        )
    return mask, f"{where}: no 'mask'; all of 'y' is taken as seen"
