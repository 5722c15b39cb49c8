"""A user's own corrupted data: read, and checked in full before anything else happens.

A file is an .npz with ``y`` [N, *Y] and the arrays of the corruption's operators, of which ``corruption.operator_names()`` gives the
names in the order of ``jax.tree.leaves`` (for masks: ``mask``), one entry per example or one for all; for folders see ``folders.py``.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.corruptions import Denoising, Mask
from diffem_jax.data import checks, npz
from diffem_jax.data.folders import read_folder
from diffem_jax.data.layout import arrange
from diffem_jax.errors import UserError
from diffem_jax.storage.files import Place, cache_folder, write_arrays
from diffem_jax.storage.rows import ArrayLike, Rows, in_units, kept, read_parts
from diffem_jax.types import Observation, PyTree, Shape

LARGEST_PIXEL, LARGEST_VALUE = 50.0, 1e6  # the largest |y| where y has the shape of x (no grey levels), and elsewhere
SMALLEST_RMS, LARGEST_RMS = 0.02, 4.0  # a root mean square of x between these is accepted as that of data in [-2, 2]
EXAMPLES = 256  # examples that the size of y is estimated from
MOST_ZEROS = 0.01  # the largest share of zeros in y of floating point, without NaN, that is taken as all seen
KNOWN = ("mask", "operator", "noise_std")  # names of arrays that only some corruptions use
EXPECTED = "an .npz file with 'y', or a folder of images"


def array_shapes(
    path: Place, cache_dir: Place | None = None, shape: Shape | None = None, alpha: str = "refuse"
) -> dict[str, Shape]:
    """Name -> shape of the arrays in a file or folder, 'y' [N, *Y] among them; ``shape`` is that of x, where the user said it."""
    where = npz.existing(path, EXPECTED)
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

    ``path`` is an .npz file, or a folder of images, which are cropped and resized to the shape of x, converted into ``cache_dir``,
    and whose alpha channel is refused, a 'mask' or dropped, as ``alpha`` says. The ``corruption`` assumed says which shapes y and
    the operators must have; ``scale`` multiplies y, and 1 brings grey levels of uint8 or uint16 to [-2, 2].

    Entries of y that are not measured (hidden by a mask) may hold anything, NaN too: they read as 0. Where a mask is expected and
    the file has none, NaN are hidden, all else is seen. Arrays that are large stay on disk as lazy ``Rows``. UserError for a file that
    is missing, damaged or pickled; wrong shapes, dtypes or counts; NaN or infinity in seen entries; values far outside of [-2, 2];
    masks with other values than 0 and 1 or that hide everything. Guesses are warned of.
    """
    where = npz.existing(path, EXPECTED)
    shape, wanted, masked = tuple(corruption.shape), tuple(corruption.operator_names()), isinstance(corruption, Mask)
    tree = jax.eval_shape(corruption.draw_operator, jax.random.key(0))
    expected = tuple(jax.eval_shape(corruption.forward, jax.ShapeDtypeStruct(shape, jnp.float32), tree).shape)
    resized = shape if masked or isinstance(corruption, Denoising) else None
    y, found, notes = _read(where, cache_dir, (*KNOWN, *wanted), resized if where.is_dir() else expected, alpha)
    checks.check_dtype(y, f"{where}: 'y'", integers=scale != 1)
    if masked and not found.keys() & {"mask", "operator"}:
        found["mask"], note = _make_mask(y, corruption.mask_shape[-1] == 1, str(where))
        notes.append(note)
    operator = _read_operator(corruption, found, tree, len(y), where)
    if y.shape[1:] != expected:
        cure = "correct the file, or data.shape and the corruption"
        raise UserError(f"{where}: 'y' has shape {y.shape}; expected {('N', *expected)}; {cure}")
    seen = seen_anywhere(corruption, operator)
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
    where: Path, cache_dir: Place | None, names: tuple[str, ...], shape: Shape | None, alpha: str
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
            largest = f"config.corruption.noise_std_max={float(np.max(np.asarray(found[name]))):g} (the largest)"
            cure = f"set {largest} and config.corruption.noise_std (the smallest)"
            raise UserError(f"{where}: holds 'noise_std'; expected none, {kind} has one noise for all; {cure}")
        use = f"{', '.join(map(repr, wanted))}, which {kind} draws" if wanted else f"none, {kind} draws no operator"
        raise UserError(f"{where}: holds {name!r}; expected {use}; choose the corruption that made the data")
    leaves, structure = jax.tree.flatten(tree)
    arrays = []
    for name, leaf in zip(wanted, leaves, strict=True):
        if name not in found:
            raise UserError(f"{where}: no array {name!r} in it; expected {('N', *leaf.shape)}; add one per example")
        array, size = found[name], int(np.prod(corruption.shape))
        arrays.append(_fit_operator(array, count, leaf, name, f"{where}: {name!r}", size))
    return jax.tree.unflatten(structure, arrays)


def _is_mask(name: str) -> bool:
    """Whether an array of this name holds zeros and ones alone: 'mask', or a stage's 'mask_2'."""
    return name.rstrip("0123456789").rstrip("_") == "mask"


def seen_anywhere(corruption: Any, operator: PyTree) -> Any:
    """Which entries of y are measured under operators [N, ...], as rows that broadcast to those of y; None where all are."""
    if isinstance(corruption, Mask):
        return operator
    draw = corruption.draw_operator
    if jax.eval_shape(lambda key: None if corruption.observed(draw(key)) is True else 0, jax.random.key(0)) is None:
        return None
    return _Seen(corruption.observed, operator)


