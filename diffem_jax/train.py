"""The host loop: a start, then EM rounds of M-step and E-step.

round 0   the start is fitted and draws reconstructions, one per observation or e_step.draws
round k   M-step on the reconstructions of round k - 1; checkpoint rounds/round_k; E-step; metrics and a picture
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from ml_collections import ConfigDict

from diffem_jax import announce, checkpoints, plugged, prior, warm
from diffem_jax.data.files import check_memory
from diffem_jax.engine import make_engine
from diffem_jax.evaluate import make_measures
from diffem_jax.guards import NonFinite, Preempted
from diffem_jax.parallel import barrier, make_parallel, process_index
from diffem_jax.parts import make_optimizer, make_sampler
from diffem_jax.problem import Problem, load_problem
from diffem_jax.round_zero import standard_normal
from diffem_jax.rounds import Run
from diffem_jax.types import UserError, first_line, stream_key
from diffem_jax.workdir import Workdir
from diffem_jax.writers import Writers
from diffem_jax.writers import check as check_writers

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
    lead = process_index() == 0
    speak: Say = say if lead else lambda line: None
    with _Listening() as ears:
        problem = load_problem(config)
        measure, parameters = preflight(problem, folder)
        folder.compare_config(config, override)
        folder.create()
        with folder.lock() if lead else contextlib.nullcontext():
            if lead:
                folder.check_config(config, override)
            barrier("config")
            for line in announce.beginning(problem, folder, parameters):
                speak(line)
            # A run that lowered its learning rate and was then interrupted goes on with the lowered one.
            attempt = 0 if override else min(config.recover, _recoveries(folder))
            while True:
                try:
                    run = Run(problem, folder, speak, measure)
                    if attempt:
                        _lower_rate(run, attempt)
                    with ears.to(run), writers(run, lead):
                        run.rounds()
                        prior.train_prior(run.setup, folder, speak, lambda run=run: run.stop_signal)  # type: ignore[misc]
                    break
                except NonFinite as error:
                    attempt += 1
                    _go_back(folder, config, error, attempt, speak, lead)
        for line in announce.ending(folder, (folder.prior / "final").exists()):
            speak(line)
    return folder


def preflight(problem: Problem, folder: Workdir) -> tuple[Callable[..., dict[str, float]], Any]:
    """Builds everything once without compute, so that what does not fit is told before a file is written.

    Returns:
        the run's measures, and the shapes of the network's parameters.

    Raises:
        UserError: a field that does not fit the data, the devices or another field.
    """
    setup, config = problem.setup, problem.setup.config
    if problem.num_examples * config.e_step.draws >= 2**31:
        raise UserError(
            f"config.e_step.draws: {config.e_step.draws} of each of {problem.num_examples} observations; expected fewer than "
            "2^31 draws in all; lower it"
        )
    if config.method == "oracle" and problem.truth is None:
        raise UserError(
            "config.method: 'oracle' trains on clean examples, and own observations have none; use 'diffem'"
        )
    make_sampler("prior.sampler", config.prior.sampler, setup.schedule, config.denoiser.sigma_data)
    engine = make_engine(setup, make_parallel(config.parallel), standard_normal(setup.shape))
    try:
        parameters = jax.eval_shape(lambda: engine.model.denoiser.init(stream_key(config.seed, "init")))
    except (TypeError, ValueError, IndexError, OverflowError, ZeroDivisionError, AttributeError) as error:
        fields = {key: config.network[key] for key in config.network}
        raise UserError(
            f"config.network: {fields!r} does not fit examples of shape {setup.shape} ({first_line(error)[:200]}); correct its fields"
        ) from error
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parameters))
    # Parameters, their average and gradients are there in any case.
    check_memory("config.network", f"{config.network.name} of {size / 4:,.0f} parameters", 3 * size)
    plugged.check(setup, engine.model)
    check_writers(config)
    warm.check(problem, folder, parameters)
    return make_measures(problem), parameters


@contextlib.contextmanager
def writers(run: Run, lead: bool) -> Iterator[None]:
    """Opens the config's writers for a run, and closes them whatever ends it."""
    last = checkpoints.latest(run.workdir.rounds)
    done = checkpoints.metadata(last)["step"] if last else 0
    run.writers = Writers(run.workdir, run.config, done, lead)
    try:
        yield
    finally:
        run.writers.close()


def _recoveries(folder: Workdir) -> int:
    found = (r.get("attempt") for r in folder.records() if r.get("kind") == "recovery")
    return max((a for a in found if isinstance(a, int)), default=0)


def _go_back(folder: Workdir, config: ConfigDict, error: NonFinite, attempt: int, speak: Say, lead: bool) -> None:
    """Clears what the broken round left, so that the next attempt starts at the last good checkpoint.

    Raises:
        UserError: the attempts are used up, or the start's own draws failed, which no learning rate mends.
    """
    if error.draws and error.number == 0:
        raise UserError(
            f"{error}; expected a start with finite draws; give another config.start (a higher variance_floor, a lower rank) "
            "or a higher config.corruption.noise_std, and another --workdir"
        ) from error
    broken = folder.round_checkpoint(error.number)
    if lead and error.draws and broken.exists():
        checkpoints.set_aside(broken)
        for file in (folder.reconstructions / f"round_{error.number:05d}").glob("shard-*"):
            file.unlink()
    barrier("gone back")
    # Out of attempts, the person may also go on from inside the round; a new attempt begins the round again.
    inside = folder.prior if error.prior else folder.latest
    folders = [folder.rounds, folder.start] if attempt <= config.recover else [inside, folder.rounds, folder.start]
    last = next(filter(None, (checkpoints.latest(f) for f in folders)), None)
    place = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
    if attempt > config.recover:
        raise UserError(
            f"{error}; {place}; expected finite numbers: lower config.m_step.learning_rate (with --override), or "
            "set config.recover to let the run do so"
        ) from error
    speak(f"{error}; {place}; going back to it with the learning rate times {0.5**attempt:g}")
    if lead:
        folder.log({"kind": "recovery", "round": error.number, "attempt": attempt, "reason": str(error)})
        for path in [*checkpoints.written(folder.latest), *checkpoints.written(folder.prior)]:
            checkpoints.remove(path)
    barrier("cleared")


def _lower_rate(run: Run, attempt: int) -> None:
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.m_step.learning_rate = run.config.m_step.learning_rate * 0.5**attempt
    optimizer = make_optimizer(config.m_step, config.m_step.steps)
    run.setup = run.setup._replace(config=config, optimizer=optimizer)
    run.engine = make_engine(run.setup, run.parallel, run.start)


class _Listening:
    """Sends SIGTERM to a run while its rounds last; before and after, nothing is to be saved and the process ends.

    Only a main thread may set handlers; elsewhere this does nothing.
    """

    run: Run | None = None

    def __enter__(self) -> _Listening:
        try:
            self.before = signal.signal(signal.SIGTERM, self._heard)
        except ValueError:
            self.before = None
        return self

    def __exit__(self, *error: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    @contextlib.contextmanager
    def to(self, run: Run) -> Iterator[None]:
        self.run = run
        try:
            yield
        finally:
            self.run = None

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.run is None:
            raise Preempted(signal.Signals(number).name)
        self.run.on_signal(number, frame)
