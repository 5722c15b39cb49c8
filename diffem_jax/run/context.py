"""What the rounds of a run share: the objects of a run, and what a trace of it takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffem_jax.build.engine import Engine
from diffem_jax.build.problem import Problem
from diffem_jax.gaussians.gaussians import Start
from diffem_jax.parallel import agree
from diffem_jax.report.console import CompileClock
from diffem_jax.report.writers import Writers
from diffem_jax.run import stopping
from diffem_jax.run.e_step import Drawing, make_drawing
from diffem_jax.run.termination import Say, StopRequest
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Record, Workdir
from diffem_jax.types import EMState, PyTree


class Profile:
    """``--profile=N`` traces N updates of the first M-step, in whole calls, and one E-step batch, for XProf."""

    def __init__(self, folder: Path, updates: int = 0, say: Say = lambda line: None):
        self.folder, self.say = folder, say
        self._left = {"updates": updates, "e_step": min(updates, 1)}
        self._tracing = ""

    def watch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The E-step, a batch of which is traced."""
        if not self._left["e_step"]:
            return step

        def watched(*args: Any) -> Any:
            if self._tracing == "updates":  # an M-step of fewer updates than were asked for
                self._stop()
            result = jax.block_until_ready(step(*args))
            self.note("e_step", 1)
            return result

        return watched

    def note(self, name: str, count: int) -> None:
        """So many updates, or batches of an E-step, have ended: the first ones hold compilation, those after them are traced."""
        if self._tracing:
            self._left[name] -= count
            if self._left[name] <= 0:
                self._stop()
        elif self._left[name] > 0:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # Python's own calls would be most of the file
            jax.profiler.start_trace(self.folder / name, create_perfetto_trace=True, profiler_options=options)
            self._tracing = name

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        folder, self._left[self._tracing] = self.folder / self._tracing, 0
        self._tracing = ""
        self.say(f"profile: {folder} (open it with XProf, or its perfetto_trace.json.gz at ui.perfetto.dev)")


class Run(NamedTuple):
    """What the rounds of a run share."""

    problem: Problem
    workdir: Workdir
    store: ReconstructionStore
    engine: Engine
    start: Start
    start_draw: Callable[..., Any]  # mapped, the E-step of round 0
    params: PyTree | None  # what the first round begins with; None for the network's own
    measure: Callable[..., Record]  # (round, rows of the store) -> metrics
    stop: StopRequest
    say: Say
    writers: Writers
    clock: CompileClock
    profile: Profile


def decision(run: Run) -> stopping.Decision:
    """What the stopping rule says of the rounds so far."""
    stop = run.problem.setup.config.stop
    return stopping.decide(run.workdir.records(), stop.rule, stop.patience)


def drawing_of(run: Run, number: int, state: EMState) -> Drawing:
    """How round ``number`` draws: the E-step with the network's average parameters, or the start."""
    step, params = (run.engine.e_step, state.ema_params) if number else (run.start_draw, run.start)
    return make_drawing(step, run.engine.parallel, params, run.problem.setup.config.e_step.batch_size)


def is_finished(run: Run, number: int) -> bool:
    """Whether a round has its draws, its record and its picture."""
    known = any(r.get("round") == number and r.get("kind") == "round" for r in run.workdir.records())
    complete = run.store.holds(number) and run.store.round(number).is_complete()
    return bool(agree(np.asarray(complete and known and run.workdir.picture(number).exists())))
