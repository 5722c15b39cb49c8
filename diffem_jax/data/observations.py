"""A user's own corrupted data: read, checked in full before anything else happens, never with clean data.

A file is an .npz with ``y`` [N, *Y] and, where the corruption has operators, ``operator`` (for masks: ``mask``) with
one entry an example or one for all. A folder holds corrupted images in ``images/`` and masks of the same names in
``masks/``.
"""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.corruptions.masks import Mask
from diffem_jax.data import images
from diffem_jax.data.files import IN_MEMORY_BYTES, ArrayLike, Rows, as_rows, cache_folder, chunks, release
from diffem_jax.data.npz import existing, read_arrays
from diffem_jax.types import Observation, UserError

LARGEST_PIXEL = 50.0
"""The largest |y| where y has the shape of x: data live in [-2, 2], so grey levels 0..255 are caught."""
LARGEST_VALUE = 1e6


def load_observations(
    path: str | os.PathLike[str],
    shape: tuple[int, ...] | None = None,
    corruption: Any = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Observation:
    """Reads and checks observations.

    uint8 values are taken for grey levels and scaled to [-2, 2]. Hidden entries of masked data may hold anything, NaN
    too: they read as 0. Arrays that are large stay on disk as lazy ``Rows``, and all checks go through
    them in chunks.

    Args:
        path: an .npz file, or a folder of images.
        shape: the shape of one clean example, where it is known.
        corruption: the corruption assumed; says which shapes y and the operator must have.
        cache_dir: for folders: where the converted images go.

    Returns:
        Observation(y [N, *Y] float32, operator with a leading axis N, or () where there is none).

    Raises:
        UserError: naming file, array, value, what was expected and what to do, for: a missing, damaged, pickled or
            suspicious file; an empty set; wrong shapes, dtypes or counts; NaN or infinity in seen entries (how many,
            and the first example); values far outside of [-2, 2]; masks with other values than 0 and 1 or that hide
            everything everywhere.

    Warns:
        UserWarning: some examples have nothing seen.
    """
    where = existing(path, "an .npz file with 'y', or a folder of images")
    operators: dict[str, ArrayLike]
    if where.is_dir():
        y, operators = _from_folder(where, cache_folder(cache_dir))
    else:
        arrays = read_arrays(where, ("y", "mask", "operator"))
        if "y" not in arrays:
            raise UserError(f"{where}: no array 'y' in it; expected y [N, ...]; save with numpy.savez(path, y=...)")
        y = arrays.pop("y")
        operators = {**arrays}
    if len(operators) > 1:
        raise UserError(f"{where}: both 'mask' and 'operator'; expected one of them; leave one out")
    shape = tuple(corruption.shape) if corruption is not None else shape
    name, operator = next(iter(operators.items()), (None, None))
    masked = name == "mask" or isinstance(corruption, Mask)
    expected_y, expected_operator = _expected(corruption)
    if expected_y is None and shape is not None and masked:
        expected_y = shape

    _check_dtype(y, f"{where}: 'y'", integers=False)
    if y.ndim < 2 or len(y) == 0:
        raise UserError(f"{where}: 'y' has shape {y.shape}; expected [N, ...] with N > 0; save at least one example")
    if expected_y is not None and y.shape[1:] != expected_y:
        raise UserError(
            f"{where}: 'y' has shape {y.shape}; expected {('N', *expected_y)}; correct the file, or data.shape and the "
            "corruption"
        )
    if corruption is not None and expected_operator is None and operator is not None:
        raise UserError(
            f"{where}: holds '{name}'; expected none, {type(corruption).__name__} draws no operator; "
            "choose the corruption that made the data"
        )
    if expected_operator is not None and operator is None:
        wanted = "mask" if masked else "operator"
        raise UserError(f"{where}: no array '{wanted}' in it; expected {('N', *expected_operator)}; add one an example")
    if operator is not None:
        operator = _check_operator(operator, y, expected_operator, masked, f"{where}: '{name}'")
    mask = operator if masked else None
    if mask is not None:
        _check_mask(mask, f"{where}: '{name}'")
    pixels = masked or (shape is not None and y.shape[1:] == shape)
    _check_values(y, mask, LARGEST_PIXEL if pixels else LARGEST_VALUE, f"{where}: 'y'")
    if mask is not None:
        return Observation(as_rows(y, mask), _plain(mask))  # type: ignore[arg-type]
    if operator is not None:
        _check_values(operator, None, LARGEST_VALUE, f"{where}: '{name}'")
        operator = _plain(operator)
    return Observation(as_rows(y), () if operator is None else operator)  # type: ignore[arg-type]


def _expected(corruption: Any) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The shapes of y and of the operator, where the corruption says so."""
    if corruption is None:
        return None, None
    operator = jax.eval_shape(corruption.draw_operator, jax.random.key(0))
    y = jax.eval_shape(corruption.forward, jax.ShapeDtypeStruct(corruption.shape, jnp.float32), operator)
    leaves = jax.tree.leaves(operator)
    if len(leaves) > 1:
        raise UserError(
            f"corruption.name: {type(corruption).__name__}; expected an operator of one array for data from "
            "a file; hand the observations over in Python instead"
        )
    return tuple(y.shape), tuple(leaves[0].shape) if leaves else None


def _from_folder(root: Path, cache: Path) -> tuple[np.ndarray, dict[str, ArrayLike]]:
    pictures = root / "images" if (root / "images").is_dir() else root
    masks = pictures.parent / "masks"
    files = images.image_files(pictures)
    y = images.folder(files, cache)
    if not masks.is_dir():
        return y, {}
    by_stem = {f.stem: f for f in images.image_files(masks)}
    missing = [f.name for f in files if f.stem not in by_stem]
    if missing:
        raise UserError(
            f"{masks}: no mask for {len(missing)} of {len(files)} images, the first {missing[0]}; expected "
            "a mask of the same name for each; add them"
        )
    levels = images.folder([by_stem[f.stem] for f in files], cache, (*y.shape[1:3], 1))
    for part in chunks(len(levels), levels[0].nbytes):
        wrong = (levels[part] != 0) & (levels[part] != 255)
        if wrong.any():
            example = int(wrong.reshape(len(wrong), -1).any(-1).argmax())
            raise UserError(
                f"{by_stem[files[part.start + example].stem]}: grey levels between black and white; "
                "expected 0 (hidden) or 255 (seen); save masks as PNG"
            )
    return y, {"mask": Rows(levels, 1 / 255)}


def _check_dtype(array: ArrayLike, where: str, integers: bool) -> None:
    if array.dtype.kind == "f" or array.dtype == np.uint8 or (integers and array.dtype.kind in "iub"):
        return
    hints = {
        "c": "split complex values into two channels, numpy.stack([y.real, y.imag], -1)",
        "b": "convert with y.astype('float32')",
        "i": "convert to float32 and scale to [-2, 2]",
        "u": "convert to float32 and scale to [-2, 2]",
    }
    hint = hints.get(array.dtype.kind, "save numbers")
    raise UserError(f"{where}: dtype {array.dtype}; expected floating point, or uint8 grey levels; {hint}")


def _check_operator(
    operator: ArrayLike, y: np.ndarray, expected: tuple[int, ...] | None, masked: bool, where: str
) -> ArrayLike:
    _check_dtype(operator, where, integers=masked)
    if expected is None and masked:
        single = (*y.shape[1:-1], 1) if y.ndim > 2 else y.shape[1:]
        expected = y.shape[1:] if operator.shape[-1:] == y.shape[-1:] else single
    if expected is not None and operator.shape == expected:
        return np.broadcast_to(operator, (len(y), *expected))
    if expected is not None and operator.shape[1:] != expected:
        raise UserError(
            f"{where} has shape {operator.shape}; expected {(len(y), *expected)}, or {expected} for all "
            "examples; reshape it (a mask of images ends in an axis of length 1)"
        )
    if operator.ndim == 0 or len(operator) != len(y):
        raise UserError(f"{where} holds {operator.shape[:1]} entries; expected {len(y)}, as 'y' has; one an example")
    return operator


def _check_mask(mask: ArrayLike, where: str) -> None:
    """Values 0 and 1; something seen somewhere."""
    empty = 0
    for part in chunks(len(mask), mask[0].nbytes):
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
        warnings.warn(f"{where}: {empty} of {len(mask)} examples have nothing seen", UserWarning, stacklevel=3)


def _check_values(array: ArrayLike, mask: ArrayLike | None, largest: float, where: str) -> None:
    """No NaN or infinity and nothing absurdly large among the seen entries."""
    scaled = array.dtype == np.uint8
    bad, first_bad, size = 0, -1, 0.0
    for part in chunks(len(array), array[0].nbytes):
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
            f"{where}: a value of size {size:g}; expected data in [-2, 2] (at most {largest:g}); scale grey "
            "levels with y / 255 * 4 - 2"
        )


def _plain(operator: ArrayLike) -> ArrayLike:
    """Float32 entries as they are; converted at once where that is small, row by row where it is large."""
    if operator.dtype == np.float32 and isinstance(operator, np.ndarray) and not isinstance(operator, np.memmap):
        return operator
    rows = operator if isinstance(operator, Rows) else Rows(operator)
    return np.asarray(rows) if rows.nbytes <= IN_MEMORY_BYTES else rows
