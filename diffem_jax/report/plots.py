"""Pictures: grids of images, corner plots of vectors, spreads of posterior draws, curves over rounds.

Matplotlib is imported inside the functions, with Figure objects and no global state; every file is a PNG that is
written beside its place and then moved there, so that a reader never sees half of one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from diffem_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
INK, ACCENT, SECOND = "#222222", "#1f6fb4", "#d1603d"
LOW, HIGH = -2.0, 2.0
COLUMNS = 10
LARGEST_CORNER = 8
# Written by the loop, but not measures.
NOT_CURVES = ("round", "step", "time", "samples")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _head(figure: Figure, title: str, inches: float = 0.06) -> None:
    # Above the axes, whose area ends at 0.88 of the height, by a distance that does not grow with the figure.
    height = figure.get_size_inches()[1]
    figure.text(0.5125, 0.88 + inches / height, title, fontsize=10, color=INK, ha="center", va="bottom")


def _save(figure: Figure, path: str | os.PathLike) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.06)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def as_image(x: ArrayLike) -> np.ndarray:
    """One example as something to show: [H, W] or [H, W, 3].

    Args:
        x: [H, W], [H, W, C] with C of 1 or 3 (of other channels the first is shown), or a volume [D, H, W, C], of which
            the middle slice is shown; complex values by their modulus.
    """
    values = np.asarray(x)
    image: np.ndarray = np.abs(values) if np.iscomplexobj(values) else values.astype(np.float32)
    if image.ndim == 4:
        image = image[image.shape[0] // 2]
    if image.ndim == 3 and image.shape[-1] != 3:
        image = image[..., 0]
    if image.ndim not in (2, 3):
        raise UserError(f"picture: an example of shape {values.shape}; expected [H, W], [H, W, C] or [D, H, W, C]")
    return image


def _show(axes: Axes, x: ArrayLike, low: float = LOW, high: float = HIGH, cmap: str = "gray") -> None:
    image = as_image(x)
    image = np.nan_to_num(image, nan=low, posinf=high, neginf=low)
    if image.ndim == 3:
        image = np.clip((image - low) / max(high - low, 1e-12), 0, 1)
    axes.imshow(image, cmap=cmap, vmin=low, vmax=max(high, low + 1e-12), interpolation="nearest")


def _blank(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color="#bbbbbb", linewidth=0.5)


def _grid(path: str | os.PathLike, rows: Sequence[tuple[str, list[tuple[ArrayLike, dict]]]], title: str | None) -> Path:
    # Rows of (label, cells); a cell is an image and the arguments of _show.
    columns = max(len(cells) for _, cells in rows)
    sample = as_image(rows[0][1][0][0])
    aspect = min(max(sample.shape[0] / sample.shape[1], 0.3), 3.0)
    side = 0.85
    figure = _figure(side * columns + 1.0, side * aspect * len(rows) + (0.35 if title else 0.05))
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
    for (label, cells), line in zip(rows, axes, strict=True):
        for cell, place in zip(cells, line, strict=False):
            _show(place, cell[0], **cell[1])
            _blank(place)
        for place in line[len(cells) :]:
            place.set_axis_off()
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, color=INK, labelpad=6)
    if title:
        _head(figure, title)
    return _save(figure, path)


def _range(x: np.ndarray) -> dict[str, float]:
    finite = x[np.isfinite(x)]
    return {"low": float(finite.min()), "high": float(finite.max())} if finite.size else {}


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
        observations: [N, ...]; drawn where they are image-shaped, in their own range unless of the reconstructions'
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
        rows.append((labels[0], [(y, {} if alike else _range(as_image(y))) for y in observed]))
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
    """Writes one row an observation: the observation, several draws, their mean, their standard deviation, the truth.

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
    lines: list[tuple[str, list[tuple[ArrayLike, dict]]]] = []
    if observed.ndim >= 3:
        alike = observed.shape[1:3] == samples.shape[2:4]
        lines.append(("observed", [(y, {} if alike else _range(as_image(y))) for y in observed]))
    lines += [(f"draw {s + 1}", [(x, {}) for x in samples[s]]) for s in range(min(shown, len(samples)))]
    lines.append((f"mean of {len(samples)}", [(x, {}) for x in samples.mean(axis=0)]))
    lines.append((f"std, 0 to {largest:.2f}", [(x, {"low": 0.0, "high": largest, "cmap": "magma"}) for x in deviation]))
    if truth is not None:
        lines.append(("truth", [(x, {}) for x in np.asarray(truth)[:rows]]))
    return _grid(path, lines, title)


