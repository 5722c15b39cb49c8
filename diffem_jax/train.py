"""The host loop: a start, then EM rounds of M-step and E-step.

round 0   the start is fitted and draws one reconstruction per observation
round k   M-step on the reconstructions of round k - 1; checkpoint rounds/round_k; E-step; metrics and a picture
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from diffem_jax import checkpoints
from diffem_jax.build import make_optimizer
from diffem_jax.parallel import barrier, process_index
from diffem_jax.problem import load_problem
from diffem_jax.rounds import NonFinite, Preempted, Run, make_engine
from diffem_jax.types import UserError
from diffem_jax.workdir import Workdir

Say = Callable[[str], None]
__all__ = ["Preempted", "run_em"]


def run_em(config: ConfigDict, workdir: str | Path, *, override: bool = False, say: Say = print) -> Workdir:
    """Runs, or goes on with, the EM rounds of a config in a work directory.

    Args:
        config: a checked configuration.
        workdir: where results go.
        override: accept a config that differs from the work directory's.
        say: takes lines for the person watching.

    Returns:
        the work directory.

    Raises:
        UserError: a mistake in the config, the data or the folder.
        Preempted: SIGTERM came; the same command goes on.
    """
    folder = Workdir(workdir)
    problem = load_problem(config)
    lead = process_index() == 0
    folder.create()
    with folder.lock() if lead else contextlib.nullcontext():
        if lead:
            folder.check_config(config, override)
        barrier("config")
        speak: Say = say if lead else lambda line: None
        speak(
            f"diffem_jax: {config.method} on {problem.num_examples} observations of {config.data.name} "
            f"({config.corruption.name}), {config.rounds} rounds of {config.m_step.steps} updates; results in {folder.root}"
        )
        for attempt in range(config.recover + 1):
            try:
                run = Run(problem, folder, speak, attempt)
                if attempt:
                    _lower_rate(run, attempt)
                with _listening(run):
                    run.rounds()
                break
            except NonFinite as error:
                last = checkpoints.latest(folder.rounds) if folder.rounds.exists() else None
                place = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
                if attempt == config.recover:
                    raise UserError(
                        f"{error}; {place}; expected finite numbers: lower config.m_step.learning_rate (with --override), or "
                        "set config.recover to let the run do so"
                    ) from error
                speak(f"{error}; {place}; going back to it with half the learning rate")
                folder.log({"kind": "recovery", "round": attempt, "reason": str(error)})
                for path in folder.latest.glob("round_*"):
                    checkpoints.remove(path)
        speak(
            f"done: pictures in {folder.samples}, numbers in {folder.metrics}, the page of the run is {folder.report}"
        )
    return folder


def _lower_rate(run: Run, attempt: int) -> None:
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.m_step.learning_rate = run.config.m_step.learning_rate * 0.5**attempt
    optimizer = make_optimizer(config.m_step, config.m_step.steps)
    run.setup = run.setup._replace(optimizer=optimizer)
    run.engine = make_engine(run.setup, run.parallel, run.start)


class _listening:
    """Sends SIGTERM to a run while it lasts (only a main thread may set handlers)."""

    def __init__(self, run: Run):
        self.run = run

    def __enter__(self) -> None:
        try:
            self.before = signal.signal(signal.SIGTERM, self.run.on_signal)
        except ValueError:
            self.before = None

    def __exit__(self, *error: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)
