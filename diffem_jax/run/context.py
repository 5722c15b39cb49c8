"""What the rounds of a run share, and how a round is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffem_jax.build.engine import Engine
from diffem_jax.build.problem import Problem
from diffem_jax.gaussians.gaussians import Mixture
from diffem_jax.parallel import agree
from diffem_jax.report.console import CompileClock, Estimate
from diffem_jax.report.writers import Writers
from diffem_jax.run import stopping
from diffem_jax.run.profile import Profile
from diffem_jax.run.termination import StopRequest
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import EMState, PyTree

Record = dict[str, Any]


class Run(NamedTuple):
    """What the rounds of a run share.

    Attributes:
        problem: observations, and what follows from the config.
        workdir: where results go.
        store: the reconstructions.
        engine: the compiled E-step and M-step.
        start: the fitted start.
        start_draw: its mapped draw, the E-step of round 0.
        params: parameters to begin with, or None for the network's own.
        measure: (round, rows of the store) -> metrics.
        held_out: (E-step, parameters) -> scores of held-back measurements, or None.
        stop: asked at safe points.
        say: takes lines for the person watching.
        writers: take numbers and pictures.
        estimate: says how long the run will take.
        clock: of compilation.
        profile: traces what the command asked for.
    """

    problem: Problem
    workdir: Workdir
    store: ReconstructionStore
    engine: Engine
    start: Mixture
    start_draw: Callable[..., Any]
    params: PyTree | None
    measure: Callable[..., Record]
    held_out: Callable[..., Record] | None
    stop: StopRequest
    say: Callable[[str], None]
    writers: Writers
    estimate: Estimate
    clock: CompileClock
    profile: Profile


def decision(run: Run) -> stopping.Decision:
    """What the stopping rule says of the rounds so far."""
    return stopping.of_run(run.workdir.records(), run.problem.setup.config)


def picture_path(run: Run, number: int) -> Path:
    """The PNG of a round."""
    return run.workdir.samples / f"round_{number:05d}.png"


def drawn_with(run: Run, number: int, state: EMState) -> tuple[Callable[..., Any], PyTree]:
    """The E-step of a round and what it draws with: the network's average parameters, or the start."""
    return (run.engine.e_step, state.ema_params) if number else (run.start_draw, run.start)


def is_finished(run: Run, number: int) -> bool:
    """Whether a round has its draws, its record and its picture."""
    known = any(r.get("round") == number and r.get("kind") == "round" for r in run.workdir.records())
    complete = run.store.holds(number) and run.store.round(number).is_complete()
    return bool(agree(np.asarray(complete and known and picture_path(run, number).exists())))
