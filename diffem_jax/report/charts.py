"""Pictures with axes: corner plots, rows of vectors, series, calibration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from diffem_jax.errors import UserError
from diffem_jax.report.canvas import (
    ACCENT,
    FOURTH,
    HIDDEN,
    HIGH,
    INK,
    LOW,
    SECOND,
    THIRD,
    hide_ticks,
    new_figure,
    real,
    save,
    set_title,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST_CORNER = 8
BAND = (0.1, 0.5, 0.9)
"""Quantiles of the draws: the ends of the 80% band, and the line between them."""


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
    figure = new_figure(1.15 * size + 0.4, 1.15 * size + 0.5)
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
            hide_ticks(place)
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
    set_title(figure, title, inches=0.2)
    return save(figure, path)


def heat_map(
    path: str | os.PathLike,
    observations: ArrayLike,
    reconstructions: ArrayLike,
    truth: ArrayLike | None = None,
    title: str | None = None,
    rows: int = 24,
) -> Path:
    """Writes vectors as coloured rows, one per example: observed, reconstruction and truth side by side.

    Args:
        path: the PNG to write.
        observations: [N, ...], flattened; NaN is hidden.
        reconstructions: [N, ...], flattened.
        truth: like reconstructions.
        title: a line above the picture.
        rows: at most how many examples.
    """
    panels = [("observed", observations), ("reconstruction", reconstructions)]
    if truth is not None:
        panels.append(("truth", truth))
    figure = new_figure(3.0 * len(panels), 2.6)
    axes = figure.subplots(1, len(panels), squeeze=False, gridspec_kw={"wspace": 0.05})[0]
    for place, (label, values) in zip(axes, panels, strict=True):
        values = real(np.asarray(values)[:rows]).reshape(min(rows, len(np.asarray(values))), -1)
        place.set_facecolor(HIDDEN)
        image = place.imshow(values, cmap="RdBu_r", vmin=LOW, vmax=HIGH, aspect="auto", interpolation="nearest")
        hide_ticks(place)
        place.set_title(label, fontsize=9, color=INK, pad=3)
        place.set_xlabel(f"{values.shape[1]} entries", fontsize=8, color=INK)
    axes[0].set_ylabel("examples", fontsize=8, color=INK)
    bar = figure.colorbar(image, ax=list(axes), fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=6, colors=INK)
    bar.outline.set_visible(False)
    set_title(figure, title, inches=0.25)
    return save(figure, path)


def series(
    path: str | os.PathLike,
    observations: ArrayLike,
    draws: ArrayLike,
    truth: ArrayLike | None = None,
    title: str | None = None,
    rows: int = 6,
) -> Path:
    """Writes one panel per series: what was observed, with its gaps, and the draws.

    Of several draws their median and the band that holds 80% of them are shown, of a single one the line itself.

    Args:
        path: the PNG to write.
        observations: [N, T] or [N, T, C], NaN where hidden; not shown where T differs from the draws'.
        draws: [S, N, T] or [S, N, T, C]; each channel has a panel of its own.
        truth: [N, T] or [N, T, C].
        title: a line above the picture.
        rows: at most how many panels.
    """
    samples = real(draws)
    samples = samples[..., None] if samples.ndim == 3 else samples
    if samples.ndim != 4:
        raise UserError(f"series: draws {np.shape(draws)}; expected [S, N, T] or [S, N, T, C]")

    def lines(values: ArrayLike) -> np.ndarray | None:
        values = real(values)
        values = values[..., None] if values.ndim == 2 else values
        return values if values.shape[1:] == samples.shape[2:] else None

    observed, clean = lines(observations), None if truth is None else lines(truth)
    panels = [(i, c) for i in range(samples.shape[1]) for c in range(samples.shape[3])][:rows]
    figure = new_figure(7.0, 0.95 * len(panels) + 0.55)
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, gridspec_kw={"hspace": 0.12})[:, 0]
    across = np.arange(samples.shape[2])
    for place, (i, c) in zip(axes, panels, strict=True):
        style_axes(place)
        if clean is not None:
            place.plot(across, clean[i, :, c], color=SECOND, lw=0.9, label="truth")
        if len(samples) > 1:
            low, middle, high = np.quantile(samples[:, i, :, c], BAND, axis=0)
            place.fill_between(across, low, high, color=ACCENT, alpha=0.25, lw=0, label="80% of the draws")
        else:
            middle = samples[0, i, :, c]
        name = f"median of {len(samples)} draws" if len(samples) > 1 else "reconstruction"
        place.plot(across, middle, color=ACCENT, lw=1.1, label=name)
        if observed is not None:
            dots = {"marker": ".", "ms": 3, "mew": 0}
            place.plot(across, observed[i, :, c], color=INK, lw=0.7, label="observed", **dots)
        place.set_xlim(0, across[-1])
        place.set_ylabel(f"{i + 1}" if samples.shape[3] == 1 else f"{i + 1}, {c + 1}", fontsize=8, color=INK)
    axes[-1].set_xlabel("time step", fontsize=8, color=INK, labelpad=2)
    axes[0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncol=4, frameon=False, fontsize=7)
    set_title(figure, title, inches=0.22)
    return save(figure, path)


def calibration(path: str | os.PathLike, levels: Sequence[float], values: Mapping[str, Sequence[float]]) -> Path:
    """Writes observed against nominal coverage, one line per name, with the diagonal of a calibrated posterior.

    Args:
        path: the PNG to write.
        levels: nominal coverage [L], in (0, 1).
        values: name -> observed coverage [L], in [0, 1]; NaN where it was not measured.
    """
    figure = new_figure(4.2, 3.9)
    axes = figure.subplots()
    style_axes(axes)
    axes.plot([0, 1], [0, 1], color="#999999", lw=0.8, ls="--")
    for (name, share), color in zip(values.items(), (ACCENT, SECOND, THIRD, FOURTH), strict=False):
        axes.plot(levels, share, color=color, lw=1.3, marker="o", ms=4, label=name)
    low = min([*levels, *(v for row in values.values() for v in row if v == v)])
    axes.set_xlim(min(levels) - 0.04, 1.0)
    axes.set_ylim(max(0.0, low - 0.05), 1.0)
    axes.set_xticks(list(levels), [f"{100 * level:.0f}%" for level in levels])
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.set_xlabel("nominal: what intervals of the draws should hold", fontsize=8, color=INK)
    axes.set_ylabel("observed: what they hold", fontsize=8, color=INK)
    axes.legend(loc="upper left", frameon=False, fontsize=7)
    return save(figure, path)