class _Seen:
    """Rows of ``observed``, computed when they are asked for."""

    def __init__(self, observed: Any, operator: PyTree):
        self.observed, self.operator = jax.jit(jax.vmap(observed)), operator

    def __getitem__(self, index: Any) -> np.ndarray:
        if np.ndim(index) == 0 and not isinstance(index, slice):
            return self[np.asarray([index])][0]
        return np.asarray(self.observed(jax.tree.map(lambda a: jnp.asarray(np.asarray(a[index])), self.operator)))


def _fit_operator(array: ArrayLike, count: int, expected: Any, name: str, where: str, size: int) -> ArrayLike:
    """One array of the operators, checked, with a leading axis N = ``count``; whole numbers are indices below ``size``."""
    indices, shape = expected.dtype.kind == "i", tuple(expected.shape)
    checks.check_dtype(array, where, integers=_is_mask(name) or indices)
    if isinstance(array, np.ndarray) and array.ndim > len(shape) + 1 and math.prod(array.shape[1:]) == math.prod(shape):
        array = array.reshape(len(array), *shape)
    if array.shape == shape:
        array = np.broadcast_to(np.asarray(array), (count, *shape))
    elif array.shape[1:] != shape:
        expected_shape = f"{(count, *shape)}, or {shape} for all examples"
        cure = "reshape it (a mask of images ends in an axis of length 1)"
        raise UserError(f"{where} has shape {array.shape}; expected {expected_shape}; {cure}")
    elif len(array) != count:
        raise UserError(f"{where} holds {len(array)} entries; expected {count}, as 'y' has; one per example")
    if _is_mask(name):
        checks.check_mask(array, where)
    elif indices:
        return checks.read_indices(array, expected.dtype, size, where)
    else:
        checks.check_values(array, where, largest=1e6)
    if name.startswith("noise_std") and not all((rows > 0).all() for _, rows in read_parts(array)):
        raise UserError(f"{where}: a value that is not positive; expected standard deviations > 0; correct them")
    return kept(array)


def _make_mask(y: np.ndarray, one_channel: bool, where: str) -> tuple[np.ndarray, str]:
    """A mask where the file has none, uint8 [N, *X] or [N, *spatial, 1], and a sentence on it: NaN are hidden, all else seen."""
    one_channel = one_channel and y.ndim > 2
    mask = np.ones((*y.shape[:-1], 1) if one_channel else y.shape, np.uint8)
    missing, zeros = 0, 0
    for start, rows in read_parts(y) if y.dtype.kind == "f" else ():
        unknown = np.isnan(rows)
        zeros, missing = zeros + int((rows == 0).sum()), missing + int(unknown.sum())
        if one_channel and (unknown.any(-1) != unknown.all(-1)).any():
            cure = "expected a mask per channel; set config.corruption.per_channel=True"
            raise UserError(f"{where}: 'y' is NaN in some channels of a pixel alone; {cure}")
        mask[start : start + len(rows)] = ~(unknown[..., :1] if one_channel else unknown)
    if missing:
        share = f"the {missing / y.size:.1%} of 'y' that are NaN are taken as hidden, the rest as seen"
        return mask, f"{where}: no 'mask'; {share}"
    if zeros > MOST_ZEROS * y.size:
        found = f"no array 'mask' in it, and {zeros / y.size:.0%} of 'y' is exactly 0"
        raise UserError(f"{where}: {found}; expected a mask {('N', *mask.shape[1:])}, or NaN where hidden; add one")
    return mask, f"{where}: no 'mask'; all of 'y' is taken as seen"


def check_units(observations: Observation, corruption: Any, where: str) -> None:
    """Refuses y of a linear corruption that is smaller than its noise, or whose x is far from [-2, 2], with the factor that helps."""
    if not corruption.is_linear:
        return
    seen = seen_anywhere(corruption, observations.operator)
    if (size := _rms(observations.y, seen)) == 0:
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
    table = checks.OR_TABLE if len(corruption.shape) == 1 else ""
    factor = f"config.data.scale={float(f'{per_x / size:.1g}'):g}, which multiplies y and is undone in draws"
    found = f"'y' has values of size {size:.2g} (root mean square){below}"
    cure = f"set {factor}, and give noise_std after scaling{table}"
    raise UserError(f"{where}: {found}; expected data in [-2, 2] and noise_std in the same units; {cure}")


def _rms(values: Any, seen: Any) -> float:
    """The root mean square of up to ``EXAMPLES`` rows, of seen entries alone; 0 where there are none."""
    index = np.unique(np.linspace(0, len(values) - 1, EXAMPLES).astype(np.int64))
    rows = np.asarray(values[index], np.float64)
    weight = np.ones_like(rows) if seen is None else np.broadcast_to(np.asarray(seen[index]) > 0, rows.shape)
    return float(np.sqrt(np.sum(np.where(weight > 0, rows, 0.0) ** 2) / max(float(weight.sum()), 1.0)))


def _gain(corruption: Any, operator: Any) -> float:
    """The root mean square of A x for x of root mean square 1: white noise or a constant, whichever is larger."""
    white, forward = jax.random.normal(jax.random.key(0), corruption.shape), jax.jit(corruption.forward)
    return max(float(np.sqrt(np.mean(np.square(forward(x, operator))))) for x in (white, np.ones_like(white)))
