"""The page of a run: report.html, one file, written again after each round; a damaged file costs its section only."""

import json
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from typing import Any

from diffem_jax.config import default, flatten
from diffem_jax.errors import UserError
from diffem_jax.report import plots, template
from diffem_jax.report.facts import Facts, is_measure, note_environment, read_facts
from diffem_jax.report.numbers import duration, metric_name, number, round_name, shown
from diffem_jax.report.template import figure, folded, pairs, section, soft, table
from diffem_jax.storage.files import write_atomically
from diffem_jax.storage.workdir import Workdir

PAPER = "DiffEM: arXiv 2510.12691, https://arxiv.org/abs/2510.12691"


def write(workdir: Workdir) -> None:
    """Notes the environment of this process's run and writes its page; one that cannot be written is a warning."""
    note_environment(workdir)
    try:
        rebuild(workdir)
    except UserError as error:
        warnings.warn(str(error), stacklevel=2)


def rebuild(workdir: Workdir) -> None:
    """Writes the page of a run of another process; UserError where it cannot be written."""
    try:
        write_atomically(workdir.report, build(workdir))
    except OSError as error:
        cure = "expected free space and write permission; correct that, then run --mode=report"
        raise UserError(f"{workdir.report}: cannot be written ({error}); {cure}") from error


def build(workdir: Workdir) -> str:
    """The text of the page; the picture of calibration is drawn on the way."""
    facts = read_facts(workdir)
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = (_head, _curves, _pictures, _spread, _calibration, _stopping, _details)
    body = "\n".join(filter(None, (_guarded(part, facts) for part in parts)))
    footer = f"<footer>Made {made} by diffem_jax. {escape(PAPER)}</footer>"
    return template.page(f"{_title(facts)} · diffem_jax", f"<main>\n{body}\n</main>\n{footer}")


def _guarded(part: Callable[[Facts], str], facts: Facts) -> str:
    try:
        return part(facts)
    except Exception as error:  # a page with a gap is better than a run that ends
        return f"<section><p>A part of this page could not be made ({escape(type(error).__name__)}).</p></section>"


def _title(facts: Facts) -> str:
    names = (facts.config.get(f"{part}.name") for part in ("data", "corruption"))
    return ", ".join(str(n).replace("_", " ") for n in names if n) or "A run"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _field(facts: Facts, name: str, unknown: str = "unknown") -> str:
    """A field of the configuration as words."""
    return _text(facts.config.get(name, unknown)).replace("_", " ")


def _head(facts: Facts) -> str:
    last, total = facts.last, number(facts.config.get("rounds"))
    if last is None:
        parts = ["No round is finished yet."]
    elif total is not None and last >= total:
        parts = [f"All {total:g} rounds are done."]
    else:
        stopped = any(r.get("kind") == "stop" for r in facts.records)
        of = f" of {total:g}" if total is not None else ""
        parts = [f"{'The run stopped after' if stopped else 'Done so far:'} round {last}{of}."]
    if facts.seconds:
        parts.append(f"{duration(facts.seconds)} of computing in M-steps and E-steps.")
    if facts.config:
        method, start, updates = (_field(facts, name) for name in ("method", "start.name", "m_step.steps"))
        parts.append(f"Method {method}, start {start}, {updates} updates per round.")
    made = soft("The command that made it was not noted.")
    if command := facts.environment.get("command"):
        words = " ".join(f"<span>{escape(word)}</span>" for word in _text(command).split(" "))
        made = f"<pre><code>{words}</code></pre>"
    return (
        f'<header><p class="eyebrow">diffem_jax &middot; {escape(facts.workdir.root.absolute().name)}</p>\n'
        f'<h1>{escape(_title(facts))}</h1>\n<p class="lead">{escape(" ".join(parts))}</p>\n{made}</header>'
    )


def _curves(facts: Facts) -> str:
    if not facts.metrics:
        return section("Measures", soft("There are no numbers yet."))
    cards = "".join(template.card(name, p, facts.samples[name]) for name, p in facts.metrics.items())
    note = soft("Bands are one standard error to each side.") if 'class="band"' in cards else ""
    return section("Measures", f'<div class="cards">{cards}</div>{note}')


def _pictures(facts: Facts) -> str:
    numbered = {int(p.stem[6:]): p for p in facts.workdir.samples.glob("round_*.png") if p.stem[6:].isdecimal()}
    kept = set(template.thinned([numbered[i] for i in sorted(numbered)]))
    found = {i: png for i in sorted(numbered) if numbered[i] in kept and (png := template.read_png(numbered[i]))}
    if not found:
        return section("Rounds", soft("There are no pictures yet."))
    figures = ""
    for index, png in found.items():
        name = round_name(index)
        points = [(n, p) for n, points in facts.metrics.items() for p in points if p.round == index]
        caption = " · ".join([name.capitalize(), *(f"{metric_name(n)} {shown(p.value, p.error)}" for n, p in points)])
        alt = f"Picture of {name}: what was observed, what was reconstructed, and the truth where it is known"
        figures += figure(png, alt, caption, f' data-round="{index}" data-name="{name}"')
    few = len(found) < len(numbered)
    note = soft(f"{len(found)} of {len(numbered)} pictures are in this page; samples/ holds all.") if few else ""
    last = len(found) - 1
    slider = (
        '<div class="slider" id="slider" hidden><label for="round">Round</label>'
        f'<input type="range" id="round" min="0" max="{last}" step="1" value="{last}">'
        '<output id="shown" for="round"></output></div>'
    )
    return section("Rounds", f"<div>{slider}{figures}</div>{note}")


