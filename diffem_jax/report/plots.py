"""Pictures: grids of images and spreads of posterior draws; ``picture`` chooses by shape.

Matplotlib is imported inside the functions; every file is a PNG that is there whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from diffem_jax.errors import UserError
from diffem_jax.report.canvas import HIDDEN, HIGH, INK, LOW, hide_ticks, new_figure, real, save, set_title
from diffem_jax.report.charts import LARGEST_CORNER, calibration, corner, heat_map, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["calibration", "corner", "heat_map", "image_grid", "is_series", "picture", "series", "spread", "spread_grid"]
COLUMNS = 10
_HIDDEN_RGB = np.array([int(HIDDEN[i : i + 2], 16) / 255 for i in (1, 3, 5)], np.float32)
MOST_CHANNELS = 4
Cell = tuple[ArrayLike, dict[str, Any]]
"""An image and the arguments of ``_show``."""


def as_image(x: ArrayLike) -> np.ndarray:
    """One example as something to show: [H, W] or [H, W, 3].

    Args:
        x: [H, W], [H, W, C] with C of 1 or 3 (of other channels the first is shown), or a volume [D, H, W, C], of which
            the middle slice is shown; complex values by their modulus.
    """
    image = real(x)
    if image.ndim == 4:
        image = image[image.shape[0] // 2]
    if image.ndim == 3 and image.shape[-1] != 3:
        image = image[..., 0]
    if image.ndim not in (2, 3):
        raise UserError(f"picture: an example of shape {np.shape(x)}; expected [H, W], [H, W, C] or [D, H, W, C]")
    return image


def _show(axes: Axes, x: ArrayLike, low: float = LOW, high: float = HIGH, cmap: str = "gray") -> None:
    """Draws one image; NaN is hidden, in a colour that no grey has, and infinite values are at the ends of the range."""
    image = as_image(x)
    hidden = np.isnan(image)
    image = np.clip(np.nan_to_num((image - low) / max(high - low, 1e-12)), 0, 1)
    if image.ndim == 2:
        import matplotlib

        image = matplotlib.colormaps[cmap](image)[..., :3]
    else:
        hidden = hidden.any(-1)
    axes.imshow(np.where(hidden[..., None], _HIDDEN_RGB, image), interpolation="nearest")


def _grid(path: str | os.PathLike, rows: Sequence[tuple[str, list[Cell]]], title: str | None) -> Path:
    """Rows of (label, cells)."""
    columns = max(len(cells) for _, cells in rows)
    sample = as_image(rows[0][1][0][0])
    aspect = min(max(sample.shape[0] / sample.shape[1], 0.3), 3.0)
    side = 0.85
    figure = new_figure(side * columns + 1.0, side * aspect * len(rows) + (0.35 if title else 0.05))
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
    for (label, cells), line in zip(rows, axes, strict=True):
        for cell, place in zip(cells, line, strict=False):
            _show(place, cell[0], **cell[1])
            hide_ticks(place)
        for place in line[len(cells) :]:
            place.set_axis_off()
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, color=INK, labelpad=6)
    set_title(figure, title)
    return save(figure, path)


def _range(x: np.ndarray) -> dict[str, float]:
    finite = x[np.isfinite(x)]
    return {"low": float(finite.min()), "high": float(finite.max())} if finite.size else {}


def _observed_label(label: str, observed: np.ndarray) -> str:
    return f"{label}\n(hidden: violet)" if np.isnan(observed).any() else label


def image_grid(
    path: str | os.PathLike,
    observations: ArrayLike,
    reconstructions: ArrayLike,
    truth: ArrayLike | None = None,
    title: str | None = None,
    columns: int = COLUMNS,
    labels: Sequence[str] = ("observed", "reconstruction", "truth"),
) -> Path:
    """Writes rows of images: observed, reconstruction and, where it is known, truth.

    Args:
        path: the PNG to write.
        observations: [N, ...], NaN where hidden; drawn where they are image-shaped, in their own range unless of the reconstructions'
            shape; left out otherwise.
        reconstructions: images in [-2, 2], [N, H, W], [N, H, W, C] or volumes [N, D, H, W, C].
        truth: like reconstructions.
        title: a line above the picture.
        columns: at most how many examples.
        labels: names of the three rows.
    """
    observed, restored = np.asarray(observations)[:columns], np.asarray(reconstructions)[:columns]
    rows = []
    if observed.ndim >= 3:
        # Channels hold the mask in some corruptions; the image itself has the data's range.
        alike = observed.shape[1:3] == restored.shape[1:3]
        rows.append(
            (_observed_label(labels[0], observed), [(y, {} if alike else _range(as_image(y))) for y in observed])
        )
    rows.append((labels[1], [(x, {}) for x in restored]))
    if truth is not None:
        rows.append((labels[2], [(x, {}) for x in np.asarray(truth)[:columns]]))
    return _grid(path, rows, title)


def spread_grid(
    path: str | os.PathLike,
    observation: ArrayLike,
    draws: ArrayLike,
    truth: ArrayLike | None = None,
    title: str | None = None,
    shown: int = 5,
    rows: int = 8,
) -> Path:
    """Writes one column per observation: the observation, several draws, their mean, their standard deviation, the truth.

    Args:
        path: the PNG to write.
        observation: [N, ...].
        draws: posterior draws [S, N, ...] of images.
        truth: [N, ...].
        title: a line above the picture.
        shown: how many draws to show; mean and deviation use all.
        rows: at most how many observations.
    """
    observed, samples = np.asarray(observation), np.asarray(draws)
    if samples.ndim < 4 or samples.shape[1] != observed.shape[0]:
        raise UserError(
            f"spread_grid: draws {samples.shape}; expected [S, N, H, W, ...] with N = {observed.shape[0]} as observed"
        )
    samples, observed = samples[:, :rows], observed[:rows]
    deviation = samples.std(axis=0)
    # A standard deviation has no colour: its channels are averaged.
    deviation = np.stack([image.mean(-1) if image.ndim == 3 else image for image in map(as_image, deviation)])
    largest = float(deviation.max()) or 1.0
    lines: list[tuple[str, list[Cell]]] = []
    if observed.ndim >= 3:
        alike = observed.shape[1:3] == samples.shape[2:4]
        lines.append(
            (_observed_label("observed", observed), [(y, {} if alike else _range(as_image(y))) for y in observed])
        )
    lines += [(f"draw {s + 1}", [(x, {}) for x in samples[s]]) for s in range(min(shown, len(samples)))]
    lines.append((f"mean of {len(samples)}", [(x, {}) for x in samples.mean(axis=0)]))
    lines.append((f"std, 0 to {largest:.2f}", [(x, {"low": 0.0, "high": largest, "cmap": "magma"}) for x in deviation]))
    if truth is not None:
        lines.append(("truth", [(x, {}) for x in np.asarray(truth)[:rows]]))
    return _grid(path, lines, title)


def is_series(shape: tuple[int, ...]) -> bool:
    """Whether an example of this shape is a series [T, C] of a few channels, rather than an image or a vector."""
    return len(shape) == 2 and shape[1] <= MOST_CHANNELS < shape[0]


def picture(
    path: str | os.PathLike,
    observations: ArrayLike,
    reconstructions: ArrayLike,
    truth: ArrayLike | None = None,
    title: str | None = None,
) -> Path:
    """Writes what suits the reconstructions' shape [N, *X]: a corner plot, a heat map, series or a grid of images."""
    shape = np.shape(reconstructions)
    if len(shape) == 2 and shape[1] <= LARGEST_CORNER:
        return corner(path, reconstructions, truth, title)
    if len(shape) <= 2:
        return heat_map(path, observations, reconstructions, truth, title)
    if is_series(shape[1:]):
        return series(path, observations, np.asarray(reconstructions)[None], truth, title)
    return image_grid(path, observations, reconstructions, truth, title)


def spread(
    path: str | os.PathLike,
    observations: ArrayLike,
    draws: ArrayLike,
    truth: ArrayLike | None = None,
    title: str | None = None,
) -> Path:
    """Writes what suits several draws [S, N, *X] of each observation: of vectors the draws for the first one alone."""
    shape = np.shape(draws)[2:]
    if is_series(shape):
        return series(path, observations, draws, truth, title)
    if len(shape) == 1:
        return picture(path, observations, np.asarray(draws)[:, 0], truth, title)
    return spread_grid(path, observations, draws, truth, title)
