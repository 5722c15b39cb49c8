"""The page of a run: report.html, one file that opens without a network, written again after each round.

It is made of what lies in the work directory and never stops a run: a missing or damaged file costs its section only.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from typing import Any

from diffem_jax.config import default, flatten
from diffem_jax.errors import UserError
from diffem_jax.report import plots
from diffem_jax.report.facts import Facts, is_measure, note_environment, read_facts, versions
from diffem_jax.report.template import (
    Point,
    chart,
    duration,
    metric_name,
    number,
    page,
    pairs,
    picture,
    read_png,
    round_name,
    shown,
    table,
    thinned,
    tile,
)
from diffem_jax.storage.files import write_atomically
from diffem_jax.storage.workdir import Workdir

PAPER = "DiffEM: arXiv 2510.12691, https://arxiv.org/abs/2510.12691"


def write(workdir: Workdir) -> None:
    """Notes the environment of the run of this process and writes its page; one that cannot be written is a warning."""
    note_environment(workdir)
    try:
        write_atomically(workdir.report, build(workdir))
    except OSError as error:
        warnings.warn(_unwritable(workdir, error), stacklevel=2)


def rebuild(workdir: Workdir) -> None:
    """Writes the page of a run of another process.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomically(workdir.report, build(workdir))
    except OSError as error:
        raise UserError(f"{_unwritable(workdir, error)}; correct that, then run --mode=report again") from error


def _unwritable(workdir: Workdir, error: OSError) -> str:
    return f"{workdir.report}: cannot be written ({error}); expected free space and write permission"


def build(workdir: Workdir) -> str:
    """The text of the page; the picture of calibration is drawn on the way."""
    facts = read_facts(workdir)
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    sections = (_head, _curves, _pictures, _spread, _calibration, _others, _stopping, _details)
    body = "\n".join(filter(None, (_guarded(section, facts) for section in sections)))
    footer = f"<footer>Made {made} by diffem_jax. {escape(PAPER)}</footer>"
    return page(f"{_title(facts)} · diffem_jax", f"<main>\n{body}\n</main>\n{footer}")


def _guarded(section: Callable[[Facts], str], facts: Facts) -> str:
    try:
        return section(facts)
    except Exception as error:  # a page with a gap is better than a run that ends
        return f"<section><p>A part of this page could not be made ({escape(type(error).__name__)}).</p></section>"


def _title(facts: Facts) -> str:
    names = (facts.config.get(f"{part}.name") for part in ("data", "corruption"))
    return ", ".join(str(n).replace("_", " ") for n in names if n) or "A run"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _head(facts: Facts) -> str:
    config, last, total = facts.config, facts.last, number(facts.config.get("rounds"))
    stopped = any(r.get("kind") == "stop" for r in facts.records)
    if last is None:
        state = "No round is finished yet."
    elif total is not None and last >= total:
        state = f"All {total:g} rounds are done."
    else:
        of = f" of {total:g}" if total is not None else ""
        state = f"{'The run stopped after' if stopped else 'Done so far:'} round {last}{of}."
    seconds = max((points[-1].seconds for points in facts.metrics.values()), default=0.0)
    parts = [state]
    if seconds:
        parts.append(f"{duration(seconds)} of computing in M-steps and E-steps.")
    if config:
        start, updates = _text(config.get("start.name", "unknown")), _text(config.get("m_step.steps", "unknown"))
        method = _text(config.get("method", "unknown"))
        parts.append(f"Method {method}, start {start.replace('_', ' ')}, {updates} updates per round.")
    tiles = "".join(tile(name, points, facts.samples[name], last) for name, points in facts.metrics.items())
    command = facts.environment.get("command")
    made = (
        f"<pre><code>{' '.join(f'<span>{escape(word)}</span>' for word in _text(command).split(' '))}</code></pre>"
        if command
        else '<p class="soft">The command that made it was not noted.</p>'
    )
    return (
        f'<header><p class="eyebrow">diffem_jax &middot; {escape(facts.workdir.root.absolute().name)}</p>\n'
        f'<h1>{escape(_title(facts))}</h1>\n<p class="lead">{escape(" ".join(parts))}</p>\n{made}\n'
        + (f'<dl class="tiles">{tiles}</dl>' if tiles else "")
        + "</header>"
    )


