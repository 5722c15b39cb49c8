"""What arrays of files may hold: dtypes, values, masks, indices. ``where`` names the file and the array in messages."""

import math
import warnings
from typing import Any

import numpy as np

from diffem_jax.errors import UserError
from diffem_jax.storage.rows import ArrayLike, read_parts, release

OR_TABLE = "; or of a table give the .csv itself as data.path, whose columns are scaled"


def check_dtype(array: ArrayLike, where: str, integers: bool) -> None:
    """Refuses dtypes that cannot be measurements; also signed integers and booleans, unless ``integers``."""
    kind = array.dtype.kind
    if kind == "f" or array.dtype in (np.uint8, np.uint16) or (integers and kind in "iub"):
        return
    scale = "convert to float32 and scale to [-2, 2], or set config.data.scale"
    complex_values = "split complex values into two channels, numpy.stack([y.real, y.imag], -1)"
    hints = {"c": complex_values, "b": "convert with y.astype('float32')", "i": scale, "u": scale}
    found = f"{where}: dtype {array.dtype}; expected floating point, or grey levels of uint8 or uint16"
    raise UserError(f"{found}; {hints.get(kind, 'save numbers')}")


def check_mask(mask: ArrayLike, where: str) -> None:
    """Refuses other values than 0 and 1, and masks of zeros alone; warns of examples with nothing seen."""
    empty = 0
    for start, rows in read_parts(mask):
        wrong = (rows != 0) & (rows != 1)
        if wrong.any():
            value, example = rows[wrong][0], start + first_example(wrong)
            raise UserError(f"{where}: value {value} in example {example}; expected 0 (hidden) or 1 (seen); round it")
        empty += int((rows == 0).reshape(len(rows), -1).all(-1).sum())
    if empty == len(mask):
        nothing = f"nothing is seen in any of {empty} examples"
        raise UserError(f"{where}: 0 everywhere, {nothing}; expected 1 where y is seen; is it inverted?")
    if empty:
        warnings.warn(f"{where}: {empty} of {len(mask)} examples have nothing seen", UserWarning, stacklevel=5)


def check_values(array: ArrayLike, where: str, seen: Any = None, largest: float = math.inf) -> None:
    """Refuses NaN, infinity and values beyond ``largest`` among the entries that are seen; ``seen=None`` checks all."""
    bad, first_bad, size = 0, -1, 0.0
    for start, rows in read_parts(array):
        if rows.dtype.kind != "f":
            return
        if seen is not None:
            rows = np.where(np.asarray(seen[start : start + len(rows)]) > 0, rows, 0)
            release(seen)
        wrong = ~np.isfinite(rows)
        if wrong.any():
            bad, first_bad = bad + int(wrong.sum()), first_bad if bad else start + first_example(wrong)
            rows = np.where(wrong, 0, rows)
        size = max(size, float(np.abs(rows).max(initial=0.0)))
    if bad:
        hint = "mark missing entries by a 'mask' of 0 and 1" if seen is None else "only hidden entries may be NaN"
        found = f"{bad} of {math.prod(array.shape)} entries are NaN or infinite, the first in example {first_bad}"
        raise UserError(f"{where}: {found}; expected finite numbers; {hint}")
    if size > largest:
        found = f"a value of size {size:g}; expected data in [-2, 2] (at most {largest:g})"
        cure = f"set config.data.scale={2 / size:.1g}, or scale grey levels with y / 255 * 4 - 2"
        raise UserError(f"{where}: {found}; {cure}{OR_TABLE}")


def read_indices(array: ArrayLike, dtype: np.dtype, size: int, where: str) -> np.ndarray:
    """Indices from 0 and below ``size`` as whole numbers of ``dtype``; small enough to be read whole."""
    values = np.asarray(array)
    if values.dtype.kind == "f" and (values != np.floor(values)).any():
        raise UserError(f"{where}: holds fractions; expected whole numbers, indices from 0; round them")
    if (values < 0).any() or (values >= size).any():
        expected = f"indices from 0 and below {size}, the number of entries of x"
        raise UserError(f"{where}: holds {values.min()} to {values.max()}; expected {expected}; correct them")
    return values.astype(dtype)


def first_example(wrong: np.ndarray) -> int:
    """The first of the rows [N, *X] of truth values in which one is true."""
    return int(wrong.reshape(len(wrong), -1).any(-1).argmax())
