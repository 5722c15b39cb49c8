"""Pictures of a round: observations, draws and truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffem_jax.build.problem import Problem, rows
from diffem_jax.parallel import Parallel
from diffem_jax.report import plots
from diffem_jax.run.draws import attempt_keys, draw_samples, make_drawing
from diffem_jax.types import Observation


def shown_observations(problem: Problem, observed: Observation) -> Any:
    """Observations as a picture shows them: y itself, or where it has another shape than x what the network sees."""
    if observed.y.shape[1:] == problem.setup.shape:
        return observed.y
    condition = np.asarray(jax.vmap(problem.setup.corruption.condition)(observed))
    return condition[..., : problem.setup.shape[-1]]


def picture(problem: Problem, draws: Callable[[np.ndarray], np.ndarray], path: Path, title: str) -> None:
    """The PNG of a round: observations, reconstructions and truth; a corner plot for short vectors."""
    vectors = len(problem.setup.shape) == 1
    count = min(problem.num_examples, 4096 if vectors else 10)
    indices = np.arange(count)
    shown = shown_observations(problem, rows(problem.observations, indices))
    truth = None if problem.truth is None else np.asarray(problem.truth[:count])
    plots.picture(path, shown, draws(indices), truth, title=title)


def spread_picture(
    problem: Problem, step: Callable[..., Any], parallel: Parallel, params: Any, path: Path, title: str
) -> None:
    """The PNG of several draws an observation: one E-step batch in all, so that it costs next to nothing.

    Images: draws, mean, spread and truth of six observations; short vectors: a corner plot of the draws for one.
    """
    batch = problem.setup.config.e_step.batch_size
    vectors = len(problem.setup.shape) == 1
    count = 1 if vectors else min(6, problem.num_examples, max(1, batch // 2))
    observed = rows(problem.observations, np.arange(count))
    samples = min(4096 if vectors else 16, max(2, batch // count))
    keys = attempt_keys(problem.setup.config.seed, "spread")
    drawing = make_drawing(step, parallel, params, observed, keys, batch)
    x = draw_samples(drawing, count, samples, quiet=True, pad=True)
    truth = None if problem.truth is None else np.asarray(problem.truth[:count])
    if vectors:
        plots.picture(path, shown_observations(problem, observed), x[:, 0], truth, title=f"{title}: p(x | y) of one y")
    else:
        plots.spread_grid(path, shown_observations(problem, observed), x, truth, title=title)
