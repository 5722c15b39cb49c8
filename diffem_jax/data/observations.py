"""A user's own corrupted data: read, checked in full before anything else happens, never with clean data.

A file is an .npz with ``y`` [N, *Y] and the arrays of the corruption's operators under the names that
``diffem_jax.data.operators.names`` gives (for masks: ``mask``), with one entry an example or one for all. A folder
holds corrupted images in ``images/`` and masks of the same names in ``masks/``.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.corruptions.masks import Mask
from diffem_jax.data import images, npz, operators
from diffem_jax.data.npz import existing, read_arrays
from diffem_jax.errors import UserError
from diffem_jax.storage.files import cache_folder, write_arrays
from diffem_jax.storage.rows import ArrayLike, Rows, as_rows, chunks
from diffem_jax.types import Observation

LARGEST_PIXEL = 50.0
"""The largest |y| where y has the shape of x: data live in [-2, 2], so grey levels 0..255 are caught."""
LARGEST_VALUE = 1e6
KNOWN = ("mask", "operator", "noise_std")
"""Arrays that say something of how y was made: refused where the corruption has no use for them."""


def array_shapes(
    path: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the arrays in a file or folder, 'y' [N, *Y] among them, with nothing else checked.

    Raises:
        UserError: no such file, or no 'y' [N, ...] in it.
    """
    where = existing(path, "an .npz file with 'y', or a folder of images")
    arrays = npz.array_shapes(where) if where.is_file() else {}
    if len(arrays.get("y", ())) > 1:
        return arrays
    y, found = _read_y(where, cache_dir)
    return {"y": y.shape, **{name: tuple(array.shape) for name, array in found.items()}}


def load_observations(
    path: str | os.PathLike[str],
    shape: tuple[int, ...] | None = None,
    corruption: Any = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Observation:
    """Reads and checks observations.

    uint8 values are taken for grey levels and scaled to [-2, 2]. Entries of y that are not measured (hidden by a mask)
    may hold anything, NaN too: they read as 0. Arrays that are large stay on disk as lazy ``Rows``, and all checks go
    through them in chunks.

    Args:
        path: an .npz file, or a folder of images.
        shape: the shape of one clean example, where it is known.
        corruption: the corruption assumed; says which shapes y and the operators must have. Without it the file may
            hold a 'mask' or an 'operator' of one array.
        cache_dir: for folders: where the converted images go.

    Returns:
        Observation(y [N, *Y] float32, operator with a leading axis N, or () where there is none).

    Raises:
        UserError: naming file, array, value, what was expected and what to do, for: a missing, damaged, pickled or
            suspicious file; an empty set; wrong shapes, dtypes or counts; NaN or infinity in seen entries (how many,
            and the first example); values far outside of [-2, 2]; masks with other values than 0 and 1 or that hide
            everything everywhere; noise_std that is not positive.

    Warns:
        UserWarning: some examples have nothing seen.
    """
    where = existing(path, "an .npz file with 'y', or a folder of images")
    wanted = operators.names(corruption) if corruption is not None else []
    y, found = _read_y(where, cache_dir, (*KNOWN, *wanted))
    if "mask" in found and "operator" in found:
        raise UserError(f"{where}: both 'mask' and 'operator'; expected one of them; leave one out")
    if corruption is None:
        tree, wanted = _guess(y, found), list(found)
    else:
        tree = operators.shapes(corruption)
        found = _match(corruption, wanted, tree, found, where)
    shape = tuple(corruption.shape) if corruption is not None else shape
    masked = isinstance(corruption, Mask) if corruption is not None else "mask" in found
    expected_y = None
    if corruption is not None:
        x = jax.ShapeDtypeStruct(corruption.shape, jnp.float32)
        expected_y = tuple(jax.eval_shape(corruption.forward, x, tree).shape)
    elif shape is not None and masked:
        expected_y = shape
    operators.check_dtype(y, f"{where}: 'y'", integers=False)
    if expected_y is not None and y.shape[1:] != expected_y:
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
    operators.check_values(y, seen, LARGEST_PIXEL if pixels else LARGEST_VALUE, f"{where}: 'y'")
    return Observation(as_rows(y, seen), operator)  # type: ignore[arg-type]


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


def _read_y(
    where: Path, cache_dir: str | os.PathLike[str] | None, names: tuple[str, ...] = ()
) -> tuple[np.ndarray, dict[str, ArrayLike]]:
    """Y and the other arrays of the names given."""
    found: dict[str, ArrayLike]
    if where.is_dir():
        y, found = _from_folder(where, cache_folder(cache_dir))
    else:
        arrays = read_arrays(where, ("y", *names))
        if "y" not in arrays:
            raise UserError(f"{where}: no array 'y' in it; expected y [N, ...]; save with numpy.savez(path, y=...)")
        y = arrays.pop("y")
        found = {**arrays}
    if y.ndim < 2 or len(y) == 0:
        raise UserError(f"{where}: 'y' has shape {y.shape}; expected [N, ...] with N > 0; save at least one example")
    return y, found


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
