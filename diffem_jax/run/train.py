"""A whole run: problem, start, rounds, prior. This is where the objects of a run are made; ``run.rounds`` is its loop."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from diffem_jax import em
from diffem_jax.build import auto
from diffem_jax.build.engine import make_engine
from diffem_jax.build.methods import check_own_parts
from diffem_jax.build.parts import LEAST, MOST, check_noise, draw_width, make_sampler
from diffem_jax.build.problem import Problem, load_problem
from diffem_jax.errors import NonFinite, UserError, first_line
from diffem_jax.parallel import accelerated, barrier, make_parallel, process_index
from diffem_jax.report import console, writers
from diffem_jax.run import identifiability, identity, warm
from diffem_jax.run.context import Profile, Run
from diffem_jax.run.measures import make_measures
from diffem_jax.run.prior import train_prior
from diffem_jax.run.rounds import run_rounds
from diffem_jax.run.start import load_or_fit, solve_warnings, standard_normal, start_draw
from diffem_jax.run.termination import Say, StopRequest
from diffem_jax.storage import checkpoints
from diffem_jax.storage.files import check_memory
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import PyTree, stream_key


def run_em(
    config: ConfigDict, workdir: str | Path, *, override: bool = False, say: Say = print, profile: int = 0
) -> Workdir:
    """Runs, or goes on with, the EM rounds of a checked config in a work directory, which it returns.

    ``override`` accepts a config that differs from the work directory's, ``say`` takes lines for the person watching, and
    ``profile`` is how many updates are traced into WORKDIR/profile. UserError for a mistake in the config, the data or the
    folder; ``Preempted`` where SIGTERM came: the same command goes on.
    """
    folder, lead = Workdir(workdir), process_index() == 0
    speak: Say = say if lead else lambda line: None
    with StopRequest() as stop:
        problem = load_problem(config)
        chosen, config = auto.explain(config, problem.setup.config), problem.setup.config
        parameters = preflight(problem, folder)
        measure = make_measures(problem)
        mark = identity.check_data(folder, problem)
        compared = identity.with_stored_path(folder, config, mark)
        folder.compare_config(compared, override)
        folder.create()
        with folder.lock() if lead else contextlib.nullcontext():
            if lead:
                folder.check_config(config, override, compared)
                identity.keep_data(folder, problem, mark)
            barrier("config")
            for line in [*console.beginning(problem, folder, parameters), *chosen, *_advice(config)]:
                speak(line)
            unseen = identifiability.fixed_null_space(problem) if lead else []
            for line in [*unseen, *(f"{'note':<11} {note}" for note in problem.notes)]:
                speak(line)
            last = checkpoints.latest(folder.rounds)
            done = checkpoints.metadata(last)["step"] if last else 0
            try:
                with stop.deferred(), contextlib.closing(writers.Writers(folder, config, done, lead)) as opened:
                    run = make_run(problem, folder, measure, stop, speak, opened)
                    run_rounds(run._replace(profile=Profile(folder.root / "profile", profile, speak)))
                    train_prior(run)
            except NonFinite as error:
                raise _explained(folder, error, lead) from error
        for line in console.ending(folder, (folder.prior / "final").exists()):
            speak(line)
    return folder


def preflight(problem: Problem, folder: Workdir) -> PyTree:
    """Builds everything once without compute and refuses what does not fit; returns the shapes of the parameters."""
    setup, config = problem.setup, problem.setup.config
    check_noise(config, setup.corruption)
    make_sampler("prior.sampler", config.prior.sampler, setup.schedule, config.denoiser.sigma_data)
    engine = make_engine(setup, make_parallel(config.parallel), standard_normal(setup.shape))
    if engine.model.trains_on == "truth" and problem.truth is None:
        raise UserError(f"config.method: {config.method!r} needs clean x, which own observations lack; use 'diffem'")
    try:
        parameters = jax.eval_shape(engine.model.denoiser.init, stream_key(config.seed, "init"))
    except (TypeError, ValueError, IndexError, OverflowError, ZeroDivisionError, AttributeError) as error:
        found = f"config.network: {dict(config.network)!r} does not fit examples of shape {setup.shape}"
        raise UserError(f"{found} ({first_line(error)[:200]}); correct its fields") from error
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parameters))
    # Parameters, their average and gradients are there in any case.
    check_memory("config.network", f"{config.network.name} of {size / 4:,.0f} parameters", 3 * size)
    check_own_parts(setup, engine.model)
    writers.check(config)
    warm.check(problem, folder, parameters)
    return parameters


def _advice(config: ConfigDict) -> Iterator[str]:
    """Lines on a sampler whose draws have the wrong width whatever the network learns, and on settings meant for a CPU."""
    f = draw_width(config)
    if not LEAST <= round(f, 2) <= MOST:
        draws = f"draws of {config.e_step.sampler} in {config.e_step.steps} steps"
        cure = "raise e_step.steps, or use e_step.sampler=analytic_2m, e_step.time_grid=tangent"
        yield f"warning     {draws} have {f:.2f} times the variance they should have, which EM feeds back (docs/theory.md); {cure}"
    better = []
    if config.network.get("dtype") == "float32" and config.network.name == "unet":
        better.append("network.dtype=bfloat16 (half the time and memory of an update on an H200)")
    if config.m_step.updates_per_dispatch == 1:
        better.append("m_step.updates_per_dispatch=25 (with 1, small networks wait for the host)")
    if better and accelerated():
        yield f"advice      on an accelerator {' and '.join(better)}"


def make_run(
    problem: Problem,
    folder: Workdir,
    measure: Callable[..., dict[str, float]] = lambda number, draws: {},
    stop: StopRequest | None = None,
    say: Say = lambda line: None,
    opened: writers.Writers | None = None,
) -> Run:
    """Fits or loads the start, and maps what the rounds call; ``measure`` is (round, rows of the store) -> metrics."""
    stop = stop or StopRequest()
    setup, config = problem.setup, problem.setup.config
    parallel, clock = make_parallel(config.parallel), console.CompileClock()
    start = load_or_fit(problem, folder, say, quiet=process_index() != 0, check=stop.check)
    for line in solve_warnings(setup, problem.observations, start):
        say(line)
    clock.lap()
    engine = make_engine(setup, parallel, start)
    shapes = jax.eval_shape(engine.model.denoiser.init, stream_key(config.seed, "init"))
    return Run(
        problem=problem, workdir=folder, store=ReconstructionStore(folder.reconstructions), engine=engine, start=start,
        start_draw=parallel.map_e_step(em.map_examples(start_draw(setup))), measure=measure, stop=stop, say=say, clock=clock,
        params=warm.adopt(problem, folder, shapes, say), writers=opened or writers.Writers(folder, config, lead=False),
        profile=Profile(folder.root / "profile"),
    )  # fmt: skip


def _explained(folder: Workdir, error: NonFinite, lead: bool) -> UserError:
    """What to do about numbers that are not finite; a round whose draws are not is set aside, so that it is trained again."""
    if error.folder is None and error.number == 0:
        another = "config.start (a higher variance_floor, a lower rank) or a higher config.corruption.noise_std"
        return UserError(f"{error}; expected a start with finite draws; give another {another}, and another --workdir")
    broken = folder.round_checkpoint(error.number)
    if lead and error.folder is None and broken.exists():
        checkpoints.set_aside(broken)
        for file in (folder.reconstructions / f"round_{error.number:05d}").glob("shard-*"):
            file.unlink()
    barrier("gone back")
    folders = [folder.rounds, folder.start] if error.folder is None else [error.folder, folder.rounds, folder.start]
    last = next(filter(None, (checkpoints.latest(f) for f in folders)), None)
    place = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
    cure = "expected finite numbers: lower config.m_step.learning_rate (with --override) and run the command again"
    return UserError(f"{error}; {place}; {cure}")
