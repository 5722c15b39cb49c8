"""Sets of images: crops of shipped photographs, folders of files, and tensorflow-datasets read without TensorFlow."""

import contextlib
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from diffem_jax.data.synthetic import generator
from diffem_jax.errors import UserError
from diffem_jax.storage.files import cached_arrays
from diffem_jax.types import Shape

PHOTOGRAPHS = (
    "skimage/data/astronaut.png", "skimage/data/chelsea.png", "skimage/data/coffee.png", "skimage/data/motorcycle_left.png",
    "skimage/data/rocket.jpg", "sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg",
)  # fmt: skip
"""Colour photographs inside the installed packages; nothing is downloaded."""
TEST_SHARE = 0.2
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
TFDS_CROPS = {"celeb_a": 140}  # side of the centre square cut before resizing, where a set is known to need it
MAX_TEST = 10_000


def _photographs() -> Iterator[np.ndarray]:
    from PIL import Image

    for photograph in PHOTOGRAPHS:
        package, _, name = photograph.partition("/")
        spec = find_spec(package)
        file = Path(spec.origin).parent / name if spec and spec.origin else None
        if file is None or not file.exists():
            cure = "expected the installed packages whole; run pip install scikit-image scikit-learn"
            raise UserError(f"data.name: patches: {photograph} is missing; {cure}")
        with Image.open(file) as image:
            yield np.asarray(image.convert("RGB"))


