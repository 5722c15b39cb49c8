"""Masks of files that hold none: NaN are hidden, all else is seen."""

from __future__ import annotations

import numpy as np

from diffem_jax.errors import UserError
from diffem_jax.storage.rows import chunks, release

MOST_ZEROS = 0.01
"""The largest share of entries that are exactly 0 in numbers of floating point which are taken as all seen."""


def mask_of(y: np.ndarray, where: str, one_channel: bool) -> tuple[np.ndarray, str]:
    """The mask of y, and a sentence on it.

    Args:
        y: [N, *X].
        where: names the file in messages.
        one_channel: whether the mask has one channel for all of y's; entries must then be NaN in all channels or none.

    Returns:
        (uint8 [N, *X] or [N, *spatial, 1], the sentence).

    Raises:
        UserError: no NaN but many zeros, which look like hidden entries, or NaN in some channels of a pixel alone.
    """
    shape = (*y.shape[:-1], 1) if one_channel and y.ndim > 2 else y.shape
    mask = np.ones(shape, np.uint8)
    missing, zeros = 0, 0
    if y.dtype.kind == "f":
        for part in chunks(len(y), y[:1].nbytes):
            rows = np.asarray(y[part])
            unknown = np.isnan(rows)
            zeros += int((rows == 0).sum())
            missing += int(unknown.sum())
            release(y)
            if shape != y.shape:
                if (unknown.any(-1) != unknown.all(-1)).any():
                    raise UserError(
                        f"{where}: 'y' is NaN in some channels of a pixel alone; expected a mask per channel; set "
                        "config.corruption.per_channel=True"
                    )
                unknown = unknown[..., :1]
            mask[part] = ~unknown
    if missing:
        return (
            mask,
            f"{where}: no 'mask'; the {missing / y.size:.1%} of 'y' that are NaN are taken as hidden, the rest as seen",
        )
    if zeros > MOST_ZEROS * y.size:
        raise UserError(
            f"{where}: no array 'mask' in it, and {zeros / y.size:.0%} of 'y' is exactly 0; expected a mask {('N', *shape[1:])}, or NaN "
            "where nothing was seen; add one"
        )
    return mask, f"{where}: no 'mask'; all of 'y' is taken as seen"
