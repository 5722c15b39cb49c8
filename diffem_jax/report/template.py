"""The pieces of the page of a run: its frame, its charts, its numbers as text. Everything is escaped here."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

WIDTH, HEIGHT = 340.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 10.0, 10.0, 34.0
MOST_PICTURES = 40
MOST_BYTES = 12 * 2**20  # of pictures in a page
CROWDED = 60  # more points than this and only the marked one is drawn as a dot

NAMES = {
    "loss": ("Denoising loss", "lower is better"),
    "psnr": ("PSNR, dB", "higher is better"),
    "ssim": ("SSIM", "higher is better"),
    "accuracy": ("Accuracy of a classifier", "higher is better"),
    "sinkhorn": ("Sinkhorn divergence", "lower is better"),
    "sliced_wasserstein": ("Sliced Wasserstein distance", "lower is better"),
    "observation_distance": ("Distance of the observations", "lower is better"),
    "held_out": ("Error on held-back measurements", "lower is better"),
    "held_out_coverage_90": ("90% intervals, held-back measurements", "0.90 is right"),
    "held_out_tarp_90": ("90% regions, held-back measurements", "0.90 is right"),
    "coverage_90": ("90% intervals, x", "0.90 is right"),
    "tarp_90": ("90% regions, x", "0.90 is right"),
    "crps": ("CRPS", "lower is better"),
}


class Point(NamedTuple):
    """One measured value: round, seconds of computing up to it, value, standard error (0 where there is none)."""

    round: int
    seconds: float
    value: float
    error: float


def number(value: Any) -> float | None:
    """A float of something read from a file; None for what is no number, not finite, or too large to draw."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e150 else None


def shown(value: float, error: float = 0.0) -> str:
    """'17.441 ± 0.060': two digits of the error, and as many decimals of the value."""
    if error > 1e-7 and abs(value) < 1e7:
        decimals = max(0, 1 - math.floor(math.log10(error)))
        return f"{value:.{decimals}f} ± {error:.{decimals}f}"
    return f"{value:#.4g}".rstrip(".")


def duration(seconds: float) -> str:
    """'42 s', '3 min 56 s', '5 h 10 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def round_name(index: int) -> str:
    """'start' for round 0."""
    return f"round {index}" if index else "start"


def metric_name(metric: str) -> str:
    """A metric's name for people."""
    return NAMES.get(metric, (metric.replace("_", " "), ""))[0]


def tile(name: str, points: Sequence[Point], samples: int, newest: int | None) -> str:
    """The last value of a metric, large, and where it came from; its round where that is not the newest."""
    first, last = points[0], points[-1]
    value, _, error = shown(last.value, last.error).partition(" ± ")
    notes = [f"from {shown(first.value, first.error).partition(' ± ')[0]} at {round_name(first.round)}"]
    notes += [f"measured at {round_name(last.round)}"] if last.round != newest else []
    notes += [NAMES[name][1]] if name in NAMES else []
    notes += [f"{samples:,} examples"] if samples else []
    small = f" <small>± {error}</small>" if error else ""
    return (
        f'<div><dt>{escape(metric_name(name))}</dt><dd class="value">{value}{small}</dd>'
        f'<dd class="unit">{escape("; ".join(notes))}</dd></div>'
    )


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """A scrollable table of texts."""
    titles = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + f'<th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(c)}</td>" for c in row[1:]) + "</tr>"
        for row in rows
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="table">'
        f'<table class="numbers"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def pairs(title: str, rows: Sequence[tuple[str, str, str]]) -> str:
    """A small table of (name, value, note); a row with a note is marked as changed."""
    lines = ""
    for name, value, note in rows:
        start = f'<tr class="changed" title="{escape(note)}">' if note else "<tr>"
        lines += f'{start}<th scope="row">{escape(name)}</th><td><code>{escape(value)}</code></td></tr>'
    return f"<table><caption>{escape(title)}</caption><tbody>{lines}</tbody></table>"


