"""``--profile=N``: a trace of N updates of the first M-step and of one E-step batch, for XProf or Perfetto."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces what comes after compilation, and nothing else of a run.

    Args:
        folder: where traces go: updates/ and e_step/.
        updates: at least so many are traced, in whole calls; 0 traces nothing.
        say: takes lines for the person watching.
    """

    def __init__(self, folder: Path, updates: int = 0, say: Callable[[str], None] = lambda line: None):
        self.folder, self.updates, self.say = folder, updates, say
        self._left = updates  # updates still to be traced
        self._tracing = False
        self._batches = 0

    def note_updates(self, count: int) -> None:
        """``count`` updates have ended; the first ones held compilation, the trace begins after them."""
        if self._tracing:
            self._left -= count
            if self._left <= 0:
                self._stop("updates")
        elif self._left > 0:
            self._start("updates")

    def watch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The E-step, whose second batch is traced: the first one holds compilation."""
        if not self.updates:
            return step

        def watched(*args: Any) -> Any:
            if self._tracing:  # an M-step of fewer updates than were asked for
                self._left = 0
                self._stop("updates")
            self._batches += 1
            if self._batches != 2:
                return step(*args)
            self._start("e_step")
            result = jax.block_until_ready(step(*args))
            self._stop("e_step")
            return result

        return watched

    def _start(self, name: str) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Python's own calls would be most of the file
        jax.profiler.start_trace(self.folder / name, create_perfetto_trace=True, profiler_options=options)
        self._tracing = True

    def _stop(self, name: str) -> None:
        jax.profiler.stop_trace()
        self._tracing = False
        self.say(
            f"profile: {self.folder / name} (open it with XProf, or its perfetto_trace.json.gz at ui.perfetto.dev)"
        )