def patches(split: str, count: int | None, shape: Shape) -> np.ndarray:
    """The first ``count`` overlapping crops of seven photographs in one fixed random order, uint8 [N, S, S, 3], or 1 of luminance.

    The right fifth of every photograph is for tests alone. Crops lie on a grid of S/8 pixels (S/4 for tests); for S <= 16 the
    photographs are first halved, so that a small crop has content.
    """
    if len(shape) != 3 or shape[0] != shape[1] or not 4 <= shape[0] <= 64 or shape[2] not in (1, 3):
        raise UserError(f"data.shape: {shape} for patches; expected (S, S, 3) or (S, S, 1) with S from 4 to 64")
    size, channels = shape[0], shape[2]
    stride = max(1, size // (8 if split == "train" else 4))
    windows = []
    for photo in _photographs():
        if channels == 1:
            photo = np.round(photo @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None]
        if size <= 16:  # 2x2 area averages
            h, w = photo.shape[0] // 2, photo.shape[1] // 2
            blocks = photo[: 2 * h, : 2 * w].reshape(h, 2, w, 2, channels).astype(np.float32)
            photo = np.round(blocks.mean((1, 3))).astype(np.uint8)
        border = round(photo.shape[1] * (1 - TEST_SHARE))
        region = photo[:, :border] if split == "train" else photo[:, border:]
        windows.append(np.lib.stride_tricks.sliding_window_view(region, (size, size), axis=(0, 1))[::stride, ::stride])
    counts = [view.shape[0] * view.shape[1] for view in windows]
    order = generator(f"patches/{split}").permutation(sum(counts))[:count]
    crops = np.empty((len(order), size, size, channels), np.uint8)
    for view, number, end in zip(windows, counts, itertools.accumulate(counts), strict=True):
        chosen = np.flatnonzero((end - number <= order) & (order < end))
        row, column = np.divmod(order[chosen] - (end - number), view.shape[1])
        crops[chosen] = np.moveaxis(view[row, column], 1, -1)
    return crops


def fit(image: np.ndarray, shape: Shape | None, crop: int | None = None, nearest: bool = False) -> np.ndarray:
    """Centre crop and resize of an image [H, W] or [H, W, C] of uint8 or uint16, to ``shape`` (H, W, C), C 1 or 3.

    ``crop`` is the side of the centre square that is cut first; None cuts the largest window of the wanted aspect. ``nearest``
    takes single pixels, for masks and what they hide.
    """
    image = image[..., None] if image.ndim == 2 else image
    h, w = height, width = image.shape[:2]
    if crop:
        h = w = min(crop, height, width)
    elif shape:
        scale = min(height / shape[0], width / shape[1])
        h, w = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
    top, left = (height - h) // 2, (width - w) // 2
    image = image[top : top + h, left : left + w]
    if shape and image.shape[:2] != shape[:2]:
        if nearest:
            rows, columns = (np.arange(n) * 2 * m + m for n, m in zip(shape[:2], image.shape[:2], strict=True))
            image = image[rows // (2 * shape[0])][:, columns // (2 * shape[1])]
        else:
            image = np.stack([_resized(layer, (shape[1], shape[0])) for layer in np.moveaxis(image, -1, 0)], -1)
    if shape and image.shape[-1] != shape[2]:
        if (image.shape[-1], shape[2]) != (1, 3):
            raise UserError(f"data.shape: {shape} for an image of {image.shape[-1]} channels; expected as many")
        image = np.repeat(image, 3, -1)
    return image


def _resized(layer: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    exact = layer if layer.dtype == np.uint8 else layer.astype(np.float32)
    found = np.asarray(Image.fromarray(exact).resize(size, Image.Resampling.LANCZOS))
    return np.clip(np.round(found), 0, np.iinfo(layer.dtype).max).astype(layer.dtype)


def _check_shape(shape: Shape | None) -> None:
    if shape and (len(shape) != 3 or shape[2] not in (1, 3)):
        raise UserError(f"data.shape: {shape} for images; expected (height, width, channels) with 1 or 3 channels")


def image_files(folder: Path) -> list[Path]:
    """The PNG, JPEG and TIFF files of a folder, by name; UserError where there are none."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
    if not files:
        raise UserError(f"{folder}: no PNG or JPEG files in it; expected images; check the path")
    return files


_ALPHA = ("RGBA", "LA", "PA")
_ORIENTATION = 0x0112


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: cannot be read as an image ({error}); expected PNG, JPEG, TIFF; remove it") from None


def read_header(file: Path) -> tuple[bool, bool]:
    """Whether a file has an alpha channel, and whether its EXIF data turn it; no pixel is decoded."""
    with _opened(file) as image:
        return image.mode in _ALPHA, image.getexif().get(_ORIENTATION, 1) != 1


def read_image(file: Path, channels: int | None = None) -> np.ndarray:
    """One file as [H, W, C], uint16 where it has grey levels of 16 bits, else uint8; turned as its EXIF orientation says.

    Grey files have C = 1, all others 3, unless ``channels`` says which.
    """
    return read_layers(file, channels)[0]


def read_layers(file: Path, channels: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """``read_image``, and the alpha channel [H, W] uint8 where there is one; UserError for none, or one of floating point."""
    from PIL import ImageOps

    with _opened(file) as opened:
        image = ImageOps.exif_transpose(opened) if opened.getexif().get(_ORIENTATION, 1) != 1 else opened
        alpha = np.asarray(image.getchannel("A")) if image.mode in _ALPHA else None
        if image.mode == "F":
            raise ValueError("values of floating point; save them as an .npz with 'y'")
        if image.mode.startswith("I"):
            array = np.asarray(image)
            if array.min(initial=0) < 0 or array.max(initial=0) > 65535:
                raise ValueError(f"values {array.min()} to {array.max()}, beyond 16 bits")
            array = np.repeat(array.astype(np.uint16)[..., None], 3 if channels == 3 else 1, -1)
        else:
            grey = channels == 1 if channels else image.mode in ("1", "L", "LA")
            array = np.asarray(image.convert("L" if grey else "RGB"))
    return (array[..., None] if array.ndim == 2 else array), alpha


def folder(
    files: Sequence[Path],
    cache: Path,
    shape: Shape | None = None,
    crop: int | None = None,
    nearest: bool = False,
    read: Any = read_image,
) -> np.ndarray:
    """Image files as one array [N, H, W, C] of uint8 or uint16, converted once into the cache and memory-mapped.

    ``shape``, ``crop`` and ``nearest`` are those of ``fit``; without a shape all files must be as the first one. ``read`` is (file,
    channels) -> image [H, W, C]. The entry in the cache is keyed by the files' names, sizes and times.
    """
    _check_shape(shape)
    one = fit(read(files[0], shape[2] if shape else None), shape, crop, nearest)
    wanted, dtype = tuple(one.shape), one.dtype
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = hashlib.sha256(repr((stats, wanted, crop, nearest, read.__name__, dtype)).encode()).hexdigest()[:16]

    def make() -> Iterator[tuple[np.ndarray, int]]:
        for file in files:
            image = fit(read(file, wanted[2]), shape, crop, nearest)
            if image.shape != wanted:
                raise UserError(f"{file}: size {image.shape}; expected {wanted} as the first file; set data.shape")
            if image.dtype != dtype:
                raise UserError(f"{file}: {image.dtype} grey levels; expected {dtype} as the first file; convert it")
            yield image, 0

    return cached_arrays(cache / "images" / f"folder-{key}", wanted, len(files), make, dtype)[0]


def prepared_folder(name: str, cache: Path) -> Path | None:
    """Where a prepared tfds set lies under ``cache/tfds``, its newest version; None where it is not prepared."""
    root = cache / "tfds" / name
    found = [info.parent for pattern in ("*/dataset_info.json", "*/*/dataset_info.json") for info in root.glob(pattern)]
    found = [f for f in found if re.fullmatch(r"\d+\.\d+\.\d+", f.name)]
    return max(found, key=lambda f: tuple(map(int, f.name.split("."))), default=None)


def check_tfds_name(name: str) -> str:
    """The name itself, or UserError where it is not one of tensorflow-datasets' form."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*(/[A-Za-z0-9_.\-]+)?", name):
        raise UserError(f"tfds name: {name!r}; expected such as cifar10 or celeb_a; see tensorflow.org/datasets")
    return name


def how_to_prepare(name: str, cache: Path) -> str:
    """What to do where a tfds set is not prepared, on two lines."""
    command = f"pip install 'diffem-jax[tfds]' && python -m diffem_jax.data.prepare {name} --cache_dir=DIR"
    return f"on a connected machine run: {command}\nthen copy the folder DIR/tfds/{name} to {cache / 'tfds' / name} on this machine"


def tfds_builder(name: str, cache: Path) -> Any:
    """The builder of a prepared tfds set, which reads without TensorFlow; UserError says how to prepare it."""
    if (prepared := prepared_folder(check_tfds_name(name), cache)) is None:
        found = f"not prepared, nothing under {cache / 'tfds' / name}; expected a prepared set"
        raise UserError(f"data.name: tfds:{name}: {found}; {how_to_prepare(name, cache)}")
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(prepared)


def tfds_images(
    name: str, split: str, count: int | None, cache: Path, shape: Shape | None, crop: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """A prepared tfds image set as (uint8 [N, H, W, C] memory map, labels [N] or None), converted once without TensorFlow.

    ``split`` is one of the set's, or several joined by '+'. UserError where the set is not prepared, or holds no images or split.
    """
    _check_shape(shape)
    builder, parts = tfds_builder(name, cache), split.split("+")
    features, splits = builder.info.features, sorted(builder.info.splits)
    if unknown := [part for part in parts if part not in splits]:
        expected = f"one of {splits} for tfds:{name}, or several joined by '+', not {unknown[0]!r}"
        raise UserError(f"data.split: {split!r}; expected {expected}; correct it")
    if "image" not in features:
        raise UserError(f"data.name: tfds:{name}: features {sorted(features)}; expected an 'image' feature")
    sources: list[Any] = [builder.as_data_source(split=part) for part in parts]
    whole = sum(map(len, sources))
    total = whole if count is None else min(count, whole)
    if total == 0:
        raise UserError(f"data.name: tfds:{name}: split {split!r} is empty; expected examples")
    crop = crop if crop is not None else TFDS_CROPS.get(name)
    shape = (64, 64, 3) if crop and not shape else shape
    one = fit(np.asarray(next(s for s in sources if len(s))[0]["image"]), shape, crop)

    def make() -> Iterator[tuple[np.ndarray, int]]:
        examples = (source[i] for source in sources for i in range(len(source)))
        for i, example in enumerate(itertools.islice(examples, total)):
            image = fit(np.asarray(example["image"]), shape, crop)
            if image.shape != one.shape or image.dtype != np.uint8:
                found = f"image {i} is {image.dtype} {image.shape}"
                raise UserError(f"tfds:{name}: {found}; expected uint8 {one.shape}; set data.shape")
            yield image, int(example["label"]) if "label" in features else 0

    size = "x".join(map(str, one.shape))
    key = f"{name}-{Path(builder.data_path).name}-{split}-{total}-{size}-{crop or 0}".replace("/", "-")
    x, labels = cached_arrays(cache / "images" / key, one.shape, total, make)
    return x, labels if "label" in features else None