def corner(
    path: str | os.PathLike,
    reconstructions: ArrayLike,
    truth: ArrayLike | None = None,
    title: str | None = None,
    bins: int = 60,
) -> Path:
    """Writes a corner plot: densities of pairs of coordinates below the diagonal, of single ones on it.

    Args:
        path: the PNG to write.
        reconstructions: vectors [N, D] with D from 1 to 8.
        truth: vectors [M, D]; outlined on the diagonal, and its pairs stand above the diagonal.
        title: a line above the picture.
        bins: how many bins a side over [-2.5, 2.5].
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    points = np.asarray(reconstructions, np.float32)
    size = points.shape[-1]
    if points.ndim != 2 or not 1 <= size <= LARGEST_CORNER:
        raise UserError(f"corner: reconstructions {points.shape}; expected [N, D] with D from 1 to {LARGEST_CORNER}")
    clean = None if truth is None else np.asarray(truth, np.float32)
    span = (LOW * 1.25, HIGH * 1.25)
    maps = [LinearSegmentedColormap.from_list("density", ["#ffffff", color, INK]) for color in (ACCENT, SECOND)]
    figure = _figure(1.15 * size + 0.4, 1.15 * size + 0.5)
    axes = figure.subplots(size, size, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06})

    def pair(place: Axes, x: np.ndarray, i: int, j: int, cmap: Any) -> None:
        counts, _, _ = np.histogram2d(x[:, j], x[:, i], bins=bins, range=(span, span))
        top = max(counts.max(), 1.0)
        place.imshow(
            counts.T, origin="lower", extent=(*span, *span), aspect="auto", cmap=cmap, norm=PowerNorm(0.4, 0, top)
        )

    for i in range(size):
        for j in range(size):
            place = axes[i, j]
            _blank(place)
            if i > j:
                pair(place, points, i, j, maps[0])
            elif i < j and clean is not None:
                pair(place, clean, i, j, maps[1])
            elif i < j:
                place.set_axis_off()
            else:
                place.hist(points[:, i], bins=bins, range=span, density=True, color=ACCENT, alpha=0.55, lw=0)
                if clean is not None:
                    place.hist(clean[:, i], bins=bins, range=span, density=True, histtype="step", color=SECOND, lw=1)
                place.set_xlim(*span)
            ticks = {"labelsize": 6, "length": 2, "width": 0.5, "colors": INK}
            if i == size - 1:
                place.set_xticks([-2, 0, 2])
                place.tick_params(axis="x", **ticks)
                place.set_xlabel(f"$x_{{{j + 1}}}$", fontsize=9, color=INK, labelpad=2)
            if j == 0 and i > 0:
                place.set_yticks([-2, 0, 2])
                place.tick_params(axis="y", **ticks)
                place.set_ylabel(f"$x_{{{i + 1}}}$", fontsize=9, color=INK, labelpad=0)
    above = 0.88 + 0.06 / figure.get_size_inches()[1]
    figure.text(0.125, above, "reconstructions", fontsize=8, color=ACCENT, ha="left", va="bottom")
    if clean is not None:
        figure.text(0.9, above, "truth", fontsize=8, color=SECOND, ha="right", va="bottom")
    if title:
        _head(figure, title, inches=0.2)
    return _save(figure, path)


def heat_map(
    path: str | os.PathLike,
    observations: ArrayLike,
    reconstructions: ArrayLike,
    truth: ArrayLike | None = None,
    title: str | None = None,
    rows: int = 24,
) -> Path:
    """Writes vectors as coloured rows, one an example: observed, reconstruction and truth side by side.

    Args:
        path: the PNG to write.
        observations: [N, ...], flattened.
        reconstructions: [N, ...], flattened.
        truth: like reconstructions.
        title: a line above the picture.
        rows: at most how many examples.
    """
    panels = [("observed", observations), ("reconstruction", reconstructions)]
    if truth is not None:
        panels.append(("truth", truth))
    figure = _figure(3.0 * len(panels), 2.6)
    axes = figure.subplots(1, len(panels), squeeze=False, gridspec_kw={"wspace": 0.05})[0]
    for place, (label, values) in zip(axes, panels, strict=True):
        values = np.asarray(values)[:rows]
        values = (np.abs(values) if np.iscomplexobj(values) else values.astype(np.float32)).reshape(len(values), -1)
        image = place.imshow(values, cmap="RdBu_r", vmin=LOW, vmax=HIGH, aspect="auto", interpolation="nearest")
        _blank(place)
        place.set_title(label, fontsize=9, color=INK, pad=3)
        place.set_xlabel(f"{values.shape[1]} entries", fontsize=8, color=INK)
    axes[0].set_ylabel("examples", fontsize=8, color=INK)
    bar = figure.colorbar(image, ax=list(axes), fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=6, colors=INK)
    bar.outline.set_visible(False)
    if title:
        _head(figure, title, inches=0.25)
    return _save(figure, path)


def picture(
    path: str | os.PathLike,
    observations: ArrayLike,
    reconstructions: ArrayLike,
    truth: ArrayLike | None = None,
    title: str | None = None,
) -> Path:
    """Writes what suits the reconstructions' shape: a corner plot, a heat map or a grid of images."""
    shape = np.shape(reconstructions)
    if len(shape) == 2 and shape[1] <= LARGEST_CORNER:
        return corner(path, reconstructions, truth, title)
    if len(shape) <= 2:
        return heat_map(path, observations, reconstructions, truth, title)
    return image_grid(path, observations, reconstructions, truth, title)


