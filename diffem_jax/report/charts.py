"""What every picture is drawn on, and pictures with axes: corner plots, series, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from diffem_jax.errors import UserError
from diffem_jax.storage.files import Place, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arrays = ArrayLike | None
DPI = 150
INK, ACCENT, SECOND, THIRD, FOURTH = "#222222", "#1f6fb4", "#d1603d", "#3c8d5a", "#8a63a8"
HIDDEN = "#c98fd0"  # what was not observed: no grey, and rare in photographs
LOW, HIGH = -2.0, 2.0  # the range of the data
LARGEST_CORNER, BINS, PANELS = 8, 60, 6
BAND = (0.1, 0.5, 0.9)  # quantiles of the draws: the ends of the 80% band, and the line between them


def new_figure(width: float, height: float) -> Figure:
    """A white figure of this size in inches; matplotlib is imported here."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, facecolor="white")


def set_title(figure: Figure, title: str, inches: float = 0.06) -> None:
    """A line above the axes, whose area ends at 0.88 of the height, by a distance that does not grow with the figure."""
    if title:
        height = figure.get_size_inches()[1]
        figure.text(0.5125, 0.88 + inches / height, title, fontsize=10, color=INK, ha="center", va="bottom")


def save(figure: Figure, path: Place) -> Path:
    """Writes the figure as a PNG, whole or not at all."""
    target = Path(path)
    options: Any = {"format": "png", "dpi": DPI, "bbox_inches": "tight", "pad_inches": 0.06}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda file: figure.savefig(file, **options))
    return target


def hide_ticks(axes: Axes) -> None:
    """A thin grey frame without ticks."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#bbbbbb", linewidth=0.5)


def style_axes(axes: Axes) -> None:
    """Small ticks, a light grid, no frame above and at the right."""
    axes.tick_params(labelsize=7, length=2, width=0.5, colors=INK)
    axes.grid(color="#e5e5e5", lw=0.5)
    for side, spine in axes.spines.items():
        spine.set(color="#999999", linewidth=0.6, visible=side in ("left", "bottom"))


def real(x: ArrayLike) -> np.ndarray:
    """Float32 values; complex ones by their modulus."""
    values = np.asarray(x)
    return np.abs(values) if np.iscomplexobj(values) else values.astype(np.float32)


def corner(path: Place, draws: ArrayLike, truth: Arrays = None, title: str = "") -> Path:
    """Writes a corner plot of vectors [N, D], D from 1 to 8: densities of pairs of coordinates below the diagonal, of single ones on it.

    ``truth`` [M, D], where it is known, is outlined on the diagonal; its pairs stand above the diagonal.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    points, clean = np.asarray(draws, np.float32), None if truth is None else np.asarray(truth, np.float32)
    size = points.shape[-1]
    if points.ndim != 2 or not 1 <= size <= LARGEST_CORNER:
        raise UserError(f"corner: draws {points.shape}; expected [N, D] with D from 1 to {LARGEST_CORNER}")
    span = (LOW * 1.25, HIGH * 1.25)
    figure = new_figure(1.15 * size + 0.4, 1.15 * size + 0.5)
    axes: Any = figure.subplots(size, size, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06})

    def draw_pair(place: Axes, x: np.ndarray, i: int, j: int, color: str) -> None:
        counts = np.histogram2d(x[:, j], x[:, i], bins=BINS, range=(span, span))[0].T
        shade = PowerNorm(0.4, 0, max(counts.max(), 1.0))
        colors = LinearSegmentedColormap.from_list("density", ["#ffffff", color, INK])
        place.imshow(counts, origin="lower", extent=(*span, *span), aspect="auto", cmap=colors, norm=shade)

    for i, j in np.ndindex(size, size):
        place = axes[i, j]
        hide_ticks(place)
        if i > j:
            draw_pair(place, points, i, j, ACCENT)
        elif i < j and clean is not None:
            draw_pair(place, clean, i, j, SECOND)
        elif i < j:
            place.set_axis_off()
        else:
            place.hist(points[:, i], bins=BINS, range=span, density=True, color=ACCENT, alpha=0.55, lw=0)
            if clean is not None:
                place.hist(clean[:, i], bins=BINS, range=span, density=True, histtype="step", color=SECOND, lw=1)
            place.set_xlim(*span)
        if i == size - 1:
            place.set_xticks([-2, 0, 2])
            place.set_xlabel(f"$x_{{{j + 1}}}$", fontsize=9, color=INK, labelpad=2)
        if j == 0 and i > 0:
            place.set_yticks([-2, 0, 2])
            place.set_ylabel(f"$x_{{{i + 1}}}$", fontsize=9, color=INK, labelpad=0)
        place.tick_params(labelsize=6, length=2, width=0.5, colors=INK)
    above = 0.88 + 0.06 / figure.get_size_inches()[1]
    figure.text(0.125, above, "draws", fontsize=8, color=ACCENT, ha="left", va="bottom")
    if clean is not None:
        figure.text(0.9, above, "truth", fontsize=8, color=SECOND, ha="right", va="bottom")
    set_title(figure, title, inches=0.2)
    return save(figure, path)