def ticks(low: float, high: float, most: int = 5, smallest: float = 0.0) -> list[float]:
    """Round numbers that lie between low and high, in steps of 1, 2 or 5 times a power of ten."""
    rough = max((high - low) / most, smallest, 1e-300)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, first + 2 * most + 2) if i * step <= high + 1e-9 * step]


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def chart(points: Sequence[Point], name: str, *, by_seconds: bool) -> str:
    """One curve with its band of a standard error as an SVG element, over rounds or over seconds of computing."""
    unit, axis = _time_unit(points[-1].seconds) if by_seconds else (1.0, "round")
    across = [p.seconds / unit if by_seconds else float(p.round) for p in points]
    left, right = min(0.0 if by_seconds else across[0], across[0]), across[-1]
    right = right if right > left else left + 1.0
    low, high = min(p.value - p.error for p in points), max(p.value + p.error for p in points)
    pad = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    low, high = low - pad, high + pad

    def x(value: float) -> float:
        return LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks(low, high, 4):
        at = y(tick)
        parts.append(f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6:g}" y="{at + 3.5:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in ticks(left, right, 6, smallest=0.0 if by_seconds else 1.0):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 15:g}" text-anchor="middle">{tick:.6g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 4:g}" text-anchor="middle">{axis}</text>')
    if any(p.error for p in points) and len(points) > 1:
        upper = [f"{x(a):.1f},{y(p.value + p.error):.1f}" for a, p in zip(across, points, strict=True)]
        lower = [f"{x(a):.1f},{y(p.value - p.error):.1f}" for a, p in zip(across, points, strict=True)]
        parts.append(f'<polygon class="band" points="{" ".join(upper + lower[::-1])}"/>')
    line = " ".join(f"{x(a):.1f},{y(p.value):.1f}" for a, p in zip(across, points, strict=True))
    parts.append(f'<polyline class="line" points="{line}"/>')
    dots = "".join(
        f'<circle cx="{x(a):.1f}" cy="{y(p.value):.1f}" r="3" data-round="{p.round}" '
        f'data-label="{shown(p.value, p.error)} at {round_name(p.round)}"/>'
        for a, p in zip(across, points, strict=True)
    )
    parts.append(f'<g class="points{" dense" if len(points) > CROWDED else ""}">{dots}</g>')
    first, last = points[0], points[-1]
    label = (
        f"{name} over {axis if by_seconds else 'rounds'}: from {shown(first.value, first.error)} at "
        f"{round_name(first.round)} to {shown(last.value, last.error)} at {round_name(last.round)}"
    )
    kind = "by-seconds" if by_seconds else "by-rounds"
    return (
        f'<svg class="{kind}" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def read_png(path: Path) -> bytes:
    """The bytes of a picture; none where it is missing, too large, or no PNG."""
    with contextlib.suppress(OSError):
        if path.stat().st_size <= MOST_BYTES:
            data = path.read_bytes()
            if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 24:
                return data
    return b""


def thinned(paths: list[Path]) -> list[Path]:
    """Evenly chosen, the first and the last among them, so that number and bytes stay small."""
    mean = sum(p.stat().st_size for p in paths) / max(len(paths), 1)
    most = max(2, min(MOST_PICTURES, int(MOST_BYTES / max(mean, 1))))
    if len(paths) <= most:
        return paths
    return [paths[round(i * (len(paths) - 1) / (most - 1))] for i in range(most)]


def picture(png: bytes, alt: str) -> str:
    """A PNG inside the page, on white, scrollable where the window is narrower than the picture can be read."""
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    wide = ' class="wide"' if width > 2 * height and width > 700 else ""
    data = base64.b64encode(png).decode()
    return (
        '<div class="sheet" tabindex="0" role="region" aria-label="picture">'
        f'<img{wide} width="{width}" height="{height}" alt="{escape(alt)}" src="data:image/png;base64,{data}"></div>'
    )


def page(title: str, body: str) -> str:
    """The whole file, in ASCII. A content policy lets nothing in but its own style, script and pictures."""
    style, script = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{style}</style>\n<script>{script}</script>\n</head>\n"
        f'<body data-axis="rounds">\n{body}\n</body>\n</html>\n'
    )
    # Whatever the locale and whatever a file held (a lone surrogate, say), ASCII can be written.
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")
