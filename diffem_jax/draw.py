"""Draws from a trained run: posteriors of new observations, or the prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffem_jax import checkpoints, denoisers, em, plots
from diffem_jax.build import make_sampler
from diffem_jax.config import default, validate
from diffem_jax.parallel import make_parallel
from diffem_jax.prior import load_prior
from diffem_jax.problem import Problem, load_own, rows
from diffem_jax.progress import Progress
from diffem_jax.round_zero import load_start
from diffem_jax.rounds import make_engine
from diffem_jax.schedules import TIME_GRIDS
from diffem_jax.types import UserError, stream_key
from diffem_jax.workdir import Workdir


def stored_config(workdir: Workdir) -> ConfigDict:
    """The configuration of a run, as it was trained."""
    config = default()
    with config.unlocked():
        for name, value in workdir.stored_config().items():
            *sections, field = name.split(".")
            target = config
            try:
                for section in sections:
                    target = target[section]
                target[field] = tuple(map(_tuple, value)) if isinstance(value, list) else value
            except (KeyError, TypeError, AttributeError, ValueError):
                raise UserError(
                    f"{workdir.config}: {name}: {value!r} is no field of a configuration; restore the file"
                ) from None
    validate(config)
    return config


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def posterior_draws(workdir: Workdir, observations: str, num_samples: int, seed: int = 0) -> tuple[Problem, np.ndarray]:
    """num_samples draws of p(x | y) for every observation of a file: (problem, [num_samples, N, *X]).

    Raises:
        UserError: no trained run, or a file that does not fit it.
    """
    config = stored_config(workdir)
    with config.unlocked():
        config.data.shape = tuple(int(n) for n in checkpoints.metadata(workdir.start / "fit")["shape"])
    problem = load_own(config, observations)
    parallel = make_parallel(config.parallel)
    engine = make_engine(problem.setup, parallel, load_start(workdir))
    state = checkpoints.load(workdir.last_round())
    params = parallel.replicate(state["ema_params"])
    key = parallel.replicate(stream_key(seed, "sample"))
    batch = max(
        parallel.num_devices,
        min(
            config.e_step.batch_size,
            -(-problem.num_examples * num_samples // parallel.num_devices) * parallel.num_devices,
        ),
    )
    total = problem.num_examples * num_samples
    parts = []
    with Progress("sampling", total, "draws") as progress:
        for first in range(0, total, batch):
            indices = np.arange(first, first + batch) % total
            # Draw s of observation i has index s N + i, so more samples never change the earlier ones.
            observed = parallel.shard(rows(problem.observations, indices % problem.num_examples))
            x = parallel.gather(engine.e_step(key, params, observed, parallel.shard(indices.astype(np.int32))))
            parts.append(x[: total - first])
            progress.advance(len(parts[-1]))
    draws = np.concatenate(parts)
    return problem, draws.reshape(num_samples, problem.num_examples, *problem.setup.shape)


def prior_draws(workdir: Workdir, num_samples: int, seed: int = 0) -> np.ndarray:
    """num_samples draws of p(x), [num_samples, *X].

    Raises:
        UserError: the run has no prior.
    """
    config = stored_config(workdir)
    setup, denoiser, params = load_prior(workdir, config)
    sampler = make_sampler("prior.sampler", config.prior.sampler, setup.schedule, config.denoiser.sigma_data)
    times = TIME_GRIDS[config.e_step.time_grid](setup.schedule, config.prior.sampler_steps)
    step = jax.jit(em.make_e_step(lambda p, _: denoisers.bind(denoiser, p), sampler, times, setup.shape))
    batch = min(config.e_step.batch_size, num_samples)
    parts = []
    with Progress("sampling", num_samples, "draws") as progress:
        for first in range(0, num_samples, batch):
            indices = np.arange(first, first + batch).astype(np.int32)
            # The prior sees no observation; the empty tree stands for it.
            parts.append(np.asarray(step(stream_key(seed, "prior_sample"), params, (), indices))[: num_samples - first])
            progress.advance(len(parts[-1]))
    return np.concatenate(parts)


def write_draws(output: Path, x: np.ndarray, problem: Problem | None) -> Path:
    """Writes an .npz with ``x`` (for posteriors also ``mean`` and ``std``) and a picture beside it; returns the picture."""
    arrays = {"x": x}
    if problem is not None:
        arrays |= {"mean": x.mean(axis=0), "std": x.std(axis=0)}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_name(f".{output.name}.tmp.npz")
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
        temporary.replace(output)
    except OSError as error:
        raise UserError(
            f"--output: {output} cannot be written ({error.strerror}); expected a file in a writable folder"
        ) from error
    image = output.with_suffix(".png")
    if problem is None:
        plots.picture(image, x, x, None, title="draws from the prior")
    else:
        observed = rows(problem.observations, np.arange(min(problem.num_examples, 8)))
        shown = observed.y
        if shown.shape[1:] != problem.setup.shape:
            shown = np.asarray(jax.vmap(problem.setup.corruption.condition)(observed))[..., : problem.setup.shape[-1]]
        if len(problem.setup.shape) > 1:
            plots.spread_grid(image, shown, x[:, : len(shown)])
        else:
            plots.picture(image, shown, x[0])
    return image
