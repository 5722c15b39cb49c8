"""Pictures of a round: observations, draws and truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffem_jax.build.problem import Problem, rows
from diffem_jax.data.operators import seen_anywhere
from diffem_jax.parallel import Parallel
from diffem_jax.report import plots
from diffem_jax.run.draws import attempt_keys, draw_samples, make_drawing
from diffem_jax.types import Observation


def shown_observations(problem: Problem, observed: Observation) -> np.ndarray:
    """Observations as a picture shows them: y with NaN where nothing was measured, or what the network sees.

    The latter where y has another shape than x.
    """
    corruption, shape = problem.setup.corruption, problem.setup.shape
    if observed.y.shape[1:] != shape:
        return np.asarray(jax.vmap(corruption.condition)(observed))[..., : shape[-1]]
    seen = seen_anywhere(corruption, observed.operator)
    y = np.asarray(observed.y)
    return y if seen is None or np.iscomplexobj(y) else np.where(np.asarray(seen[:]) > 0, y, np.float32(np.nan))


def title_of(problem: Problem, what: str, shown: np.ndarray) -> str:
    """'round 3: pixel mask, 50% hidden': the corruption, and how much of these observations it really hides."""
    name = str(problem.setup.config.corruption.name).rpartition(":")[2].replace("_", " ")
    hidden = np.isnan(shown).mean()
    return f"{what}: {name}" + (f", {hidden:.0%} hidden" if hidden else "")


def picture(problem: Problem, draws: Callable[[np.ndarray], np.ndarray], path: Path, title: str) -> None:
    """The PNG of a round: observations, reconstructions and truth; a corner plot for short vectors."""
    count = min(problem.num_examples, 4096 if plots.is_point(problem.setup.shape) else 10)
    indices = np.arange(count)
    shown = shown_observations(problem, rows(problem.observations, indices))
    truth = None if problem.truth is None else np.asarray(problem.truth[:count])
    plots.picture(path, shown, draws(indices), truth, title=title_of(problem, title, shown))


def spread_picture(
    problem: Problem, step: Callable[..., Any], parallel: Parallel, params: Any, path: Path, title: str
) -> None:
    """The PNG of several draws per observation: one E-step batch in all, so that it costs next to nothing.

    Of six observations; of short vectors a corner plot of the draws for one.
    """
    batch = problem.setup.config.e_step.batch_size
    vectors = plots.is_point(problem.setup.shape)
    count = 1 if vectors else min(6, problem.num_examples, max(1, batch // 2))
    observed = rows(problem.observations, np.arange(count))
    samples = min(4096 if vectors else 16, max(2, batch // count))
    keys = attempt_keys(problem.setup.config.seed, "spread")
    drawing = make_drawing(step, parallel, params, observed, keys, batch)
    x = draw_samples(drawing, count, samples, quiet=True, pad=True)
    truth = None if problem.truth is None else np.asarray(problem.truth[:count])
    shown = shown_observations(problem, observed)
    what = f"{title}, p(x | y) of one y" if vectors else title
    plots.spread(path, shown, x, truth, title=title_of(problem, what, shown))
