"""Sources of clean examples, by name, for simulated experiments.

Real use needs none of them: see ``diffem_jax.data.observations``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffem_jax.config import lookup
from diffem_jax.data import images, synthetic, units
from diffem_jax.data.npz import existing, read_arrays
from diffem_jax.errors import UserError
from diffem_jax.storage.files import cache_folder, check_memory
from diffem_jax.storage.rows import as_rows, chunks, first, release


class Dataset(NamedTuple):
    """Clean examples.

    Attributes:
        x: [N, *shape] float32, a plain array, or lazy ``Rows`` where it is large: index rows, ``np.asarray`` reads all.
        labels: [N] int64, or None.
        shape: the shape of one example.
        test_x: held-out examples [M, *shape], or None.
        test_labels: [M] int64, or None.
        offset: for tables, [D]; original columns are ``x * scale + offset``. None otherwise.
        scale: for tables, [D]. None otherwise.
    """

    x: Any
    labels: Any
    shape: tuple[int, ...]
    test_x: Any = None
    test_labels: Any = None
    offset: Any = None
    scale: Any = None


class _Request(NamedTuple):
    name: str
    path: str | os.PathLike[str] | None
    split: str
    num_examples: int | None
    seed: int
    shape: tuple[int, ...] | None
    crop: int | None
    cache: Path


def _dataset(x: Any, labels: Any = None, test_x: Any = None, test_labels: Any = None, **more: Any) -> Dataset:
    return Dataset(x, labels, tuple(x.shape[1:]), test_x, test_labels, **more)


def _fixed_shape(
    r: _Request, default: tuple[int, ...], pattern: Callable[[tuple[int, ...]], bool], expected: str
) -> Any:
    shape = r.shape or default
    if not pattern(shape):
        raise UserError(f"data.shape: {shape} for {r.name}; expected {expected}; leave it out for {default}")
    return shape


def _made(make: Callable[..., np.ndarray], default_count: int, r: _Request, size: int) -> Dataset:
    count = r.num_examples or default_count
    # The curve's 32 terms are there at once in double precision, and so is the line that it is scaled by.
    check_memory("config.data.num_examples", count, count * max(8 * 32, 4 * size))
    check_memory("config.data.shape", r.shape, 4097 * 8 * size)
    x = make(r.num_examples or default_count, r.seed, "train", size)
    return _dataset(x, None, make(2048, r.seed, "test", size))


def _manifold(r: _Request) -> Dataset:
    shape = _fixed_shape(r, (5,), lambda s: len(s) == 1 and s[0] >= 2, "(D,) with D >= 2")
    return _made(synthetic.manifold, 65_536, r, shape[0])


def _series(r: _Request) -> Dataset:
    shape = _fixed_shape(r, (128, 1), lambda s: len(s) == 2 and s[0] >= 8 and s[1] == 1, "(T, 1) with T >= 8")
    return _made(synthetic.series, 8192, r, shape[0])


def _volumes(r: _Request) -> Dataset:
    ok = lambda s: len(s) == 4 and s[0] == s[1] == s[2] >= 8 and s[3] == 1  # noqa: E731
    shape = _fixed_shape(r, (16, 16, 16, 1), ok, "(S, S, S, 1) with S >= 8")
    check_memory("config.data.num_examples", r.num_examples or 4096, 4 * (r.num_examples or 4096) * shape[0] ** 3)
    train = synthetic.volumes(r.num_examples or 4096, r.seed, "train", shape[0])
    return _dataset(train, None, synthetic.volumes(256, r.seed, "test", shape[0]))


def _digits(r: _Request) -> Dataset:
    _fixed_shape(r, (8, 8, 1), lambda s: s == (8, 8, 1), "(8, 8, 1)")
    import tensorflow_datasets as tfds

    from diffem_jax.data.digits import prepare_digits

    builder = tfds.builder_from_directory(prepare_digits(r.cache / "tfds"))
    parts: list[Any] = []
    for split in ("train", "test"):
        source: Any = builder.as_data_source(split=split)
        examples = source.__getitems__(list(range(len(source))))
        parts.append(np.stack([e["image"] for e in examples]).astype(np.float32) / 4.0 - 2.0)
        parts.append(np.array([int(e["label"]) for e in examples], np.int64))
    return _dataset(*parts)


def _patches(r: _Request) -> Dataset:
    shape = r.shape or (32, 32, 3)
    train = images.patches("train", r.num_examples or 32_768, shape)
    return _dataset(as_rows(train), None, as_rows(images.patches("test", 2048, shape)))


def _tfds(r: _Request) -> Dataset:
    name = r.name.removeprefix("tfds:")
    own = "train" if r.split == "all" else r.split
    x, labels = images.tfds_images(name, own, None if r.split == "all" else r.num_examples, r.cache, r.shape, r.crop)
    if own == "test":
        return _dataset(as_rows(x), labels, as_rows(x), labels)
    if own != "train" or "test" not in images.tfds_splits(name, r.cache):
        return _dataset(as_rows(x), labels)
    test, test_labels = images.tfds_images(name, "test", images.MAX_TEST, r.cache, r.shape, r.crop)
    return _dataset(as_rows(x), labels, as_rows(test), test_labels)


def _folder(r: _Request) -> Dataset:
    if r.path is None:
        raise UserError("data.path: None for data.name 'folder'; expected a folder of PNG, JPEG or TIFF files; set it")
    root = existing(r.path, "a folder of PNG, JPEG or TIFF files")
    if not root.is_dir():
        raise UserError(f"{root}: a file; expected a folder of PNG, JPEG or TIFF files; name the folder")
    train = root / "train" if (root / "train").is_dir() else root
    x = images.folder(images.image_files(train)[: r.num_examples], r.cache, r.shape, r.crop)
    if not (root / "test").is_dir():
        return _dataset(units.grey_rows(x))
    test = images.folder(images.image_files(root / "test"), r.cache, tuple(x.shape[1:]), r.crop)
    return _dataset(units.grey_rows(x), None, units.grey_rows(test))


def _finite(x: np.ndarray, where: str) -> None:
    if x.dtype.kind != "f":
        return
    for part in chunks(len(x), x[:1].nbytes):
        bad = ~np.isfinite(x[part].reshape(len(x[part]), -1)).all(-1)
        release(x)
        if bad.any():
            raise UserError(
                f"{where}: NaN or infinity in example {part.start + int(bad.argmax())}; expected numbers; "
                "if they mark missing entries, see own_data: y with a mask"
            )


def _arrays(r: _Request) -> Dataset:
    if r.path is None:
        raise UserError("data.path: None for data.name 'arrays'; expected an .npz or .npy file; set it")
    found = read_arrays(r.path, ("x", "labels", "test_x", "test_labels"))
    if "x" not in found:
        raise UserError(f"{r.path}: no array 'x' in it; expected x [N, ...]; save with numpy.savez(path, x=...)")
    for name, array in found.items():
        where = f"{r.path}: {name!r}"
        if name.endswith("labels"):
            if array.ndim != 1 or array.dtype.kind not in "iu" or len(array) != len(found[name.replace("labels", "x")]):
                raise UserError(f"{where}: {array.dtype} {array.shape}; expected one integer label an example")
            continue
        if array.ndim < 2 or len(array) == 0 or (array.dtype.kind != "f" and array.dtype not in (np.uint8, np.uint16)):
            raise UserError(
                f"{where}: {array.dtype} {array.shape}; expected floats [N, ...] in [-2, 2] or grey levels of uint8 or uint16, N > 0; convert it"
            )
        if r.shape is not None and array.shape[1:] != r.shape:
            raise UserError(f"{where}: examples of shape {array.shape[1:]}; expected {r.shape} as data.shape says")
        _finite(array, where)
    labels = {k: found[k].astype(np.int64) if k in found else None for k in ("labels", "test_labels")}
    test = units.grey_rows(found["test_x"]) if "test_x" in found else None
    return _dataset(units.grey_rows(found["x"]), labels["labels"], test, labels["test_labels"])


def _table(r: _Request) -> Dataset:
    from sklearn import datasets

    table = {"breast_cancer": datasets.load_breast_cancer, "wine": datasets.load_wine}[r.name]()
    columns = table.data.astype(np.float64)
    _fixed_shape(r, columns.shape[1:], lambda s: s == columns.shape[1:], f"{columns.shape[1:]}")
    offset, scale = columns.mean(0), columns.std(0)
    order = synthetic.generator(r.name).permutation(len(columns))
    x = ((columns - offset) / scale).astype(np.float32)[order]
    labels = table.target.astype(np.int64)[order]
    held_out = len(x) // 5
    return _dataset(
        x[held_out:],
        labels[held_out:],
        x[:held_out],
        labels[:held_out],
        offset=offset.astype(np.float32),
        scale=scale.astype(np.float32),
    )


SOURCES: dict[str, Callable[[_Request], Dataset]] = {
    "manifold": _manifold,
    "digits": _digits,
    "patches": _patches,
    "folder": _folder,
    "arrays": _arrays,
    "breast_cancer": _table,
    "wine": _table,
    "series": _series,
    "volumes": _volumes,
}


def load(
    name: str,
    *,
    path: str | os.PathLike[str] | None = None,
    split: str = "train",
    num_examples: int | None = None,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    crop: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads a set of clean examples with values in [-2, 2] (tables: columns of mean 0 and std 1).

    Args:
        name: one of ``SOURCES``, 'tfds:NAME' for a prepared tensorflow-datasets image set, or 'module:name' for a function of
            your own, request -> Dataset; the request has these arguments as attributes.
        path: the file or folder of 'arrays' and 'folder'.
        split: 'train'; 'test' for the held-out examples alone; 'all' for both; for tfds any split of the set.
        num_examples: the first so many; None for the source's default.
        seed: for the sets that are drawn: which points. The manifold's curve never depends on it.
        shape: the shape of one example, where the source has a choice (size of patches, dimension of the manifold,
            length of series, size that images are cropped and resized to).
        crop: for 'folder' and tfds: side of the centre square that is cut before resizing.
        cache_dir: prepared data; None for $DIFFEM_DATA_DIR or ~/.cache/diffem_jax.

    Raises:
        UserError: an unknown name, a file that is not as expected, more examples asked for than there are.
    """
    source = _tfds if name.startswith("tfds:") else lookup("data.name", name, SOURCES)
    if num_examples is not None and num_examples < 1:
        raise UserError(f"data.num_examples: {num_examples}; expected at least 1, or None for all; correct it")
    if not name.startswith("tfds:") and split not in ("train", "test", "all"):
        raise UserError(f"data.split: {split!r}; expected 'train', 'test' or 'all'; correct it")
    request = _Request(
        name,
        path,
        split,
        num_examples if split == "train" or name.startswith("tfds:") else None,
        seed,
        tuple(int(n) for n in shape) if shape is not None else None,
        crop,
        cache_folder(cache_dir),
    )
    data = source(request)
    if split in ("test", "all") and data.test_x is None:
        raise UserError(f"data.split: {split!r}; {name} has no held-out examples; use 'train'")
    if split == "test" and data.test_x is not None:
        data = data._replace(x=data.test_x, labels=data.test_labels)
    elif split == "all":
        joined = np.concatenate([np.asarray(data.x), np.asarray(data.test_x)])
        both = data.labels is not None and data.test_labels is not None
        data = data._replace(x=joined, labels=np.concatenate([data.labels, data.test_labels]) if both else None)
    if num_examples is not None and num_examples > len(data.x):
        raise UserError(f"data.num_examples: {num_examples}; {name} has {len(data.x)} in split {split!r}; lower it")
    return data._replace(x=first(data.x, num_examples), labels=first(data.labels, num_examples))
