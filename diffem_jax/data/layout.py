"""The axes of arrays that people bring: channels first, no channel axis, or one image without the axis N."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffem_jax.errors import UserError
from diffem_jax.types import Shape

CHANNELS = (1, 2, 3, 4)
SMALLEST_SIDE = 5  # axes shorter than this are not taken for the side of an image


def arrange(
    y: np.ndarray, found: Mapping[str, Any], shape: Shape | None, where: str
) -> tuple[np.ndarray, dict[str, Any], str]:
    """Brings y and a mask of the same axes to [N, *spatial, channels]; nothing is copied.

    y may be channels first [N, C, H, W], grey [N, H, W], or one example without the axis N; ``shape`` is that of an example, where
    the user said it. Returns (y, the other arrays found, a sentence or ''); UserError where the axes could mean two things.
    """
    mask, example = found.get("mask"), y.shape[1:]
    if shape is not None and y.shape == shape and (mask is None or mask.ndim == y.ndim):
        return y[None], _with_mask(found, lambda m: m[None]), f"{where}: one example, without the axis N"
    if shape is not None and example == shape:
        return y, dict(found), ""
    if _channels_first(example, shape) and (mask is None or (mask.ndim == 4 and mask.shape[1] in (1, example[0]))):
        moved = np.moveaxis(y, 1, -1)
        note = f"{where}: 'y' {y.shape} has its channels first; read as {moved.shape}"
        return moved, _with_mask(found, lambda m: np.moveaxis(m, 1, -1)), note
    if _lacks_channels(example, shape, mask is not None) and (mask is None or mask.shape == y.shape):
        note = f"{where}: 'y' {y.shape} read as {len(y)} grey images; set config.data.shape={example} if series"
        return y[..., None], _with_mask(found, lambda m: m[..., None]), note
    if shape is None and y.ndim == 3 and _may_be_one_image(y):
        cure = f"set config.data.shape={y.shape} for one image, or config.data.shape={example} for series"
        found_shape = f"'y' has shape {y.shape}, which may be one image, or {len(y)} series"
        raise UserError(f"{where}: {found_shape}; expected [N, H, W, C] for images; {cure}")
    return y, dict(found), ""


def _with_mask(found: Mapping[str, Any], change: Any) -> dict[str, Any]:
    return {name: change(array) if name == "mask" else array for name, array in found.items()}


def _channels_first(example: Shape, shape: Shape | None) -> bool:
    if len(example) != 3 or math.prod(example) == 0:
        return False
    if shape is not None:
        return (*example[1:], example[0]) == shape
    return example[0] in CHANNELS and example[-1] not in CHANNELS and min(example[1:]) >= SMALLEST_SIDE


def _lacks_channels(example: Shape, shape: Shape | None, masked: bool) -> bool:
    if len(example) != 2 or min(example) < SMALLEST_SIDE:
        return False
    return (*example, 1) == shape if shape is not None else masked or example[0] == example[1]


def _may_be_one_image(y: np.ndarray) -> bool:
    grey = y.dtype in (np.uint8, np.uint16)
    return y.shape[-1] in (1, 3, 4) and min(y.shape[:2]) >= SMALLEST_SIDE and (y.shape[0] == y.shape[1] or grey)
