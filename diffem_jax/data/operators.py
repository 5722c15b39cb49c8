"""The operators of a user's observations: which arrays of a file they are, and what each may hold.

An operator is a tree of arrays; ``corruption.operator_names()`` says what they are called in a file, in the order of
``jax.tree.leaves``. Each has an entry an example, or is one for all.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.corruptions.masks import Mask
from diffem_jax.errors import UserError
from diffem_jax.storage.rows import IN_MEMORY_BYTES, ArrayLike, Rows, chunks, release
from diffem_jax.types import PyTree


def names(corruption: Any) -> list[str]:
    """What the arrays of the corruption's operators are called in a file."""
    return list(corruption.operator_names())


def shapes(corruption: Any) -> PyTree:
    """The shapes and dtypes of one operator."""
    return jax.eval_shape(corruption.draw_operator, jax.random.key(0))


def is_mask(name: str) -> bool:
    """Whether an array of this name holds zeros and ones alone: 'mask', or a stage's 'mask_2'."""
    return name.rstrip("0123456789").rstrip("_") == "mask"


def seen_anywhere(corruption: Any, operator: PyTree) -> Any:
    """Which entries of y are measured, as rows that broadcast to those of y; None where all are.

    Args:
        corruption: the corruption assumed.
        operator: a tree of arrays with a leading axis N.
    """
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


def fit(
    array: ArrayLike, count: int, expected: jax.ShapeDtypeStruct, name: str, where: str, size: int = 2**31
) -> ArrayLike:
    """One array of the operators, with a leading axis N; its values checked. Whole numbers are indices below ``size``.

    Raises:
        UserError: shape, dtype or values are not what the corruption draws.
    """
    check_dtype(array, where, integers=is_mask(name) or expected.dtype.kind == "i")
    shape = tuple(expected.shape)
    if isinstance(array, np.ndarray) and array.ndim > len(shape) + 1 and math.prod(array.shape[1:]) == math.prod(shape):
        array = array.reshape(len(array), *shape)
    if array.shape == shape:
        array = np.broadcast_to(np.asarray(array), (count, *shape))
    elif array.shape[1:] != shape:
        raise UserError(
            f"{where} has shape {array.shape}; expected {(count, *shape)}, or {shape} for all "
            "examples; reshape it (a mask of images ends in an axis of length 1)"
        )
    elif len(array) != count:
        raise UserError(f"{where} holds {array.shape[:1]} entries; expected {count}, as 'y' has; one an example")
    if is_mask(name):
        check_mask(array, where)
    elif expected.dtype.kind == "i":
        return _integers(array, expected.dtype, size, where)
    else:
        check_values(array, None, 1e6, where)
    if name.startswith("noise_std"):
        _check_positive(array, where)
    return plain(array)


def _integers(array: ArrayLike, dtype: np.dtype, size: int, where: str) -> np.ndarray:
    """Indices of entries of x, small enough to be read whole."""
    values = np.asarray(array)
    if values.dtype.kind == "f" and (values != np.floor(values)).any():
        raise UserError(f"{where}: holds fractions; expected whole numbers, indices from 0; round them")
    if (values < 0).any() or (values >= size).any():
        raise UserError(
            f"{where}: holds {values.min()} to {values.max()}; expected indices from 0 and below {size}, the number of "
            "entries of x; correct them"
        )
    return values.astype(dtype)


def _check_positive(array: ArrayLike, where: str) -> None:
    """Standard deviations are positive."""
    for part in chunks(len(array), array[:1].nbytes):
        if not (np.asarray(array[part]) > 0).all():
            raise UserError(f"{where}: a value that is not positive; expected standard deviations > 0; correct them")


def check_dtype(array: ArrayLike, where: str, integers: bool) -> None:
    """Refuses dtypes that are no measurements."""
    if array.dtype.kind == "f" or array.dtype in (np.uint8, np.uint16) or (integers and array.dtype.kind in "iub"):
        return
    hints = {
        "c": "split complex values into two channels, numpy.stack([y.real, y.imag], -1)",
        "b": "convert with y.astype('float32')",
        "i": "convert to float32 and scale to [-2, 2], or set config.data.scale",
        "u": "convert to float32 and scale to [-2, 2], or set config.data.scale",
    }
    hint = hints.get(array.dtype.kind, "save numbers")
    raise UserError(f"{where}: dtype {array.dtype}; expected floating point, or grey levels of uint8 or uint16; {hint}")


def check_mask(mask: ArrayLike, where: str) -> None:
    """Values 0 and 1; something seen somewhere."""
    empty = 0
    for part in chunks(len(mask), mask[:1].nbytes):
        rows = mask[part].reshape(len(mask[part]), -1)
        wrong = (rows != 0) & (rows != 1)
        if wrong.any():
            example = int(wrong.any(-1).argmax())
            value = rows[example][wrong[example]][0]
            raise UserError(
                f"{where}: value {value} in example {part.start + example}; expected 0 (hidden) or 1 (seen)"
                "; threshold it"
            )
        empty += int((rows == 0).all(-1).sum())
        release(mask)
    if empty == len(mask):
        raise UserError(
            f"{where}: 0 everywhere, nothing is seen in any of {empty} examples; expected 1 where y is seen; "
            "is it inverted?"
        )
    if empty:
        warnings.warn(f"{where}: {empty} of {len(mask)} examples have nothing seen", UserWarning, stacklevel=4)


def check_values(array: ArrayLike, mask: Any, largest: float, where: str) -> None:
    """No NaN or infinity and nothing absurdly large among the seen entries."""
    scaled = array.dtype == np.uint8
    bad, first_bad, size = 0, -1, 0.0
    for part in chunks(len(array), array[:1].nbytes):
        rows = np.asarray(array[part])
        if rows.dtype.kind != "f":
            continue
        if mask is not None:
            rows = np.where(np.asarray(mask[part]) > 0, rows, 0)
        finite = np.isfinite(rows)
        if not finite.all():
            bad += int((~finite).sum())
            if first_bad < 0:
                first_bad = part.start + int((~finite).reshape(len(rows), -1).any(-1).argmax())
            rows = np.where(finite, rows, 0)
        size = max(size, float(np.abs(rows).max(initial=0.0)))
        release(array)
        release(mask)
    if bad:
        hint = "only hidden entries may be NaN" if mask is not None else "mark missing entries by a 'mask' of 0 and 1"
        raise UserError(
            f"{where}: {bad} of {math.prod(array.shape)} entries are NaN or infinite, the first in example "
            f"{first_bad}; expected finite numbers; {hint}"
        )
    if size > largest and not scaled:
        raise UserError(
            f"{where}: a value of size {size:g}; expected data in [-2, 2] (at most {largest:g}); set config.data.scale="
            f"{float(f'{2 / size:.1g}'):g}, or scale grey levels with y / 255 * 4 - 2; a table scales itself where data.path is its .csv"
        )


def plain(operator: ArrayLike) -> ArrayLike:
    """Float32 entries as they are; converted at once where that is small, row by row where it is large."""
    if operator.dtype == np.float32 and isinstance(operator, np.ndarray) and not isinstance(operator, np.memmap):
        return operator
    rows = operator if isinstance(operator, Rows) else Rows(operator)
    return np.asarray(rows) if rows.nbytes <= IN_MEMORY_BYTES else rows
