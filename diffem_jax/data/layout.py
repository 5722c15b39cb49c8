"""The axes of arrays that people bring: channels first, no channel axis, or one image without the axis N."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffem_jax.errors import UserError

CHANNELS = (1, 2, 3, 4)
SMALLEST_SIDE = 5
"""Axes shorter than this are not taken for the side of an image."""


def arrange(
    y: np.ndarray, found: Mapping[str, Any], shape: tuple[int, ...] | None, where: str
) -> tuple[np.ndarray, dict[str, Any], str]:
    """Brings y and the masks to [N, *spatial, channels]; nothing is copied.

    Read are: channels first ([N, 3, H, W]), grey images without their channel axis ([N, H, W]), and one example without the
    axis N. Masks must lack or order the same axes as y.

    Args:
        y: the observations.
        found: the other arrays of the file.
        shape: the shape of one example, where the user said it.
        where: names the file in messages.

    Returns:
        (y, the other arrays, a sentence on what was changed or '').

    Raises:
        UserError: the axes could mean two things.
    """
    masks = {name: array for name, array in found.items() if name == "mask"}
    if shape is not None and y.shape == shape and _all(masks, lambda m: m.ndim == y.ndim):
        return y[None], {**found, **{n: m[None] for n, m in masks.items()}}, f"{where}: one example, without the axis N"
    images = y.shape[1:]
    if shape is not None and images == shape:
        return y, dict(found), ""
    if _channels_first(images, shape) and _all(masks, lambda m: m.ndim == 4 and m.shape[1] in (1, images[0])):
        moved = {n: np.moveaxis(m, 1, -1) for n, m in masks.items()}
        note = f"{where}: 'y' {y.shape} has its channels first; read as {(len(y), *images[1:], images[0])}"
        return np.moveaxis(y, 1, -1), {**found, **moved}, note
    if _lacks_channels(images, shape, masks) and _all(masks, lambda m: m.shape == y.shape):
        added = {n: m[..., None] for n, m in masks.items()}
        note = f"{where}: 'y' {y.shape} read as {len(y)} grey images; set config.data.shape={images} if they are series"
        return y[..., None], {**found, **added}, note
    if shape is None and y.ndim == 3 and _may_be_one_image(y):
        raise UserError(
            f"{where}: 'y' has shape {y.shape}, which may be one image, or {len(y)} series; expected [N, H, W, C] for images; set "
            f"config.data.shape={y.shape} for one image, or config.data.shape={images} for series"
        )
    return y, dict(found), ""


def _all(masks: Mapping[str, Any], holds: Any) -> bool:
    return all(holds(mask) for mask in masks.values())


def _channels_first(images: tuple[int, ...], shape: tuple[int, ...] | None) -> bool:
    if len(images) != 3 or math.prod(images) == 0:
        return False
    if shape is not None:
        return (*images[1:], images[0]) == shape
    return images[0] in CHANNELS and images[-1] not in CHANNELS and min(images[1:]) >= SMALLEST_SIDE


def _lacks_channels(images: tuple[int, ...], shape: tuple[int, ...] | None, masks: Mapping[str, Any]) -> bool:
    if len(images) != 2 or min(images) < SMALLEST_SIDE:
        return False
    if shape is not None:
        return (*images, 1) == shape
    return images[0] == images[1] or bool(masks)


def _may_be_one_image(y: np.ndarray) -> bool:
    grey = y.dtype in (np.uint8, np.uint16)
    return y.shape[-1] in (1, 3, 4) and min(y.shape[:2]) >= SMALLEST_SIDE and (y.shape[0] == y.shape[1] or grey)