def _curves(facts: Facts) -> str:
    if not facts.metrics:
        return '<section><h2>Curves</h2><p class="soft">There are no numbers yet.</p></section>'
    cards = ""
    for name, points in facts.metrics.items():
        drawn = "".join(chart(points, metric_name(name), by_seconds=by_seconds) for by_seconds in (False, True))
        head = f'<header><h3>{escape(metric_name(name))}</h3><span class="readout"></span></header>'
        cards += f'<div class="card">{head}{drawn}</div>'
    toggle = (
        '<fieldset id="axes" hidden><label><input type="radio" name="axis" value="rounds" checked> over rounds</label>'
        '<label><input type="radio" name="axis" value="seconds"> over time</label></fieldset>'
    )
    bands = any(p.error for points in facts.metrics.values() for p in points)
    note = '<p class="soft">Bands are one standard error to each side.</p>' if bands else ""
    return f'<section><div class="bar"><h2>Curves</h2>{toggle}</div><div class="cards">{cards}</div>{note}</section>'


def _pictures(facts: Facts) -> str:
    numbered = {int(p.stem[6:]): p for p in facts.workdir.samples.glob("round_*.png") if p.stem[6:].isdecimal()}
    kept = set(thinned([numbered[i] for i in sorted(numbered)]))
    figures = [(i, data) for i in sorted(numbered) if numbered[i] in kept and (data := read_png(numbered[i]))]
    if not figures:
        return '<section><h2>Rounds</h2><p class="soft">There are no pictures yet.</p></section>'
    out = ""
    for index, data in figures:
        found = [(n, p) for n, points in facts.metrics.items() for p in points if p.round == index]
        values = " · ".join(
            [round_name(index).capitalize(), *(f"{metric_name(n)} {shown(p.value, p.error)}" for n, p in found)]
        )
        alt = f"Picture of {round_name(index)}: what was observed, what was reconstructed, and the truth where it is known"
        out += (
            f'<figure data-round="{index}" data-name="{round_name(index)}">{picture(data, alt)}'
            f"<figcaption>{escape(values)}</figcaption></figure>"
        )
    note = ""
    if len(figures) < len(numbered):
        note = f'<p class="soft">{len(figures)} of {len(numbered)} pictures are in this page; samples/ holds all.</p>'
    slider = (
        '<div class="slider" id="slider" hidden><label for="round">Round</label>'
        f'<input type="range" id="round" min="0" max="{len(figures) - 1}" step="1" value="{len(figures) - 1}">'
        '<output id="shown" for="round"></output></div>'
    )
    return f'<section><div class="bar"><h2>Rounds</h2></div><div>{slider}{out}</div>{note}</section>'


def _spread(facts: Facts) -> str:
    data = read_png(facts.workdir.samples / "spread.png")
    if not data:
        return ""
    alt = "Several draws per observation: the observation, draws, their mean, their standard deviation, and the truth"
    return (
        '<section><div class="bar"><h2>Several draws per observation</h2></div>'
        f"<figure>{picture(data, alt)}<figcaption>Each column is one observation. Where the draws differ, the observation "
        "leaves the answer open; the standard deviation shows where.</figcaption></figure></section>"
    )


def _calibration(facts: Facts) -> str:
    if facts.calibration is None:
        return ""
    number_of, levels, values = facts.calibration
    path = plots.calibration(facts.workdir.samples / "calibration.png", levels, values)
    rows = [[name, *(f"{100 * v:.1f}%" if v == v else "" for v in row)] for name, row in values.items()]
    alt = "Share of values inside intervals of the draws, against the intervals' nominal level, with the diagonal"
    return (
        '<section><div class="bar"><h2>Calibration</h2></div>'
        f"<figure>{picture(read_png(path), alt)}<figcaption>How often intervals of the draws of {round_name(number_of)} hold what "
        "they should: on the diagonal a posterior is as wide as it says, below it too narrow, above it too wide. "
        "Jointly: regions of all entries together (TARP).</figcaption></figure>"
        + table(rows, ["intervals of", *(f"{100 * level:.0f}%" for level in levels)])
        + "</section>"
    )


def _others(facts: Facts) -> str:
    paths = [
        p
        for p in sorted(facts.workdir.samples.glob("*.png"))
        if not re.fullmatch(r"round_\d+|spread|calibration|\..*", p.stem)
    ]
    found = [(p.stem.replace("_", " "), data) for p in thinned(paths) if (data := read_png(p))]
    figures = "".join(
        f"<figure>{picture(data, f'Picture: {name}')}<figcaption>{escape(name)}</figcaption></figure>"
        for name, data in found
    )
    return f'<section><div class="bar"><h2>Other pictures</h2></div>{figures}</section>' if figures else ""


