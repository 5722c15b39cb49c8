"""A user's own corrupted data: read, checked in full before anything else happens, never with clean data.

A file is an .npz with ``y`` [N, *Y] and the arrays of the corruption's operators under the names that
``diffem_jax.data.operators.names`` gives (for masks: ``mask``), with one entry an example or one for all. A folder
holds corrupted images in ``images/`` and masks of the same names in ``masks/``.
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

from diffem_jax.corruptions.base import Denoising
from diffem_jax.corruptions.masks import Mask
from diffem_jax.data import hidden, npz, operators, units
from diffem_jax.data.folders import read_folder
from diffem_jax.data.layout import arrange
from diffem_jax.data.npz import existing, read_arrays
from diffem_jax.errors import UserError
from diffem_jax.storage.files import cache_folder, write_arrays
from diffem_jax.storage.rows import ArrayLike, Rows, as_rows
from diffem_jax.types import Observation

LARGEST_PIXEL = 50.0
"""The largest |y| where y has the shape of x: data live in [-2, 2], so grey levels 0..255 are caught."""
LARGEST_VALUE = 1e6
KNOWN = ("mask", "operator", "noise_std")
"""Arrays that say something of how y was made: refused where the corruption has no use for them."""


def array_shapes(
    path: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str] | None = None,
    shape: tuple[int, ...] | None = None,
    alpha: str = "refuse",
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the arrays in a file or folder, 'y' [N, *Y] among them, as ``load_observations`` reads them.

    Args:
        path: an .npz file, or a folder of images.
        cache_dir: for folders: where the converted images go.
        shape: the shape of x, where the user said it.
        alpha: for folders: what an alpha channel means.

    Raises:
        UserError: no such file, or no 'y' [N, ...] in it.
    """
    where = existing(path, "an .npz file with 'y', or a folder of images")
    arrays = npz.placeholders(where) if where.is_file() else {}
    if arrays.get("y", np.zeros(1)).ndim > 1:
        y, found, _ = arrange(arrays["y"], arrays, shape, str(where))
    else:
        y, found, _ = _read(where, cache_dir, KNOWN, shape, alpha)
    return {**{name: tuple(array.shape) for name, array in found.items()}, "y": tuple(y.shape)}


def load_observations(
    path: str | os.PathLike[str],
    shape: tuple[int, ...] | None = None,
    corruption: Any = None,
    cache_dir: str | os.PathLike[str] | None = None,
    scale: float = 1.0,
    alpha: str = "refuse",
) -> Observation:
    """Reads and checks observations.

    Grey levels of uint8 or uint16 are scaled to [-2, 2]. Entries of y that are not measured (hidden by a mask) may hold
    anything, NaN too: they read as 0. Where a mask is expected and the file has none, NaN are hidden, all else is seen. Arrays
    that are large stay on disk as lazy ``Rows``, and all checks go through them in chunks.

    Args:
        path: an .npz file, or a folder of images.
        shape: the shape of one clean example, where it is known; images of a folder are cropped and resized to it.
        corruption: the corruption assumed; says which shapes y and the operators must have. Without it the file may
            hold a 'mask' or an 'operator' of one array.
        cache_dir: for folders: where the converted images go.
        scale: multiplies y, grey levels too; 1 scales grey levels to [-2, 2] and leaves other numbers as they are.
        alpha: for folders: what an alpha channel means, 'refuse', 'mask' or 'drop'.

    Returns:
        Observation(y [N, *Y] float32, operator with a leading axis N, or () where there is none).

    Raises:
        UserError: naming file, array, value, what was expected and what to do, for: a missing, damaged, pickled or
            suspicious file; an empty set; wrong shapes, dtypes or counts; NaN or infinity in seen entries (how many,
            and the first example); values far outside of [-2, 2]; masks with other values than 0 and 1 or that hide
            everything everywhere; noise_std that is not positive.

    Warns:
        UserWarning: axes or grey levels were taken for something that they do not say, the mask was made here, or some
            examples have nothing seen.
    """
    where = existing(path, "an .npz file with 'y', or a folder of images")
    wanted = operators.names(corruption) if corruption is not None else []
    tree, expected_y = None, shape
    if corruption is not None:
        shape, tree = tuple(corruption.shape), operators.shapes(corruption)
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        expected_y = tuple(jax.eval_shape(corruption.forward, x, tree).shape)
    resized = shape if corruption is None or isinstance(corruption, Mask | Denoising) else None
    y, found, notes = _read(where, cache_dir, (*KNOWN, *wanted), resized if where.is_dir() else expected_y, alpha)
    if "mask" in found and "operator" in found:
        raise UserError(f"{where}: both 'mask' and 'operator'; expected one of them; leave one out")
    operators.check_dtype(y, f"{where}: 'y'", integers=scale != 1)
    if isinstance(corruption, Mask) and not found.keys() & {"mask", "operator"}:
        found["mask"], note = hidden.mask_of(y, f"{where}", corruption.mask_shape[-1] == 1)
        notes.append(note)
    if corruption is None:
        tree, wanted = _guess(y, found), list(found)
    else:
        found = _match(corruption, wanted, tree, found, where)
    masked = isinstance(corruption, Mask) if corruption is not None else "mask" in found
    if expected_y is not None and (masked or corruption is not None) and y.shape[1:] != expected_y:
        raise UserError(
            f"{where}: 'y' has shape {y.shape}; expected {('N', *expected_y)}; correct the file, or data.shape and the "
            "corruption"
        )
    leaves, structure = jax.tree.flatten(tree)
    arrays = [
        operators.fit(found[name], len(y), leaf, name, f"{where}: {name!r}", math.prod(shape or y.shape[1:]))
        for name, leaf in zip(wanted, leaves, strict=True)
    ]
    operator = jax.tree.unflatten(structure, arrays)
    seen = operators.seen_anywhere(corruption, operator) if corruption is not None else (operator if masked else None)
    pixels = masked or (shape is not None and y.shape[1:] == shape)
    rows, note = units.in_units(y, scale)
    notes.append(f"{where}: {note}" if note else "")
    if y.dtype.kind == "f" or scale != 1:
        operators.check_values(rows, seen, LARGEST_PIXEL if pixels else LARGEST_VALUE, f"{where}: 'y'")
    for note in filter(None, notes):
        warnings.warn(note, UserWarning, stacklevel=2)
    plain = y.dtype == np.float32 and scale == 1 and seen is None
    return Observation(as_rows(y) if plain else units.kept(Rows(y, rows.scale, rows.offset, seen)), operator)  # type: ignore[arg-type]