def series(path: Place, observations: Arrays, draws: ArrayLike, truth: Arrays = None, title: str = "") -> Path:
    """Writes one panel per long vector or channel of a series, six at most: what was observed, the draws, the truth.

    Of several draws [S, N, T] or [S, N, T, C] their median and the band that holds 80% of them are shown, of a single one the
    line itself. ``observations`` and ``truth`` are [N, T] or [N, T, C], NaN where hidden; not shown where T is another.
    """
    vectors = np.ndim(draws) == 3
    if np.ndim(draws) not in (3, 4):
        raise UserError(f"series: draws {np.shape(draws)}; expected [S, N, T] or [S, N, T, C]")

    def with_channels(x: ArrayLike) -> np.ndarray:
        return real(x)[..., None] if vectors else real(x)

    samples = with_channels(draws)
    observed, clean = (None if x is None else with_channels(x) for x in (observations, truth))
    count, length, channels = samples.shape[1:]
    panels = list(np.ndindex(count, channels))[:PANELS]
    figure = new_figure(7.0, 0.95 * len(panels) + 0.55)
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, gridspec_kw={"hspace": 0.12})[:, 0]
    across = np.arange(length)
    for place, (i, c) in zip(axes, panels, strict=True):
        style_axes(place)
        if clean is not None and clean.shape[1:] == (length, channels):
            place.plot(across, clean[i, :, c], color=SECOND, lw=0.9, label="truth")
        low, middle, high = np.quantile(samples[:, i, :, c], BAND, axis=0)
        if len(samples) > 1:
            place.fill_between(across, low, high, color=ACCENT, alpha=0.25, lw=0, label="80% of the draws")
        name = f"median of {len(samples)} draws" if len(samples) > 1 else "draw"
        place.plot(across, middle, color=ACCENT, lw=1.1, label=name)
        if observed is not None and observed.shape[1:] == (length, channels):
            place.plot(across, observed[i, :, c], color=INK, lw=0.7, label="observed", marker=".", ms=3, mew=0)
        place.set_xlim(0, across[-1])
        place.set_ylabel(f"{i + 1}" if channels == 1 else f"{i + 1}, {c + 1}", fontsize=8, color=INK)
    axes[-1].set_xlabel("entry" if vectors else "time step", fontsize=8, color=INK, labelpad=2)
    axes[0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncol=4, frameon=False, fontsize=7)
    set_title(figure, title, inches=0.22)
    return save(figure, path)


def calibration(path: Place, levels: Sequence[float], values: Mapping[str, Sequence[float]]) -> Path:
    """Writes observed against nominal coverage, one line per name, with the diagonal of a calibrated posterior.

    ``levels`` are nominal coverages [L] in (0, 1), ``values`` name -> observed ones [L]; NaN where it was not measured.
    """
    figure = new_figure(4.2, 3.9)
    axes = figure.subplots()
    style_axes(axes)
    axes.plot([0, 1], [0, 1], color="#999999", lw=0.8, ls="--")
    for (name, share), color in zip(values.items(), (ACCENT, SECOND, THIRD, FOURTH), strict=False):
        axes.plot(levels, share, color=color, lw=1.3, marker="o", ms=4, label=name)
    low = min([*levels, *(v for row in values.values() for v in row if v == v)])
    axes.set(xlim=(min(levels) - 0.04, 1.0), ylim=(max(0.0, low - 0.05), 1.0))
    axes.set_xticks(list(levels), [f"{100 * level:.0f}%" for level in levels])
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.set_xlabel("nominal: what intervals of the draws should hold", fontsize=8, color=INK)
    axes.set_ylabel("observed: what they hold", fontsize=8, color=INK)
    axes.legend(loc="upper left", frameon=False, fontsize=7)
    return save(figure, path)
