"""A user's own corrupted data: read, checked in full before anything else happens, never with clean data.

A file is an .npz with ``y`` [N, *Y] and the arrays of the corruption's operators under the names that
``corruption.operator_names()`` gives (for masks: ``mask``), with one entry per example or one for all. A folder holds
corrupted images in ``images/`` and masks of the same names in ``masks/``.
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
from diffem_jax.data import checks, npz, operators
from diffem_jax.data.folders import read_folder
from diffem_jax.data.layout import arrange
from diffem_jax.errors import UserError
from diffem_jax.storage.files import cache_folder, write_arrays
from diffem_jax.storage.rows import ArrayLike, Rows, in_units, kept
from diffem_jax.types import Observation, PyTree

LARGEST_PIXEL, LARGEST_VALUE = 50.0, 1e6
"""The largest |y|: where y has the shape of x, which catches grey levels 0..255 left unscaled, and elsewhere."""
SMALLEST_RMS, LARGEST_RMS = 0.02, 4.0
"""A root mean square of x between these is accepted as that of data in [-2, 2]."""
EXAMPLES = 256
"""Examples that the size of y is estimated from."""
KNOWN = ("mask", "operator", "noise_std")
"""Names of arrays that describe the corruption: refused where the chosen one does not use them."""
Place = str | os.PathLike[str]


def array_shapes(
    path: Place, cache_dir: Place | None = None, shape: tuple[int, ...] | None = None, alpha: str = "refuse"
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the arrays in a file or folder, 'y' [N, *Y] among them, as ``load_observations`` reads them.

    ``shape`` is that of x, where the user said it. UserError where there is no such file, or no 'y' [N, ...] in it.
    """
    where = npz.existing(path, "an .npz file with 'y', or a folder of images")
    arrays = npz.placeholders(where) if where.is_file() else {}
    if arrays.get("y", np.zeros(1)).ndim > 1:
        y, found, _ = arrange(arrays["y"], arrays, shape, str(where))
    else:
        y, found, _ = _read(where, cache_dir, KNOWN, shape, alpha)
    return {**{name: tuple(array.shape) for name, array in found.items()}, "y": tuple(y.shape)}


def load_observations(
    path: Place, corruption: Any, cache_dir: Place | None = None, scale: float = 1.0, alpha: str = "refuse"
) -> Observation:
    """Reads and checks observations (y [N, *Y] float32, operator with a leading axis N, or () where there is none).

    Grey levels of uint8 or uint16 are scaled to [-2, 2]. Entries of y that are not measured (hidden by a mask) may hold
    anything, NaN too: they read as 0. Where a mask is expected and the file has none, NaN are hidden, all else is seen. Arrays
    that are large stay on disk as lazy ``Rows``, and all checks go through them in parts.

    Args:
        path: an .npz file, or a folder of images, which are cropped and resized to the shape of x.
        corruption: the corruption assumed; says which shapes y and the operators must have.
        cache_dir: for folders: where the converted images go.
        scale: multiplies y, grey levels too; 1 scales grey levels to [-2, 2] and leaves other numbers as they are.
        alpha: for folders: what an alpha channel means, 'refuse', 'mask' or 'drop'.

    Raises:
        UserError: a missing, damaged, pickled or suspicious file; an empty set; wrong shapes, dtypes or counts; NaN or infinity
            in seen entries; values far outside of [-2, 2]; masks with other values than 0 and 1 or that hide everything;
            noise_std that is not positive.

    Warns where axes or grey levels had to be guessed, of a mask made here, and of examples with nothing seen.
    """
    where = npz.existing(path, "an .npz file with 'y', or a folder of images")
    shape, wanted, masked = tuple(corruption.shape), tuple(corruption.operator_names()), isinstance(corruption, Mask)
    tree = jax.eval_shape(corruption.draw_operator, jax.random.key(0))
    expected = tuple(jax.eval_shape(corruption.forward, jax.ShapeDtypeStruct(shape, jnp.float32), tree).shape)
    resized = shape if masked or isinstance(corruption, Denoising) else None
    y, found, notes = _read(where, cache_dir, (*KNOWN, *wanted), resized if where.is_dir() else expected, alpha)
    checks.check_dtype(y, f"{where}: 'y'", integers=scale != 1)
    if masked and not found.keys() & {"mask", "operator"}:
        found["mask"], note = operators.make_mask(y, corruption.mask_shape[-1] == 1, str(where))
        notes.append(note)
    operator = _read_operator(corruption, found, tree, len(y), where)
    if y.shape[1:] != expected:
        expectation = f"{('N', *expected)}; correct the file, or data.shape and the corruption"
        raise UserError(f"{where}: 'y' has shape {y.shape}; expected {expectation}")
    seen = operators.seen_anywhere(corruption, operator)
    rows = in_units(y, scale)
    if y.dtype == np.uint16 and scale == 1:
        notes.append(f"{where}: 16-bit grey levels: 0..{4 / rows.scale:.0f} read as [-2, 2]")
    if y.dtype.kind == "f" or scale != 1:
        checks.check_values(rows, f"{where}: 'y'", seen, LARGEST_PIXEL if expected == shape else LARGEST_VALUE)
    for note in filter(None, notes):
        warnings.warn(note, UserWarning, stacklevel=2)
    return Observation(kept(Rows(y, rows.scale, rows.offset, seen)), operator)  # type: ignore[arg-type]


