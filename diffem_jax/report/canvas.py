"""What every picture is drawn on: a figure without global state, its colours, its title, and a file written whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from diffem_jax.storage.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PathLike = str | os.PathLike[str]
Arrays = ArrayLike | None
DPI = 150
INK, ACCENT, SECOND, THIRD, FOURTH = "#222222", "#1f6fb4", "#d1603d", "#3c8d5a", "#8a63a8"
HIDDEN = "#c98fd0"  # what was not observed: no grey, and rare in photographs
LOW, HIGH = -2.0, 2.0  # the range of the data


def new_figure(width: float, height: float) -> Figure:
    """A white figure of this size in inches; matplotlib is imported here."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, facecolor="white")


def set_title(figure: Figure, title: str, inches: float = 0.06) -> None:
    """A line above the axes, whose area ends at 0.88 of the height, by a distance that does not grow with the figure."""
    if title:
        height = figure.get_size_inches()[1]
        figure.text(0.5125, 0.88 + inches / height, title, fontsize=10, color=INK, ha="center", va="bottom")


def save(figure: Figure, path: PathLike) -> Path:
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
