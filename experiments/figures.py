"""Figures of the experiments: lines over rounds, time or settings, with error bars over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLORS = ("#1f6fb4", "#d1603d", "#3f8f5b", "#8a5aa8", "#b8860b", "#5b6770", "#c2487d", "#2b9c9c")


class Panel(NamedTuple):
    """One plot: for each line of the legend, one list of (x, y) a seed."""

    lines: Mapping[str, Sequence[Sequence[tuple[float, float]]]]
    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    level: float | None = None
    """A dashed line at this y: the value of a calibrated method."""


def draw(path: Path, panels: Sequence[Panel], title: str = "", columns: int = 3) -> None:
    """Writes the panels side by side; points are means over seeds, bars standard deviations."""
    columns = min(columns, len(panels))
    height = -(-len(panels) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(4.2 * columns, 3.2 * height), squeeze=False)
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    for panel, place in zip(panels, axes.flat, strict=False):
        for name, seeds in panel.lines.items():
            shortest = min(map(len, seeds))
            points = [[seed[i] for seed in seeds] for i in range(shortest)]
            xs, ys = ([statistics.fmean(p[k] for p in point) for point in points] for k in (0, 1))
            bars = [statistics.stdev(p[1] for p in point) if len(point) > 1 else 0.0 for point in points]
            color = COLORS[names.index(name) % len(COLORS)]
            place.errorbar(xs, ys, bars, label=name, color=color, marker="o", ms=3, lw=1.3, capsize=2)
        place.set_xlabel(panel.x)
        place.set_ylabel(panel.y)
        if panel.log_x:
            place.set_xscale("log")
        if panel.log_y:
            place.set_yscale("log")
        if panel.level is not None:
            place.axhline(panel.level, color="#5b6770", lw=0.9, ls="--")
        place.grid(color="#e5e5e5", lw=0.5)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    for place in list(axes.flat)[len(panels) :]:
        place.set_axis_off()
    handles = {
        label: handle for place in axes.flat for handle, label in zip(*place.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncols=min(len(handles), 5), frameon=False, fontsize=8
    )
    if title:
        figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, 0.03 + 0.05 * (-(-len(handles) // 5)) / height, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def strips(path: Path, lines: Mapping[str, np.ndarray], count: int = 12) -> None:
    """Writes one line of images per entry, [N, H, W, C] in [-2, 2], with its name beside it."""
    figure, axes = plt.subplots(len(lines), 1, figsize=(9, 0.95 * len(lines)), squeeze=False)
    for place, (name, images) in zip(axes[:, 0], lines.items(), strict=True):
        line = np.concatenate([np.asarray(image) for image in images[:count]], 1)
        place.imshow(np.clip((line + 2) / 4, 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
        place.set_xticks([])
        place.set_yticks([])
        place.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