def save_observations(path: Place, observation: Observation, corruption: Any) -> None:
    """Writes observations with a leading axis N as ``load_observations`` reads them, to an .npz that can be memory-mapped."""
    leaves = jax.tree.leaves(observation.operator)
    arrays = {name: np.asarray(leaf) for name, leaf in zip(corruption.operator_names(), leaves, strict=True)}
    write_arrays(path, {"y": np.asarray(observation.y), **arrays})


def _read(
    where: Path, cache_dir: Place | None, names: tuple[str, ...], shape: tuple[int, ...] | None, alpha: str
) -> tuple[np.ndarray, dict[str, ArrayLike], list[str]]:
    """Returns y and the other arrays of the names given, with their axes in order, and sentences on what that took."""
    if where.is_dir():
        return *read_folder(where, cache_folder(cache_dir), shape, alpha), []
    arrays = npz.read_arrays(where, ("y", *names))
    if "y" not in arrays:
        raise UserError(f"{where}: no array 'y' in it; expected y [N, ...]; save with numpy.savez(path, y=...)")
    y = arrays.pop("y")
    if y.ndim < 2 or y.size == 0:
        raise UserError(f"{where}: 'y' has shape {y.shape}; expected [N, ...] with N > 0; save at least one example")
    y, found, note = arrange(y, arrays, shape, str(where))
    return y, found, [note]


def _read_operator(corruption: Any, found: dict[str, ArrayLike], tree: PyTree, count: int, where: Path) -> PyTree:
    """The operators from the arrays that the corruption needs, no less and no more; 'operator' may name a single one."""
    wanted, kind = list(corruption.operator_names()), type(corruption).__name__
    if len(wanted) == 1 and "operator" in found and wanted[0] not in found:
        found = {wanted[0] if name == "operator" else name: array for name, array in found.items()}
    for name in (name for name in found if name not in wanted):
        if name == "noise_std":
            largest = float(np.max(np.asarray(found[name])))
            raise UserError(
                f"{where}: holds 'noise_std'; expected none, {kind} has one noise for all; set "
                f"config.corruption.noise_std_max={largest:g} (the largest) and config.corruption.noise_std (the smallest)"
            )
        use = f"{', '.join(map(repr, wanted))}, which {kind} draws" if wanted else f"none, {kind} draws no operator"
        raise UserError(f"{where}: holds {name!r}; expected {use}; choose the corruption that made the data")
    leaves, structure = jax.tree.flatten(tree)
    arrays = []
    for name, leaf in zip(wanted, leaves, strict=True):
        if name not in found:
            raise UserError(f"{where}: no array {name!r} in it; expected {('N', *leaf.shape)}; add one per example")
        size = int(np.prod(corruption.shape))
        arrays.append(operators.fit_operator(found[name], count, leaf, name, f"{where}: {name!r}", size))
    return jax.tree.unflatten(structure, arrays)


def check_units(observations: Observation, corruption: Any, where: str) -> None:
    """Compares the size of y of a linear corruption with the noise and with data in [-2, 2].

    Raises:
        UserError: y is smaller than its own noise, or x would be far outside of or far below [-2, 2]; with the factor that
            brings x to a root mean square of about 1.
    """
    if not corruption.is_linear:
        return
    seen = operators.seen_anywhere(corruption, observations.operator)
    size = _rms(observations.y, seen)
    if size == 0:
        return
    per_x = 1.0
    if seen is None or observations.y.shape[1:] != tuple(corruption.shape):
        first = jax.tree.map(lambda a: jnp.asarray(np.asarray(a[0])), observations.operator)
        per_x = max(_gain(corruption, first), 1e-30)
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
