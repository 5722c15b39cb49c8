"""Pictures, each a PNG that is there whole or not at all; ``picture`` and ``spread`` choose by the shape of x."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffem_jax.errors import UserError
from diffem_jax.report import charts
from diffem_jax.report.charts import HIGH, LARGEST_CORNER, LOW, Arrays, Place, calibration, corner, series

__all__ = ["calibration", "corner", "image_grid", "is_point", "picture", "series", "spread", "spread_grid"]
COLUMNS, SPREAD_COLUMNS, SPREAD_DRAWS, MOST_CHANNELS = 10, 8, 5, 4
_HIDDEN_RGB = np.array([int(charts.HIDDEN[i : i + 2], 16) / 255 for i in (1, 3, 5)], np.float32)
Row = tuple[str, Sequence[ArrayLike], dict[str, Any]]  # a label, images, and the arguments of ``_show``


def as_image(x: ArrayLike) -> np.ndarray:
    """One example as an image: of [D, H, W, C] the middle slice, one or three channels, moduli."""
    image = charts.real(x)
    if image.ndim == 4:
        image = image[image.shape[0] // 2]
    if image.ndim == 3 and image.shape[-1] != 3:
        image = image[..., 0]
    if image.ndim not in (2, 3):
        raise UserError(f"picture: an example of shape {np.shape(x)}; expected [H, W], [H, W, C] or [D, H, W, C]")
    return image


def _show(axes: Any, x: ArrayLike, low: float = LOW, high: float = HIGH, cmap: str = "gray") -> None:
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


def _grid(path: Place, rows: Sequence[Row], title: str) -> Path:
    columns = max(len(images) for _, images, _ in rows)
    height, width = as_image(rows[0][1][0]).shape[:2]
    side, aspect = 0.85, min(max(height / width, 0.3), 3.0)
    figure = charts.new_figure(side * columns + 1.0, side * aspect * len(rows) + (0.35 if title else 0.05))
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
    for (label, images, options), line in zip(rows, axes, strict=True):
        for image, place in zip(images, line, strict=False):
            _show(place, image, **options)
            charts.hide_ticks(place)
        for place in line[len(images) :]:
            place.set_axis_off()
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, color=charts.INK, labelpad=6)
    charts.set_title(figure, title)
    return charts.save(figure, path)


def _observed_rows(label: str, observations: Arrays, shape: tuple[int, ...]) -> list[Row]:
    """The row of the observations; none where they are not image-shaped. Where x has another shape they have their own range."""
    observed = np.zeros(0) if observations is None else np.asarray(observations)
    if observed.ndim < 3:
        return []
    options = {}
    if observed.shape[1:3] != shape[:2]:
        finite = charts.real(observed[np.isfinite(observed)])
        options = {"low": finite.min(), "high": finite.max()} if finite.size else {}
    return [(f"{label}\n(hidden: violet)" if np.isnan(observed).any() else label, list(observed), options)]


def image_grid(
    path: Place,
    observations: Arrays,
    reconstructions: ArrayLike,
    truth: Arrays = None,
    title: str = "",
    labels: Sequence[str] = ("observed", "reconstruction", "truth"),
) -> Path:
    """Writes rows of images, at most ten examples: observed, reconstruction and, where it is known, truth.

    ``reconstructions`` and ``truth`` are images in [-2, 2], [N, H, W] or [N, H, W, C], or volumes [N, D, H, W, C];
    ``observations`` [N, ...], NaN where hidden, are left out where they are not image-shaped.
    """
    restored = np.asarray(reconstructions)[:COLUMNS]
    observed = None if observations is None else np.asarray(observations)[:COLUMNS]
    rows = [*_observed_rows(labels[0], observed, restored.shape[1:]), (labels[1], list(restored), {})]
    if truth is not None:
        rows.append((labels[2], list(np.asarray(truth)[:COLUMNS]), {}))
    return _grid(path, rows, title)


def spread_grid(path: Place, observations: ArrayLike, draws: ArrayLike, truth: Arrays = None, title: str = "") -> Path:
    """Writes one column for each of at most eight observations [N, ...]: the observation, draws, their mean and deviation, truth.

    Of the draws [S, N, ...] of images at most five are shown; mean and standard deviation use all.
    """
    observed, samples = np.asarray(observations), np.asarray(draws)
    if samples.ndim < 4 or samples.shape[1] != len(observed):
        raise UserError(f"spread_grid: draws {samples.shape}; expected [S, {len(observed)}, H, W, ...]")
    observed, samples = observed[:SPREAD_COLUMNS], samples[:, :SPREAD_COLUMNS]
    # A standard deviation has no colour: its channels are averaged.
    deviation = [x.mean(-1) if x.ndim == 3 else x for x in map(as_image, samples.std(axis=0))]
    largest = float(np.max(deviation)) or 1.0
    rows = _observed_rows("observed", observed, samples.shape[2:])
    rows += [(f"draw {s + 1}", list(x), {}) for s, x in enumerate(samples[:SPREAD_DRAWS])]
    rows.append((f"mean of {len(samples)}", list(samples.mean(axis=0)), {}))
    rows.append((f"std, 0 to {largest:.2f}", deviation, {"low": 0.0, "high": largest, "cmap": "magma"}))
    if truth is not None:
        rows.append(("truth", list(np.asarray(truth)[:SPREAD_COLUMNS]), {}))
    return _grid(path, rows, title)


def is_point(shape: tuple[int, ...]) -> bool:
    """Whether an example of this shape is a short vector, drawn as a point of a corner plot."""
    return len(shape) == 1 and shape[0] <= LARGEST_CORNER


def _are_lines(shape: tuple[int, ...]) -> bool:
    """Whether an example of this shape is drawn as lines: a long vector, or a series [T, C] of a few channels."""
    return (len(shape) == 1 and not is_point(shape)) or (len(shape) == 2 and shape[1] <= MOST_CHANNELS < shape[0])


def picture(path: Place, observations: Arrays, draws: ArrayLike, truth: Arrays = None, title: str = "") -> Path:
    """Writes what suits draws [N, *X]: a corner plot of short vectors, lines, or images; without observations, of the prior."""
    shape = np.shape(draws)[1:]
    if _are_lines(shape):
        return series(path, observations, np.asarray(draws)[None], truth, title)
    if is_point(shape) or not shape:
        return corner(path, draws, truth, title)
    labels = ("observed", "draws" if observations is None else "reconstruction", "truth")
    return image_grid(path, observations, draws, truth, title, labels)


def spread(path: Place, observations: ArrayLike, draws: ArrayLike, truth: Arrays = None, title: str = "") -> Path:
    """Writes what suits several draws [S, N, *X] per observation: of short vectors the draws for the first one alone."""
    shape = np.shape(draws)[2:]
    if _are_lines(shape):
        return series(path, observations, draws, truth, title)
    if is_point(shape):
        return corner(path, np.asarray(draws)[:, 0], truth, title)
    return spread_grid(path, observations, draws, truth, title)
