"""Folders of a user's corrupted images: ``images/``, and ``masks/`` of the same names or an alpha channel that is the mask."""

from pathlib import Path

import numpy as np

from diffem_jax.data import images
from diffem_jax.data.checks import first_example
from diffem_jax.errors import UserError
from diffem_jax.storage.rows import ArrayLike, Rows, read_parts
from diffem_jax.types import Shape


def read_folder(root: Path, cache: Path, shape: Shape | None, alpha: str) -> tuple[np.ndarray, dict[str, ArrayLike]]:
    """The images of a folder, y [N, H, W, C] uint8 or uint16, and {'mask': [N, H, W, 1]} where it has masks, else {}.

    ``root`` holds ``images/`` (or the images themselves) and ``masks/``. Every image is cropped and resized to ``shape`` (H, W, C),
    masked ones by single pixels. An alpha channel that is not opaque is refused, a 'mask' (0 hidden, 255 seen), or dropped. UserError
    for unreadable images, missing or grey masks, an alpha channel that nobody asked for, or an EXIF turn beside masks.
    """
    pictures = root / "images" if (root / "images").is_dir() else root
    masks = pictures.parent / "masks"
    files, beside = images.image_files(pictures), masks.is_dir()
    if alpha == "mask" and beside:
        raise UserError(f"{masks}: masks beside data.alpha='mask'; expected one of them; drop the folder or the field")
    for file in files:
        has_alpha, turned = images.read_header(file)
        if turned and beside:
            cure = "expected the axes of its mask; save it upright, without EXIF"
            raise UserError(f"{file}: its EXIF data turn it; {cure}")
        if alpha == "refuse" and has_alpha and (read_alpha(file) < 255).any():
            cure = "expected none; set --config.data.alpha=mask (0 hidden, 255 seen) or --config.data.alpha=drop"
            raise UserError(f"{file}: has an alpha channel that is not opaque; {cure}")
    y = images.folder(files, cache, shape, nearest=beside or alpha == "mask")
    if not beside and alpha != "mask":
        return y, {}
    read = read_mask if beside else read_alpha
    if beside:
        by_stem = {file.stem: file for file in images.image_files(masks)}
        if missing := [file.name for file in files if file.stem not in by_stem]:
            without = f"no mask for {len(missing)} of {len(files)} images, the first {missing[0]}"
            raise UserError(f"{masks}: {without}; expected a mask of the same name for each; add them")
        files = [by_stem[file.stem] for file in files]
    return y, {"mask": _mask(images.folder(files, cache, (*y.shape[1:3], 1), nearest=True, read=read), files)}


def read_mask(file: Path, channels: int | None = None) -> np.ndarray:
    """A mask's grey levels [H, W, 1]; its alpha channel must be opaque."""
    levels, alpha = images.read_layers(file, 1)
    if alpha is not None and alpha.min(initial=255) < 255:
        raise UserError(f"{file}: a mask with a transparent alpha channel; expected grey 0 and 255; save it as grey")
    return levels


def read_alpha(file: Path, channels: int | None = None) -> np.ndarray:
    """An image's alpha channel [H, W, 1], opaque where it has none."""
    array, alpha = images.read_layers(file)
    return np.full((*array.shape[:2], 1), 255, np.uint8) if alpha is None else alpha[..., None]


def _mask(levels: np.ndarray, files: list[Path]) -> Rows:
    """Rows of 0 and 1 from grey levels of 0 and 255, or of 0 and 1."""
    white = 255 if any((rows > 1).any() for _, rows in read_parts(levels)) else 1
    for start, rows in read_parts(levels):
        wrong = (rows != 0) & (rows != white)
        if wrong.any():
            file = files[start + first_example(wrong)]
            raise UserError(f"{file}: grey levels between black and white; expected 0 (hidden), 255 (seen); use PNG")
    return Rows(levels, 1 / white)
