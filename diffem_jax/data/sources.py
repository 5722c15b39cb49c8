"""Sources of clean examples, by name, for simulated experiments; real use needs ``data.observations`` alone."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffem_jax.config import lookup
from diffem_jax.data import images, synthetic
from diffem_jax.data.checks import check_values
from diffem_jax.data.npz import existing, read_arrays
from diffem_jax.errors import UserError
from diffem_jax.storage.files import Place, cache_folder, check_memory
from diffem_jax.storage.rows import as_rows, first
from diffem_jax.types import Shape


class Dataset(NamedTuple):
    """Clean examples x [N, *shape] and labels [N], and those held out; None is what there is not."""

    x: Any  # float32, a plain array, or lazy ``Rows`` where it is large: index rows, ``np.asarray`` reads all
    labels: Any
    shape: Shape
    test_x: Any = None
    test_labels: Any = None


class Request(NamedTuple):
    """What is asked of a source; one of your own is a function request -> Dataset, named as 'module:name'."""

    name: str  # one of ``SOURCES``, 'tfds:NAME' for a prepared tensorflow-datasets image set, or 'module:name'
    cache: Path  # the folder of prepared data
    path: Place | None = None  # the file or folder of 'arrays' and 'folder'
    split: str = "train"  # 'test' for the held-out examples alone; 'all' for both; for tfds any split of the set
    num_examples: int | None = None  # the first so many; None for the source's default
    seed: int = 0  # which points of the sets that are drawn; the manifold's curve never depends on it
    shape: Shape | None = None  # the shape of one example, where the source has a choice
    crop: int | None = None  # side of the centre square that is cut before images are resized


def _dataset(x: Any, labels: Any = None, test_x: Any = None, test_labels: Any = None) -> Dataset:
    return Dataset(x, labels, tuple(x.shape[1:]), test_x, test_labels)


def _shape_of(r: Request, default: Shape, fits: Callable[[Shape], bool], expected: str) -> Shape:
    shape = r.shape or default
    if not fits(shape):
        raise UserError(f"data.shape: {shape} for {r.name}; expected {expected}; leave it out for {default}")
    return shape


def _draw(r: Request, make: Callable[..., np.ndarray], shape: Shape, count: int, test_count: int = 2048) -> Dataset:
    count, size = r.num_examples or count, shape[0]
    # The curve's 32 terms are there at once in double precision, and so is the line that it is scaled by.
    check_memory("config.data.num_examples", count, count * max(8 * 32, 4 * math.prod(shape)))
    check_memory("config.data.shape", r.shape, 4097 * 8 * size)
    return _dataset(make(count, r.seed, "train", size), None, make(test_count, r.seed, "test", size))


def _manifold(r: Request) -> Dataset:
    shape = _shape_of(r, (5,), lambda s: len(s) == 1 and s[0] >= 2, "(D,) with D >= 2")
    return _draw(r, synthetic.manifold, shape, 65_536)


def _series(r: Request) -> Dataset:
    shape = _shape_of(r, (128, 1), lambda s: len(s) == 2 and s[0] >= 8 and s[1] == 1, "(T, 1) with T >= 8")
    return _draw(r, synthetic.series, shape, 8192)


def _volumes(r: Request) -> Dataset:
    shape = _shape_of(r, (16, 16, 16, 1), lambda s: s == (s[0], s[0], s[0], 1) and s[0] >= 8, "(S, S, S, 1), S >= 8")
    return _draw(r, synthetic.volumes, shape, 4096, 256)


def _digits(r: Request) -> Dataset:
    _shape_of(r, (8, 8, 1), lambda s: s == (8, 8, 1), "(8, 8, 1)")
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


def _patches(r: Request) -> Dataset:
    shape = r.shape or (32, 32, 3)
    train, test = images.patches("train", r.num_examples or 32_768, shape), images.patches("test", 2048, shape)
    return _dataset(as_rows(train), None, as_rows(test))


def _tfds(r: Request) -> Dataset:
    name = r.name.removeprefix("tfds:")
    split, count = ("train", None) if r.split == "all" else (r.split, r.num_examples)
    x, labels = images.tfds_images(name, split, count, r.cache, r.shape, r.crop)
    train = _dataset(as_rows(x), labels)
    if split == "test":
        return train._replace(test_x=train.x, test_labels=labels)
    if split != "train" or "test" not in images.tfds_builder(name, r.cache).info.splits:
        return train
    test, test_labels = images.tfds_images(name, "test", images.MAX_TEST, r.cache, r.shape, r.crop)
    return train._replace(test_x=as_rows(test), test_labels=test_labels)


def _folder(r: Request) -> Dataset:
    expected = "a folder of PNG, JPEG or TIFF files"
    root = existing(_path(r, expected), expected)
    if not root.is_dir():
        raise UserError(f"{root}: a file; expected {expected}; name the folder")
    train = root / "train" if (root / "train").is_dir() else root
    x = images.folder(images.image_files(train)[: r.num_examples], r.cache, r.shape, r.crop)
    if not (root / "test").is_dir():
        return _dataset(as_rows(x))
    test = images.folder(images.image_files(root / "test"), r.cache, tuple(x.shape[1:]), r.crop)
    return _dataset(as_rows(x), None, as_rows(test))


def _path(r: Request, expected: str) -> Place:
    if r.path is None:
        raise UserError(f"data.path: None for data.name {r.name!r}; expected {expected}; set it")
    return r.path


def _arrays(r: Request) -> Dataset:
    found = read_arrays(_path(r, "an .npz or .npy file"), ("x", "labels", "test_x", "test_labels"))
    if "x" not in found:
        raise UserError(f"{r.path}: no array 'x' in it; expected x [N, ...]; save with numpy.savez(path, x=...)")
    for name, array in found.items():
        where = f"{r.path}: {name!r}"
        said = f"{where}: {array.dtype} {array.shape}"
        if name.endswith("labels"):
            if array.ndim != 1 or array.dtype.kind not in "iu" or len(array) != len(found[name.replace("labels", "x")]):
                raise UserError(f"{said}; expected one integer label per example")
            continue
        if array.ndim < 2 or len(array) == 0 or (array.dtype.kind != "f" and array.dtype not in (np.uint8, np.uint16)):
            expected = "floats [N, ...] in [-2, 2] or grey levels of uint8 or uint16, N > 0"
            raise UserError(f"{said}; expected {expected}; convert it")
        if r.shape is not None and array.shape[1:] != r.shape:
            raise UserError(f"{where}: examples of shape {array.shape[1:]}; expected {r.shape} as data.shape says")
        check_values(array, where)
    labels = {k: found[k].astype(np.int64) if k in found else None for k in ("labels", "test_labels")}
    test = as_rows(found["test_x"]) if "test_x" in found else None
    return _dataset(as_rows(found["x"]), labels["labels"], test, labels["test_labels"])


def _table(r: Request) -> Dataset:
    from sklearn import datasets

    table = {"breast_cancer": datasets.load_breast_cancer, "wine": datasets.load_wine}[r.name]()
    columns = table.data.astype(np.float64)
    _shape_of(r, columns.shape[1:], lambda s: s == columns.shape[1:], f"{columns.shape[1:]}")
    order = synthetic.generator(r.name).permutation(len(columns))
    x = ((columns - columns.mean(0)) / columns.std(0)).astype(np.float32)[order]
    labels, held_out = table.target.astype(np.int64)[order], len(x) // 5
    return _dataset(x[held_out:], labels[held_out:], x[:held_out], labels[:held_out])


SOURCES: dict[str, Callable[[Request], Dataset]] = {
    "manifold": _manifold, "digits": _digits, "patches": _patches, "folder": _folder, "arrays": _arrays,
    "breast_cancer": _table, "wine": _table, "series": _series, "volumes": _volumes,
}  # fmt: skip


def load(name: str, *, cache_dir: Place | None = None, **fields: Any) -> Dataset:
    """Loads a set of clean examples with values in [-2, 2] (tables: columns of mean 0 and std 1); ``fields`` are those of ``Request``.

    UserError for an unknown name, a file that is not as expected, or more examples than there are.
    """
    request = Request(name, cache_folder(cache_dir), **fields)
    split, num_examples, prepared = request.split, request.num_examples, name.startswith("tfds:")
    source = _tfds if prepared else lookup("data.name", name, SOURCES)
    if num_examples is not None and num_examples < 1:
        raise UserError(f"data.num_examples: {num_examples}; expected at least 1, or None for all; correct it")
    if not prepared and split not in ("train", "test", "all"):
        raise UserError(f"data.split: {split!r}; expected 'train', 'test' or 'all'; correct it")
    data = source(request._replace(num_examples=num_examples if split == "train" or prepared else None))
    if split in ("test", "all") and data.test_x is None:
        raise UserError(f"data.split: {split!r}; {name} has no held-out examples; use 'train'")
    if split == "test":
        data = data._replace(x=data.test_x, labels=data.test_labels)
    elif split == "all":
        joined = np.concatenate([np.asarray(data.x), np.asarray(data.test_x)])
        both = data.labels is not None and data.test_labels is not None
        data = data._replace(x=joined, labels=np.concatenate([data.labels, data.test_labels]) if both else None)
    if num_examples is not None and num_examples > len(data.x):
        raise UserError(f"data.num_examples: {num_examples}; {name} has {len(data.x)} in split {split!r}; lower it")
    return data._replace(x=first(data.x, num_examples), labels=first(data.labels, num_examples))
