"""Round zero on the host: which start a config asks for, its fit, its checkpoint and its draws."""

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.build.methods import Setup
from diffem_jax.build.parts import lookup
from diffem_jax.build.problem import Problem, rows
from diffem_jax.errors import UserError
from diffem_jax.gaussians import Gaussian, starts
from diffem_jax.gaussians.gaussians import Mixture, Start, overall_moments
from diffem_jax.report.console import CompileClock, Progress
from diffem_jax.run.termination import Check, Say
from diffem_jax.storage import checkpoints
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import Observation, stream_key


def load_or_fit(problem: Problem, workdir: Workdir, say: Say, quiet: bool, check: Check) -> Start:
    """The work directory's start, or a new fit that is then saved there."""
    if (done := checkpoints.latest(workdir.start, say)) is not None:
        return load_start(workdir, done)
    began, clock = time.monotonic(), CompileClock()
    start = fit_start(problem.setup, problem.observations, say, quiet, check)
    seconds = time.monotonic() - began
    record = {"seconds": seconds, "compile_seconds": clock.lap(), "shape": problem.setup.shape}
    checkpoints.save(workdir.start / "fit", starts.start_arrays(start), record)
    say(f"start: {problem.setup.config.start.name} fitted in {seconds:.1f} s")
    return start


def load_start(workdir: Workdir, path: Path | None = None) -> Start:
    """The start of a finished or interrupted run."""
    return starts.start_of_arrays(checkpoints.load(path or workdir.start / "fit"))


def stored_shape(workdir: Workdir) -> tuple[int, ...]:
    """The shape of x that a run was trained on."""
    return tuple(int(n) for n in checkpoints.metadata(workdir.start / "fit")["shape"])


def fit_start(setup: Setup, observations: Observation, say: Say, quiet: bool, check: Check = lambda: None) -> Start:
    """The start that the config names; ``check`` is called after each iteration. UserError if not finite."""
    config = setup.config.start
    plugged = config.name not in starts.STARTS
    if not plugged and not setup.corruption.is_linear:
        say("start: the corruption is not linear, so round 0 draws from N(0, I) about what the observation shows")
        return standard_normal(setup.shape)
    count = len(observations.y)
    subset = rows(observations, np.linspace(0, count - 1, min(config.num_examples or count, count)).astype(np.int64))
    fit = lookup("start.name", config.name, starts.STARTS)
    options = {name: config[name] for name in config if name not in ("name", "num_examples", "checkpoint", "take")}
    total = config.iterations * (1 if config.components == 1 or config.name in ("gaussian", "stationary") else 2)
    with Progress("start", total, "iterations", quiet=quiet) as progress:

        def report(iteration: int, iterations: int, value: float) -> None:
            progress.advance(1, "" if np.isnan(value) else f"log-likelihood {value:.4f}")
            check()

        options["report"] = report
        if plugged:
            accepted = inspect.signature(fit).parameters.values()
            if not any(p.kind is p.VAR_KEYWORD for p in accepted):
                options = {p.name: options[p.name] for p in accepted if p.name in options}
        found = fit(stream_key(setup.config.seed, "start"), setup.corruption, subset, **options)
    if plugged:
        return accept_start(config.name, found, setup.shape)
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found)):
        found = f"the fit of {config.name!r} has entries that are NaN or infinite; expected finite ones"
        raised = f"start.variance_floor ({config.variance_floor}) or corruption.noise_std"
        raise UserError(f"config.start.name: {found}; raise {raised}, or lower start.rank ({config.rank})")
    return found


def accept_start(name: str, found: Any, shape: tuple[int, ...]) -> Mixture:
    """A start from outside as a mixture that a checkpoint can hold; refused where it is none, or not finite."""
    try:
        weights, (mean, variance, factor) = found
        fits = mean.shape == (len(weights), *shape) and factor.shape == (len(weights), factor.shape[1], *shape)
        fits = fits and variance.shape in ((len(weights),), mean.shape)
        fits = fits and all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))
    except Exception as error:
        fits, found = False, f"{type(found).__name__}, {type(error).__name__}: {error}"
    if not fits:
        what = found if isinstance(found, str) else jax.tree.map(np.shape, found)
        arrays = f"log_weights [K], mean [K, *{shape}], variance [K] or as the mean, factor [K, R, *{shape}]"
        expected = f"expected a finite diffem_jax.Mixture with {arrays}; correct it"
        raise UserError(f"config.start.name: {name!r} returned {what}; {expected}")
    # A checkpoint holds no empty array.
    factor = factor if factor.shape[1] else jnp.zeros((len(weights), 1, *shape))
    return Mixture(weights, Gaussian(mean, variance, factor))


def standard_normal(shape: tuple[int, ...]) -> Mixture:
    """N(0, I) as a mixture of one component; a factor of zeros stands for none, since a checkpoint holds no empty array."""
    component = Gaussian(jnp.zeros((1, *shape)), jnp.ones((1, *shape)), jnp.zeros((1, 1, *shape)))
    return Mixture(jnp.zeros((1,)), component)


def solve_warnings(setup: Setup, observations: Observation, start: Start) -> list[str]:
    """A line where conjugate gradients leave more than 0.3 noise standard deviations, which makes draws miss y."""
    corruption: Any = setup.corruption
    if not corruption.is_linear or corruption.has_diagonal_gram or corruption.noise_std == 0:
        return []
    count = len(observations.y)
    some = rows(observations, np.linspace(0, count - 1, min(count, 8)).astype(np.int64))
    variance = overall_moments(start)[1]
    worst = float(jnp.max(jax.jit(jax.vmap(lambda o: corruption.solve_residual(o.y, o.operator, variance)))(some)))
    if worst <= 0.3:
        return []
    found = f"solves with {setup.config.corruption.name!r} have not converged: they end {worst:.1f} noise standard deviations"
    return [f"warning, {found} from y, and draws will miss y by as much; give a larger config.corruption.noise_std"]


def start_draw(setup: Setup) -> Callable[..., Any]:
    """The draw of round 0: the start's exact posterior, or for nonlinear corruptions noise about what is seen."""
    if setup.corruption.is_linear:
        return starts.make_start_draw(setup.corruption)  # type: ignore[arg-type]

    def draw(key: Any, mixture: Mixture, observation: Observation) -> Any:
        noise = jax.random.normal(key, setup.shape)
        if observation.y.shape == setup.shape:
            return jnp.clip(observation.y, -2.0, 2.0) + 0.2 * noise
        return mixture.components.mean[0] + noise

    return draw
