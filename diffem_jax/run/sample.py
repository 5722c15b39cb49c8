"""Draws from a trained run: posteriors of new observations, or the prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from diffem_jax import em
from diffem_jax.build.engine import make_engine
from diffem_jax.build.methods import Prior, Setup
from diffem_jax.build.parts import make_sampler, make_times
from diffem_jax.build.problem import Problem, load_own, rows, stored_config
from diffem_jax.data.tables import write_spreadsheet
from diffem_jax.errors import UserError
from diffem_jax.parallel import Parallel, make_parallel
from diffem_jax.report import plots
from diffem_jax.run.draws import attempt_keys, draw_samples, make_drawing
from diffem_jax.run.identity import stored_columns
from diffem_jax.run.pictures import shown_observations
from diffem_jax.run.prior import load_prior
from diffem_jax.run.start import load_start, start_draw
from diffem_jax.run.stopping import picked_round
from diffem_jax.storage import checkpoints
from diffem_jax.storage.files import write_arrays
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import PyTree


def posterior_draws(
    workdir: Workdir, observations: str, num_samples: int, seed: int = 0, round: int | None = None
) -> tuple[Problem, np.ndarray]:
    """num_samples draws of p(x | y) for every observation of a file: (problem, [num_samples, N, *X]).

    They are those of ``round``, of the round that the stopping rule picked, or of the last one.

    Raises:
        UserError: no trained run, or a file that does not fit it.
    """
    config = stored_config(workdir)
    with config.unlocked():
        config.data.shape = tuple(int(n) for n in checkpoints.metadata(workdir.start / "fit")["shape"])
    problem = load_own(config, observations, columns=stored_columns(workdir))
    number = chosen_round(workdir, round)
    parallel = make_parallel(config.parallel)
    step, params = round_step(workdir, problem.setup, parallel, number)
    keys = attempt_keys(seed, "sample")
    drawing = make_drawing(step, parallel, params, problem.observations, keys, config.e_step.batch_size)
    return problem, draw_samples(drawing, problem.num_examples, num_samples)


def chosen_round(workdir: Workdir, round: int | None = None) -> int:
    """The round asked for, else the one that the stopping rule picked, else the last.

    Raises:
        UserError: no such round is kept.
    """
    if round is None:
        picked = picked_round(workdir.records())
        round = checkpoints.metadata(workdir.last_round())["round"] if picked is None else picked
    if round == 0 or checkpoints.fault(workdir.round_checkpoint(round)) is None:
        return round
    kept = [checkpoints.metadata(p)["round"] for p in checkpoints.written(workdir.rounds)]
    raise UserError(f"--round: {round}; {workdir.rounds} has no whole checkpoint of it; choose one of {[0, *kept]}")


def round_step(workdir: Workdir, setup: Setup, parallel: Parallel, number: int) -> tuple[Any, Any]:
    """The mapped E-step of a round and its parameters; of round 0, the start's draw and the start."""
    start = load_start(workdir)
    if number == 0:
        return parallel.map_e_step(em.map_examples(start_draw(setup))), start
    state = checkpoints.load(workdir.round_checkpoint(number))
    return make_engine(setup, parallel, start).e_step, state["ema_params"]


def prior_draws(workdir: Workdir, num_samples: int, seed: int = 0, round: int | None = None) -> np.ndarray:
    """num_samples draws of p(x), [num_samples, *X]; where the run trained no prior of its own, by a round's network.

    Raises:
        UserError: the run has no prior.
    """
    config = stored_config(workdir)
    own = (workdir.prior / "final").exists()
    setup, prior, params = load_prior(workdir, config, 0 if own else chosen_round(workdir, round))
    return draws_of_prior(setup, make_parallel(config.parallel), prior, params, num_samples, seed)


def draws_of_prior(
    setup: Setup,
    parallel: Parallel,
    prior: Prior,
    params: PyTree,
    num_samples: int,
    seed: int,
    quiet: bool = False,
) -> np.ndarray:
    """num_samples draws of p(x), [num_samples, *X], by a model's prior and its parameters."""
    config = setup.config
    sampler = make_sampler("prior.sampler", config.prior.sampler, setup.schedule, config.denoiser.sigma_data)
    times = make_times(config, setup.schedule, config.prior.sampler_steps)
    step, keys = parallel.map_e_step(em.map_examples(prior(sampler, times))), attempt_keys(seed, "prior_sample")
    drawing = make_drawing(step, parallel, params, None, keys, config.e_step.batch_size)
    return draw_samples(drawing, 1, num_samples, quiet=quiet)[:, 0]


def write_draws(output: Path, x: np.ndarray, problem: Problem | None, workdir: Workdir | None = None) -> Path:
    """Writes an .npz with ``x`` (for posteriors also ``mean`` and ``std``) and a picture beside it; returns the picture.

    The numbers are in the user's units: ``data.scale`` of the run in ``workdir`` is undone. Of a table a .csv of each draw and of
    the means go beside it, in the original columns.
    """
    scale = 1.0 if workdir is None else stored_config(workdir).data.scale
    arrays = {"x": x if scale == 1 else x / np.float32(scale)}
    if problem is not None:
        arrays |= {"mean": arrays["x"].mean(axis=0), "std": arrays["x"].std(axis=0)}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(output, arrays)
    except OSError as error:
        raise UserError(
            f"--output: {output} cannot be written ({error.strerror}); expected a file in a writable folder"
        ) from error
    if problem is not None and problem.table is not None:
        for i, draw in enumerate([*arrays["x"], arrays["mean"]]):
            name = "mean" if i == len(x) else f"draw_{i:03d}"
            write_spreadsheet(output.with_name(f"{output.stem}_{name}.csv"), problem.table.decode(draw))
    image = output.with_suffix(".png")
    if problem is None:
        plots.picture(image, None, x, title="draws from the prior")
    else:
        shown = shown_observations(problem, rows(problem.observations, np.arange(min(problem.num_examples, 8))))
        if plots.is_point(problem.setup.shape):
            plots.picture(image, shown, x[0])
        else:
            plots.spread(image, shown, x[:, : len(shown)])
    return image
