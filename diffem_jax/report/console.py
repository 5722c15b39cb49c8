"""What a run says of itself: what it will do, how long that takes once it was measured, and what was reached.

data        1,797 observations of digits, x of shape 8x8x1          beginning
...
M-step 1: 400/1000 updates, 310 updates/s, 2 s left, loss 0.4       Progress, every ten seconds or as a bar
round 1: loss 0.38, ..., psnr 16.9                                  round_line
estimate: about 40 s left at this round's pace                       time_left
done: 8 rounds in 38 s of computing; PSNR, dB 17.4 (start 14.9)     ending
90% intervals hold 88% of held-back measurements
"""

import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any, Self, cast

import jax
from tqdm import tqdm

from diffem_jax.build.problem import Problem
from diffem_jax.parallel import process_count
from diffem_jax.report.facts import is_measure
from diffem_jax.report.numbers import duration, metric_name, number, shown
from diffem_jax.storage.workdir import Record, Workdir

TOLERATED = 0.05  # how far coverage may be off before a run warns of it


def beginning(problem: Problem, workdir: Workdir, parameters: Any) -> list[str]:
    """The first lines: data, corruption, method, network (its parameters, or their shapes), work, devices, place of the results."""
    setup, c, corruption = problem.setup, problem.setup.config, cast(Any, problem.setup.corruption)
    known = {f.name: getattr(corruption, f.name) for f in dataclasses.fields(corruption) if f.name != "shape"}
    shape, devices = "x".join(map(str, setup.shape)), f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    size = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    work = f"{c.m_step.steps:,} updates of batch {c.m_step.batch_size:,}, then {c.e_step.sampler} in {c.e_step.steps} steps"
    draws = f", {c.e_step.draws} draws per observation" if c.e_step.draws > 1 else ""
    lines = {
        "data": f"{problem.num_examples:,} observations of {c.data.name}, x of shape {shape}",
        "corruption": _fields({**known, **c.corruption}) + ", observed under another" * (len(c.data_corruption) > 0),
        "method": f"{c.method}, {c.denoiser.preconditioning} preconditioning, start {c.start.name}",
        "network": f"{c.network.name} with {size:,} parameters",
        "rounds": f"{c.rounds}, each {work}{draws}",
        "prior": f"{c.prior.steps:,} updates on the last reconstructions" if c.prior.steps else "",
        "devices": f"{devices} ({c.parallel}), {process_count()} process(es)",
        "results": f"{workdir.root}: report.html, samples/, metrics.jsonl",
    }
    return [f"{name:<11} {text}" for name, text in lines.items() if text]


def _fields(section: Any) -> str:
    rest = ", ".join(f"{key} {section[key]}" for key in sorted(section) if key != "name")
    return f"{section['name']} ({rest})" if rest else str(section["name"])


def ending(workdir: Workdir, prior: bool) -> list[str]:
    """The last lines: what was reached, whether the draws are as wide as they should be, and what to type next."""
    records, folder = workdir.records(), f"--workdir={shlex.quote(str(workdir.root))}"
    lines = [reached([r for r in records if r.get("kind") == "round"]), *calibrated(records)]
    lines.append(f"page: {workdir.report}, pictures: {workdir.samples}, numbers: {workdir.metrics}")
    lines.append(f"next: diffem --mode=sample {folder} --observations=FILE.npz --num_samples=8 --output=draws.npz")
    if prior:
        lines.append(f"      diffem --mode=sample {folder} --num_samples=64 --output=prior.npz")
    return lines


def reached(records: Sequence[Record]) -> str:
    """One line with each metric's last value and the start's."""
    if not records:
        return "done: no round was asked for"
    first, last = records[0], records[-1]
    seconds = sum(number(r.get(f"{step}_step_seconds")) or 0.0 for r in records for step in "me")
    parts = [f"done: {last['round']} round{'s' * (last['round'] != 1)} in {duration(seconds)} of computing"]
    for name in filter(is_measure, last):
        value, before = number(last[name]), number(first.get(name))
        if value is not None and name != "loss":
            text = f"{metric_name(name)} {shown(value, number(last.get(f'{name}_se')) or 0.0)}"
            parts.append(text if before is None or first is last else f"{text} (start {shown(before)})")
    return "; ".join(parts)


def calibrated(records: Sequence[Record]) -> list[str]:
    """One line of how often 90% intervals hold what was held back, and where that is off what to do; none if not measured."""
    values = [v for r in records if (v := number(r.get("held_out_coverage_90"))) is not None]
    if not values:
        return []
    line, off = f"90% intervals hold {100 * values[-1]:.0f}% of held-back measurements", values[-1] - 0.9
    if off < -TOLERATED:
        return [f"warning: {line}: the draws are too narrow; raise config.e_step.steps or config.e_step.draws"]
    if off > TOLERATED:
        cause = "the network is not fitted yet, raise config.m_step.steps, or many entries have exactly one value, as a black background"
        return [f"warning: {line}: the draws are too wide; {cause}"]
    return [line]


def round_line(number: int, record: Record) -> str:
    """A round's numbers on one line, but for errors, counts and the time of compilation."""
    times = [name for name in record if name.endswith("_step_seconds")]
    names = [name for name in record if (name != "kind" and is_measure(name)) or name in times]
    names += ["redrawn"] if record.get("redrawn") else []
    return f"round {number}: " + ", ".join(f"{name} {record[name]:.4g}" for name in names)


def time_left(config: Any, number: int, record: Record) -> list[str]:
    """A line on the time that is left after round ``number``; none for the start, which has no M-step, and at the end."""
    m_seconds, rounds = record.get("m_step_seconds"), config.rounds - number
    if m_seconds is None or not (rounds or config.prior.steps):
        return []
    seconds = rounds * (m_seconds + record["e_step_seconds"]) + config.prior.steps * m_seconds / config.m_step.steps
    return [f"estimate: about {duration(seconds)} left at this round's pace"]


class Progress:
    """Counts units of work towards a total, of which ``done`` were done before: a bar on a terminal, else a line every few seconds."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0, quiet: bool = False, every: float = 10.0):
        self.label, self.total, self.unit, self.quiet, self.every = label, total, unit, quiet, every
        self.count, self.first = done, done
        self.last = time.monotonic()
        self.begin: float | None = None  # of the measured rate: the first units hold compilation
        live = sys.stderr.isatty() and not quiet
        self.bar = tqdm(total=total, initial=done, desc=label, unit=unit, leave=False) if live else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, units: int, note: str = "") -> None:
        """Counts units done; ``note`` is shown beside them."""
        self.count += units
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(units)
            return
        now = time.monotonic()
        if self.begin is None:
            self.begin, self.first = now, self.count
        if self.quiet or now - self.last < self.every:
            return
        self.last = now
        parts = [f"{self.label}: {self.count}/{self.total} {self.unit}"]
        if self.count > self.first and now > self.begin:
            rate = (self.count - self.first) / (now - self.begin)
            parts.append(f"{rate:.4g} {self.unit}/s, {(self.total - self.count) / rate:.0f} s left")
        print(", ".join([*parts, note] if note else parts), flush=True)


class CompileClock:
    """Seconds that XLA has spent compiling in this process since the clock was made."""

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        # Tracing and lowering nest and would count twice; the compiler itself is what a second run would save.
        if event == "/jax/core/compile/backend_compile_duration":
            self.seconds += duration_secs

    def lap(self) -> float:
        """Seconds since the last lap."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