def save_observations(path: str | os.PathLike[str], observation: Observation, corruption: Any) -> None:
    """Writes observations [N, ...] as ``load_observations`` reads them: 'y', and the operators by their names.

    Args:
        path: the .npz to write, uncompressed, so that it can be memory-mapped.
        observation: arrays with a leading axis N.
        corruption: what made them; names the operators' arrays.
    """
    leaves = jax.tree.leaves(observation.operator)
    arrays = {name: np.asarray(leaf) for name, leaf in zip(operators.names(corruption), leaves, strict=True)}
    write_arrays(path, {"y": np.asarray(observation.y), **arrays})


def _read(
    where: Path,
    cache_dir: str | os.PathLike[str] | None,
    names: tuple[str, ...],
    shape: tuple[int, ...] | None,
    alpha: str,
) -> tuple[np.ndarray, dict[str, ArrayLike], list[str]]:
    """Y and the other arrays of the names given, with their axes in order, and sentences on what that took."""
    found: dict[str, ArrayLike]
    if where.is_dir():
        y, found = read_folder(where, cache_folder(cache_dir), shape, alpha)
        return y, found, []
    arrays = read_arrays(where, ("y", *names))
    if "y" not in arrays:
        raise UserError(f"{where}: no array 'y' in it; expected y [N, ...]; save with numpy.savez(path, y=...)")
    y = arrays.pop("y")
    if y.ndim < 2 or y.size == 0:
        raise UserError(f"{where}: 'y' has shape {y.shape}; expected [N, ...] with N > 0; save at least one example")
    y, found, note = arrange(y, arrays, shape, str(where))
    return y, found, [note]


def _guess(y: np.ndarray, found: dict[str, ArrayLike]) -> Any:
    """The shape of one operator where no corruption says it."""
    found.pop("noise_std", None)
    if not found:
        return ()
    (name, array), *_ = found.items()
    if not operators.is_mask(name):
        return jax.ShapeDtypeStruct(tuple(array.shape[1:]), jnp.float32)
    single = (*y.shape[1:-1], 1) if y.ndim > 2 else y.shape[1:]
    return jax.ShapeDtypeStruct(y.shape[1:] if array.shape[-1:] == y.shape[-1:] else single, jnp.float32)


def _match(
    corruption: Any, wanted: list[str], tree: Any, found: dict[str, ArrayLike], where: Path
) -> dict[str, ArrayLike]:
    """The arrays that the corruption's operators need, no less and no more."""
    if len(wanted) == 1 and "operator" in found and wanted[0] not in found:
        found = {wanted[0] if name == "operator" else name: array for name, array in found.items()}
    for name in found:
        if name in wanted:
            continue
        if name == "noise_std":
            largest = float(np.max(np.asarray(found[name])))
            raise UserError(
                f"{where}: holds 'noise_std'; expected none, {type(corruption).__name__} has one noise for all; set "
                f"config.corruption.noise_std_max={largest:g} (the largest) and config.corruption.noise_std (the smallest)"
            )
        raise UserError(
            f"{where}: holds {name!r}; expected {', '.join(map(repr, wanted)) or 'none'}, which "
            f"{type(corruption).__name__} {'draws' if wanted else 'draws no operator'}; choose the corruption that made the data"
        )
    for name, leaf in zip(wanted, jax.tree.leaves(tree), strict=True):
        if name not in found:
            raise UserError(f"{where}: no array {name!r} in it; expected {('N', *leaf.shape)}; add one an example")
    return found
