"""Draws the data flow of a round: ``python docs/figures.py`` writes docs/round.png."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, SOFT = "#1b3a3a", "#6b7f7f"
FILLS = {"maths": "#d9efe9", "host": "#e8e6f5", "outside": "#fbe9d0", "data": "#e3eef8", "plain": "#f4f4f4"}


def box(axes, x, y, w, h, text, kind="plain", size=9):
    axes.add_patch(
        FancyBboxPatch(
            (x, y), w, h, boxstyle="round,pad=0.01,rounding_size=0.08", fc=FILLS[kind], ec=INK, lw=0.9, zorder=2
        )
    )
    axes.text(
        x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size, color=INK, zorder=3, linespacing=1.35
    )


def arrow(axes, start, end, text="", bend=0.0, at=(0, 0), style="-|>"):
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle=style,
            mutation_scale=11,
            lw=1.1,
            color=SOFT,
            connectionstyle=f"arc3,rad={bend}",
            zorder=1,
        )
    )
    if text:
        x, y = (start[0] + end[0]) / 2 + at[0], (start[1] + end[1]) / 2 + at[1]
        axes.text(
            x, y, text, ha="center", va="center", fontsize=7.8, color=INK, style="italic", linespacing=1.3, zorder=4
        )


def canvas(width, height):
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    return figure, axes


def round_flow(path):
    """What goes where in one round."""
    figure, axes = canvas(8.4, 4.1)
    box(axes, 0.2, 2.75, 1.75, 0.85, "observations\n$y_i$, operator $A_i$", "data")
    box(axes, 2.95, 2.75, 1.9, 0.85, "start (round 0)\nGaussian or mixture\nfitted by exact EM", "maths", 8.4)
    box(axes, 6.2, 2.75, 1.95, 0.85, "reconstructions\n$\\hat{x}_i$, in shards", "data")
    box(
        axes,
        6.2,
        0.4,
        1.95,
        1.1,
        "M-step\nfresh $y' \\sim p(y\\,|\\,\\hat{x}_i)$,\ntrain $d(x_t, t\\,|\\,y')$",
        "maths",
        8.6,
    )
    box(axes, 3.1, 0.4, 1.75, 1.1, "checkpoint\nparameters, average,\noptimiser", "host", 8.4)
    box(
        axes,
        0.2,
        0.4,
        1.75,
        1.1,
        "E-step\n$\\hat{x}_i \\sim$ reverse diffusion\nwith $d(\\cdot\\,|\\,y_i)$",
        "maths",
        8.4,
    )
    arrow(axes, (1.97, 3.18), (2.93, 3.18))
    arrow(axes, (4.87, 3.18), (6.18, 3.18), "exact draws", at=(0, 0.17))
    arrow(axes, (7.17, 2.73), (7.17, 1.52))
    arrow(axes, (6.18, 0.95), (4.87, 0.95))
    arrow(axes, (3.08, 0.95), (1.97, 0.95), "average", at=(0, 0.17))
    arrow(axes, (1.07, 2.73), (1.07, 1.52))
    arrow(axes, (1.7, 1.52), (6.3, 2.73), "one draw per observation, next round", at=(0.75, -0.3))
    axes.text(7.17, 3.8, "picture, numbers, report.html", ha="center", fontsize=7.8, color=SOFT)
    axes.text(7.3, 0.14, "no pair $(\\hat{x}_i, y_i)$ is trained on", ha="center", fontsize=7.8, color=SOFT)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    round_flow(folder / "round.png")
