"""Progress of long work and its clock: a bar with rate and time left on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

import jax
from tqdm import tqdm


class Progress:
    """Counts units of work towards a total; a context manager.

    Args:
        label: what is being done.
        total: how many units there are.
        unit: the unit's name.
        done: units done before (a resumed run).
        quiet: say nothing (all but the first process).
        every: seconds between lines in a log.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0, quiet: bool = False, every: float = 10.0):
        self.label, self.total, self.unit, self.every = label, total, unit, every
        self.count, self.first = done, done
        self.last = time.monotonic()
        self.begin: float | None = None  # of the measured rate: the first units hold compilation
        self.quiet = quiet
        self.note = ""
        live = sys.stderr.isatty() and not quiet
        self.bar = tqdm(total=total, initial=done, desc=label, unit=unit, leave=False) if live else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
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
        line = f"{self.label}: {self.count}/{self.total} {self.unit}"
        if self.count > self.first and now > self.begin:
            rate = (self.count - self.first) / (now - self.begin)
            line += f", {rate:.4g} {self.unit}/s, {(self.total - self.count) / rate:.0f} s left"
        print(f"{line}{', ' + note if note else ''}", flush=True)


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