def curves(
    path: str | os.PathLike,
    records: Iterable[Mapping[str, Any]],
    keys: Sequence[str] | None = None,
    title: str | None = None,
) -> Path:
    """Writes one small panel a measure, its value over rounds; a band of one standard error where records hold one.

    Args:
        path: the PNG to write.
        records: objects of metrics.jsonl; those without ``round`` are passed over, a later value of a round wins.
            A measure's error is looked for under ``<name>_standard_error`` and ``<name>_se``.
        keys: which measures, in order; None for every number that is there.
        title: a line above the picture.
    """
    from matplotlib.ticker import MaxNLocator

    series: dict[str, dict[float, float]] = {}
    for record in records:
        if record.get("round") is None:
            continue
        for name, value in record.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                series.setdefault(name, {})[float(record["round"])] = float(value)
    errors = {name for name in series if name.endswith(("_standard_error", "_se"))}
    hidden = errors.union(NOT_CURVES, (name for name in series if name.endswith("_samples")))
    names = [name for name in (keys or series) if name in series and (keys or name not in hidden)]
    if not names:
        raise UserError("curves: no record with a round and a number; expected lines of metrics.jsonl of a run")
    columns = min(len(names), 3)
    lines = -(-len(names) // columns)
    figure = _figure(2.9 * columns, 1.9 * lines + (0.3 if title else 0.0))
    axes = figure.subplots(lines, columns, squeeze=False, gridspec_kw={"wspace": 0.3, "hspace": 0.5})
    for place, name in zip(axes.flat, names, strict=False):
        rounds = sorted(series[name])
        values = np.array([series[name][r] for r in rounds])
        place.plot(rounds, values, color=ACCENT, lw=1.5, marker="o", ms=3)
        error = next((series[name + end] for end in ("_standard_error", "_se") if name + end in series), {})
        band = np.array([error.get(r, 0.0) for r in rounds])
        place.fill_between(rounds, values - band, values + band, color=ACCENT, alpha=0.2, lw=0)
        place.set_title(name, fontsize=9, color=INK, pad=3)
        place.set_xlabel("round", fontsize=8, color=INK, labelpad=1)
        place.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        place.tick_params(labelsize=7, length=2, width=0.5, colors=INK)
        place.grid(color="#e5e5e5", lw=0.5)
        for side, spine in place.spines.items():
            spine.set(color="#999999", linewidth=0.6, visible=side in ("left", "bottom"))
    for place in list(axes.flat)[len(names) :]:
        place.set_axis_off()
    if title:
        _head(figure, title, inches=0.3)
    return _save(figure, path)