def _spread(facts: Facts) -> str:
    if not (png := template.read_png(facts.workdir.samples / "spread.png")):
        return ""
    alt = "Several draws per observation: the observation, draws, their mean, their standard deviation, and the truth"
    caption = "Each column is one observation. Where the draws differ, it leaves the answer open."
    return section("Several draws per observation", figure(png, alt, caption))


def _calibration(facts: Facts) -> str:
    if facts.calibration is None:
        return ""
    index, levels, values = facts.calibration
    path = plots.calibration(facts.workdir.samples / "calibration.png", levels, values)
    alt = "Share of values inside intervals of the draws, against the intervals' nominal level, with the diagonal"
    caption = (
        f"How often intervals of the draws of {round_name(index)} hold what they should: below the diagonal they are too narrow, "
        "above it too wide. Jointly: regions of all entries together (TARP)."
    )
    rows = [[name, *(f"{100 * v:.1f}%" if v == v else "" for v in row)] for name, row in values.items()]
    head = ["intervals of", *(f"{100 * level:.0f}%" for level in levels)]
    return section("Calibration", figure(template.read_png(path), alt, caption) + table(rows, head))


def _stopping(facts: Facts) -> str:
    rule = _text(facts.config.get("stop.rule", "none"))
    stops = [r for r in facts.records if r.get("kind") == "stop"]
    says = f"No stopping rule is set: the run goes on for all its rounds ({_field(facts, 'rounds')})."
    if rule != "none":
        patience = _field(facts, "stop.patience")
        says = f"Rule {rule.replace('_', ' ')}, patience {patience} rounds: {_kept(facts, rule, stops)}"
    lines = [_event("Stop", r) for r in stops]
    lines += [_event("Measured afterwards", r) for r in facts.records if r.get("kind") == "evaluation"]
    listed = f'<ul class="events">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ""
    return section("Stopping and events", f'<p class="says">{escape(says)}</p>{listed}')


def _kept(facts: Facts, rule: str, stops: list[dict[str, Any]]) -> str:
    """Which round a rule keeps, or would keep as of now."""
    kept = stops[-1].get("picked") if stops else None
    if not (measured := [p for p in facts.metrics.get(rule, []) if p.round > 0]):
        return "there is nothing to compare yet."
    best = next((p for p in measured if p.round == kept), min(measured, key=lambda p: p.value))
    found = f"{round_name(best.round)} is the best, {shown(best.value, best.error)}."
    return f"so far {found} It has not asked to stop." if kept is None else f"{found} It is the one that sampling uses."


def _event(title: str, record: dict[str, Any]) -> str:
    parts = [_text(record["reason"])] if "reason" in record else []
    for name, value in record.items():
        measured = number(value)
        if name in ("kind", "reason") or name.endswith("_se") or (measured is not None and not is_measure(name)):
            continue
        whole = measured is None or isinstance(value, int)
        text = _text(value) if whole else shown(value, number(record.get(f"{name}_se")) or 0.0)
        parts.append(f"{name.replace('_', ' ')} {text}")
    return f"{title}, {round_name(record['round'])}: {'; '.join(parts)}"


def _details(facts: Facts) -> str:
    return f"<section>{''.join(_guarded(part, facts) for part in (_config, _environment))}</section>"


def _config(facts: Facts) -> str:
    if not facts.config:
        return folded("Configuration", "none", "<p>config.json is missing, or cannot be read.</p>")
    usual, changed = flatten(default()), 0
    sections: dict[str, list[tuple[str, str, str]]] = {"run": []}
    for name, value in facts.config.items():
        part, _, field = name.rpartition(".")
        note = f"the default is {_text(usual[name])}" if name in usual and usual[name] != value else ""
        changed += bool(note)
        sections.setdefault(part or "run", []).append((field, _text(value), note))
    tables = "".join(pairs(part, rows) for part, rows in sections.items())
    note = f"{len(facts.config)} fields, {changed} of them not at the default (coloured)"
    return folded("Configuration", note, f'<div class="columns">{tables}</div>')


def _environment(facts: Facts) -> str:
    found = facts.environment
    if not isinstance(found.get("versions"), dict):
        return folded("Environment and versions", "none", "<p>The run noted none.</p>")
    versions = [(name, _text(value), "") for name, value in found["versions"].items()]
    names = [name for name in ("device", "platform", "devices", "processes") if name in found]
    tables = pairs("versions", versions) + pairs("computing", [(name, _text(found[name]), "") for name in names])
    title = f"{_text(found.get('devices'))} \u00d7 {_text(found.get('device'))}"
    return folded("Environment and versions", title, f'<div class="columns">{tables}</div>')