def _stopping(facts: Facts) -> str:
    rule = _text(facts.config.get("stop.rule", "none"))
    patience, total = (_text(facts.config.get(name, "unknown")) for name in ("stop.patience", "rounds"))
    stops = [r for r in facts.records if r.get("kind") == "stop"]
    if rule != "none":
        says = f"Rule {rule.replace('_', ' ')}, patience {patience} rounds: " + _kept(facts, rule, stops)
    else:
        says = f"No stopping rule is set: the run goes on for all its rounds ({total})."
    distances = facts.metrics.get("observation_distance")
    if distances:
        best = min(distances, key=lambda p: p.value)
        says += (
            f" The distance of the observations is least at {round_name(best.round)}: {shown(best.value, best.error)}."
        )
    lines = [("Stop", r) for r in stops]
    lines += [("Measured afterwards", r) for r in facts.records if r.get("kind") == "evaluation"]
    events = "".join(f"<li>{escape(_event(title, record))}</li>" for title, record in lines)
    listed = f'<ul class="events">{events}</ul>' if events else ""
    return f'<section><h2>Stopping and events</h2><p class="says">{escape(says)}</p>{listed}</section>'


def _kept(facts: Facts, rule: str, stops: list[dict[str, Any]]) -> str:
    """Which round a rule keeps, or would keep as of now."""
    kept = stops[-1].get("picked") if stops else None
    measured = [p for p in facts.metrics.get(rule, []) if p.round > 0]
    if not measured:
        return "there is nothing to compare yet."
    best = next((p for p in measured if p.round == kept), min(measured, key=lambda p: p.value))
    end = "It is the one that sampling uses." if kept is not None else "It has not asked to stop."
    return f"{'' if kept is not None else 'so far '}{round_name(best.round)} is the best, {shown(best.value, best.error)}. {end}"


def _event(title: str, record: dict[str, Any]) -> str:
    numbers = {k: v for k, v in record.items() if k not in ("kind", "reason") and not k.endswith("_se")}
    rest = {k: v for k, v in numbers.items() if number(v) is None or is_measure(k)}
    values = []
    for name, value in rest.items():
        measured = number(value)
        text = (
            _text(value)
            if measured is None or isinstance(value, int)
            else shown(measured, number(record.get(f"{name}_se")) or 0.0)
        )
        values.append(f"{name.replace('_', ' ')} {text}")
    reason = [_text(record["reason"])] if "reason" in record else []
    return f"{title}, {round_name(record['round'])}: " + "; ".join(reason + values)


def _details(facts: Facts) -> str:
    return "<section>" + "".join(_guarded(part, facts) for part in (_numbers, _config, _versions_table)) + "</section>"


def _folded(title: str, note: str, content: str) -> str:
    return f'<details><summary><h2>{title}</h2><span class="soft">{escape(note)}</span></summary>{content}</details>'


def _numbers(facts: Facts) -> str:
    by_round: dict[int, dict[str, Point]] = {}
    for name, points in facts.metrics.items():
        for point in points:
            by_round.setdefault(point.round, {})[name] = point
    rows = []
    for index in sorted(by_round):
        found = by_round[index]
        cells = [shown(found[n].value, found[n].error) if n in found else "" for n in facts.metrics]
        rows.append([round_name(index), *cells, duration(next(iter(found.values())).seconds)])
    head = ["round", *map(metric_name, facts.metrics), "computing so far"]
    return _folded("Numbers", f"{len(rows)} rounds", table(rows, head)) if rows else ""


def _config(facts: Facts) -> str:
    if not facts.config:
        return _folded("Configuration", "none", "<p>config.json is missing, or cannot be read.</p>")
    usual = flatten(default())
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for name, value in facts.config.items():
        section, _, field = name.rpartition(".")
        note = f"the default is {_text(usual[name])}" if name in usual and usual[name] != value else ""
        sections.setdefault(section or "run", []).append((field, _text(value), note))
    tables = "".join(pairs(section, rows) for section, rows in sorted(sections.items(), key=lambda s: s[0] != "run"))
    changed = sum(bool(note) for rows in sections.values() for _, _, note in rows)
    note = f"{len(facts.config)} fields, {changed} of them not at the default (coloured)"
    return _folded("Configuration", note, f'<div class="columns">{tables}</div>')


def _versions_table(facts: Facts) -> str:
    found, found_versions = facts.environment, facts.environment.get("versions")
    note = ""
    if not isinstance(found_versions, dict):
        found_versions, note = versions(), "<p>The run noted none; these are of the process that made this page.</p>"
    rows = [(name, _text(value), "") for name, value in found_versions.items()]
    device = [
        (name, _text(found[name]), "") for name in ("device", "platform", "devices", "processes") if name in found
    ]
    tables = pairs("versions", rows) + (pairs("computing", device) if device else "")
    title = (
        f"{_text(found['devices'])} \u00d7 {_text(found['device'])}" if "device" in found and "devices" in found else ""
    )
    return _folded("Environment and versions", title, f'{note}<div class="columns">{tables}</div>')
