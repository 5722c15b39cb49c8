"""The pieces of the page of a run as HTML: its frame, sections, tables, charts, pictures. Texts are escaped here."""

import base64
import contextlib
import hashlib
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

from diffem_jax.report.numbers import NAMES, metric_name, round_name, shown

WIDTH, HEIGHT = 340.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 10.0, 10.0, 34.0
MOST_PICTURES = 40
MOST_BYTES = 12 * 2**20  # of pictures in a page
CROWDED = 60  # more points than this and only the marked one is drawn as a dot


class Point(NamedTuple):
    """One measured value: round, value, standard error (0 where there is none)."""

    round: int
    value: float
    error: float


def section(title: str, content: str) -> str:
    """A part of the page."""
    return f"<section><h2>{title}</h2>{content}</section>"


def soft(text: str) -> str:
    """A paragraph in the background."""
    return f'<p class="soft">{escape(text)}</p>'


def folded(title: str, note: str, content: str) -> str:
    """A part that opens with a click."""
    return f'<details><summary><h2>{title}</h2><span class="soft">{escape(note)}</span></summary>{content}</details>'


def card(name: str, points: Sequence[Point], samples: int) -> str:
    """A metric: its last value, large, where that came from, and its curve."""
    first, last, title = points[0], points[-1], metric_name(name)
    notes = [f"from {shown(first.value, first.error).partition(' ± ')[0]} at {round_name(first.round)}"]
    notes += [NAMES[name][1]] if name in NAMES else []
    notes += [f"{samples:,} examples"] if samples else []
    value = f"{shown(last.value, last.error)} at {round_name(last.round)}"
    return (
        f'<div class="card"><header><h3>{escape(title)}</h3><span class="readout">{value}</span>'
        f'<p class="soft">{escape("; ".join(notes))}</p></header>{chart(points, title)}</div>'
    )


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """A scrollable table of texts."""
    titles = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = ""
    for name, *cells in rows:
        body += f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(c)}</td>" for c in cells)}</tr>'
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


def chart(points: Sequence[Point], name: str) -> str:
    """One curve over the rounds with its band of a standard error, as an SVG element."""
    left, right = points[0].round, points[-1].round
    right = right if right > left else left + 1
    low, high = min(p.value - p.error for p in points), max(p.value + p.error for p in points)
    pad = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    low, high = low - pad, high + pad

    def x(value: float) -> float:
        return LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def path(sign: int) -> list[str]:
        return [f"{x(p.round):.1f},{y(p.value + sign * p.error):.1f}" for p in points]

    parts = []
    for tick in ticks(low, high, 4):
        at = y(tick)
        parts.append(f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6:g}" y="{at + 3.5:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in ticks(left, right, 6, smallest=1.0):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 15:g}" text-anchor="middle">{tick:.6g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 4:g}" text-anchor="middle">round</text>')
    if any(p.error for p in points) and len(points) > 1:
        parts.append(f'<polygon class="band" points="{" ".join(path(1) + path(-1)[::-1])}"/>')
    parts.append(f'<polyline class="line" points="{" ".join(path(0))}"/>')
    values = [f"{shown(p.value, p.error)} at {round_name(p.round)}" for p in points]
    parts.append(f'<g class="points{" dense" if len(points) > CROWDED else ""}">')
    for p, value in zip(points, values, strict=True):
        place = f'cx="{x(p.round):.1f}" cy="{y(p.value):.1f}"'
        parts.append(f'<circle {place} r="3" data-round="{p.round}" data-label="{value}"/>')
    parts.append("</g>")
    label = escape(f"{name} over rounds: from {values[0]} to {values[-1]}")
    return f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def read_png(path: Path) -> bytes:
    """The bytes of a picture; none where it is missing, too large, or no PNG."""
    with contextlib.suppress(OSError):
        data = path.read_bytes() if path.stat().st_size <= MOST_BYTES else b""
        if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 24:
            return data
    return b""


def thinned(paths: list[Path]) -> list[Path]:
    """Evenly chosen, the first and the last among them, so that number and bytes stay small."""
    mean = sum(p.stat().st_size for p in paths) / max(len(paths), 1)
    most = max(2, min(MOST_PICTURES, int(MOST_BYTES / max(mean, 1))))
    return paths if len(paths) <= most else [paths[round(i * (len(paths) - 1) / (most - 1))] for i in range(most)]


def figure(png: bytes, alt: str, caption: str, attributes: str = "") -> str:
    """A PNG inside the page, on white, scrollable where the window is narrower than the picture can be read."""
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    wide = ' class="wide"' if width > 2 * height and width > 700 else ""
    data = base64.b64encode(png).decode()
    return (
        f'<figure{attributes}><div class="sheet" tabindex="0" role="region" aria-label="picture">'
        f'<img{wide} width="{width}" height="{height}" alt="{escape(alt)}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def page(title: str, body: str) -> str:
    """The whole file, in ASCII. A content policy lets nothing in but its own style, script and pictures."""
    kinds = ("html", "css", "js")
    frame, style, script = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in kinds)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    text = Template(frame).substitute(title=escape(title), policy=policy, style=style, script=script, body=body)
    # Whatever the locale and whatever a file held (a lone surrogate, say), ASCII can be written.
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")
