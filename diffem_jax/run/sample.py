"""Draws from a trained run: posteriors of new observations, or the prior."""

from pathlib import Path

import numpy as np

from diffem_jax import em
from diffem_jax.build.engine import make_engine
from diffem_jax.build.methods import Prior, Setup, make_model, make_setup, prior_model
from diffem_jax.build.parts import make_sampler, make_times
from diffem_jax.build.problem import Problem, load_own, rows, stored_config
from diffem_jax.data.tables import write_spreadsheet
from diffem_jax.errors import UserError
from diffem_jax.parallel import Parallel, make_parallel
from diffem_jax.report import plots
from diffem_jax.run.e_step import Drawing, attempt_keys, draw_samples, make_drawing
from diffem_jax.run.identity import stored_columns
from diffem_jax.run.record import shown_observations
from diffem_jax.run.start import load_start, start_draw, stored_shape
from diffem_jax.run.stopping import picked_round
from diffem_jax.storage import checkpoints
from diffem_jax.storage.files import write_arrays
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import PyTree


def posterior_draws(
    workdir: Workdir, observations: str, num_samples: int, seed: int = 0, round: int | None = None
) -> tuple[Problem, np.ndarray]:
    """num_samples draws of p(x | y) for each observation of a file: (problem, [num_samples, N, *X])."""
    config = stored_config(workdir)
    with config.unlocked():
        config.data.shape = stored_shape(workdir)
    problem = load_own(config, observations, columns=stored_columns(workdir))
    drawing = round_drawing(workdir, problem.setup, chosen_round(workdir, round), make_parallel(config.parallel))
    return problem, draw_samples(drawing, problem.observations, attempt_keys(seed, "sample"), num_samples)


def chosen_round(workdir: Workdir, round: int | None = None) -> int:
    """The round asked for, else the one that the stopping rule picked, else the last; UserError where it is not kept."""
    if round is None:
        picked = picked_round(workdir.records())
        round = checkpoints.metadata(workdir.last_round())["round"] if picked is None else picked
    if round == 0 or checkpoints.fault(workdir.round_checkpoint(round)) is None:
        return round
    kept = [checkpoints.metadata(p)["round"] for p in checkpoints.written(workdir.rounds)]
    raise UserError(f"--round: {round}; {workdir.rounds} has no whole checkpoint of it; choose one of {[0, *kept]}")


def round_drawing(workdir: Workdir, setup: Setup, number: int, parallel: Parallel) -> Drawing:
    """How a stored round draws: the E-step with its parameters; of round 0, the start."""
    start = params = load_start(workdir)
    step = parallel.map_e_step(em.map_examples(start_draw(setup)))
    if number:
        step = make_engine(setup, parallel, start).e_step
        params = checkpoints.load(workdir.round_checkpoint(number))["ema_params"]
    return make_drawing(step, parallel, params, setup.config.e_step.batch_size)


def prior_draws(workdir: Workdir, num_samples: int, seed: int = 0, round: int | None = None) -> np.ndarray:
    """num_samples draws of p(x), [num_samples, *X], by the run's prior or else by a round's network; refused without either."""
    config, own = stored_config(workdir), workdir.prior / "final"
    setup, trained = make_setup(config, stored_shape(workdir)), own.exists()
    number = 0 if trained else chosen_round(workdir, round)
    prior = (prior_model if trained else make_model)(setup, load_start(workdir)).prior
    if prior is None or not (trained or number):
        expected = "config.prior.steps > 0 or config.m_step.condition_dropout > 0 in training"
        cure = "train on with --config.prior.steps=2000, or give --observations for posterior draws"
        raise UserError(f"{workdir.root}: this run has no prior; expected {expected}; {cure}")
    params = checkpoints.load(own if trained else workdir.round_checkpoint(number))["ema_params"]
    return draws_of_prior(setup, make_parallel(config.parallel), prior, params, num_samples, seed)


def draws_of_prior(
    setup: Setup, parallel: Parallel, prior: Prior, params: PyTree, num_samples: int, seed: int, quiet: bool = False
) -> np.ndarray:
    """num_samples draws of p(x), [num_samples, *X], by a model's prior and its parameters."""
    config = setup.config
    sampler = make_sampler("prior.sampler", config.prior.sampler, setup.schedule, config.denoiser.sigma_data)
    times = make_times(config, setup.schedule, config.prior.sampler_steps)
    step = parallel.map_e_step(em.map_examples(prior(sampler, times)))
    drawing = make_drawing(step, parallel, params, config.e_step.batch_size)
    return draw_samples(drawing, None, attempt_keys(seed, "prior_sample"), num_samples, quiet=quiet)[:, 0]


def write_draws(output: Path, x: np.ndarray, problem: Problem | None, workdir: Workdir) -> Path:
    """Writes an .npz with ``x`` (for posteriors also ``mean`` and ``std``) and a picture beside it; returns the picture.

    The numbers are in the user's units, without ``data.scale``. Of a table a .csv of each draw and of the means go beside it.
    """
    scale = stored_config(workdir).data.scale
    arrays = {"x": x if scale == 1 else x / np.float32(scale)}
    if problem is not None:
        arrays |= {"mean": arrays["x"].mean(axis=0), "std": arrays["x"].std(axis=0)}
    output.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(output, arrays)
    if problem is not None and problem.table is not None:
        tables = {f"draw_{i:03d}": draw for i, draw in enumerate(arrays["x"])} | {"mean": arrays["mean"]}
        for name, values in tables.items():
            write_spreadsheet(output.with_name(f"{output.stem}_{name}.csv"), problem.table.decode(values))
    image = output.with_suffix(".png")
    if problem is None:
        return plots.picture(image, None, x, title="draws from the prior")
    shown = shown_observations(problem, rows(problem.observations, np.arange(min(problem.num_examples, 8))))
    if plots.is_point(problem.setup.shape):
        return plots.picture(image, shown, x[0])
    return plots.spread(image, shown, x[:, : len(shown)])
