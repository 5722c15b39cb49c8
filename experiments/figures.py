"""Figures of the experiments: lines over rounds, time or settings, with error bars over seeds."""

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


def draw(path: Path, panels: Sequence[Panel], columns: int = 3) -> None:
    """Writes the panels side by side; points are means over seeds, bars standard deviations."""
    columns = min(columns, len(panels))
    height = -(-len(panels) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(4.2 * columns, 3.2 * height), squeeze=False)
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    for panel, place in zip(panels, axes.flat, strict=False):
        for name, seeds in panel.lines.items():
            shortest = min(map(len, seeds))
            points = np.array([seed[:shortest] for seed in seeds])
            (xs, ys), bars = points.mean(0).T, points[..., 1].std(0, ddof=1) if len(seeds) > 1 else np.zeros(shortest)
            color = COLORS[names.index(name) % len(COLORS)]
            place.errorbar(xs, ys, bars, label=name, color=color, marker="o", ms=3, lw=1.3, capsize=2)
        scales = {"xscale": "log" if panel.log_x else "linear", "yscale": "log" if panel.log_y else "linear"}
        place.set(xlabel=panel.x, ylabel=panel.y, **scales)
        if panel.level is not None:
            place.axhline(panel.level, color="#5b6770", lw=0.9, ls="--")
        place.grid(color="#e5e5e5", lw=0.5)
        place.spines[["top", "right"]].set_visible(False)
    for place in list(axes.flat)[len(panels) :]:
        place.set_axis_off()
    labels = [pair for place in axes.flat for pair in zip(*place.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in labels}
    look = {"loc": "lower center", "ncols": min(len(handles), 5), "frameon": False, "fontsize": 8}
    figure.legend(handles.values(), handles.keys(), **look)
    figure.tight_layout(rect=(0, 0.03 + 0.05 * (-(-len(handles) // 5)) / height, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def strips(path: Path, lines: Mapping[str, np.ndarray], count: int = 12) -> None:
    """Writes one line of images per entry, [N, H, W, C] in [-2, 2], with its name beside it."""
    figure, axes = plt.subplots(len(lines), 1, figsize=(9, 0.95 * len(lines)), squeeze=False)
    for place, (name, images) in zip(axes[:, 0], lines.items(), strict=True):
        line = np.concatenate([np.asarray(image) for image in images[:count]], 1)
        place.imshow(np.clip((line + 2) / 4, 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
        place.set(xticks=[], yticks=[])
        place.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
