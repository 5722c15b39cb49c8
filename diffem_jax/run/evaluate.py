"""``--mode=evaluate``: measures of a round of a finished run, and of its posterior by several draws an observation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffem_jax import metrics
from diffem_jax.build.problem import Problem, load_problem, rows, stored_config
from diffem_jax.data import npz
from diffem_jax.errors import UserError
from diffem_jax.parallel import make_parallel
from diffem_jax.run import held_out, identifiability
from diffem_jax.run.draws import attempt_keys, check_draws, draw_rows, draw_samples, make_drawing
from diffem_jax.run.identity import check_data
from diffem_jax.run.measures import METRICS, make_measures
from diffem_jax.run.sample import chosen_round, round_step
from diffem_jax.storage.files import write_arrays
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import stream_key

ON_REQUEST = ("fid", "inception_score", "fd_dinov2", "lpips")
"""Measures that need packages and weights of their own: they are taken where config.eval.metrics names them."""


def evaluate_run(
    workdir: Workdir,
    reference: str | None = None,
    round: int | None = None,
    warn: Callable[[str], None] = lambda line: None,
    path: str | None = None,
) -> dict[str, float]:
    """Every measure that the data allow, of one round; also appended to metrics.jsonl.

    Args:
        workdir: a trained run.
        reference: an .npz with clean ``x`` of the same rows, for measuring only; None for a source's hidden truth.
        round: which; None for the one that the stopping rule picked, else the last.
        warn: takes lines on what the observations cannot show.
        path: where the run's observations lie now; None for where they were.

    Raises:
        UserError: no such round, or a reference that does not fit.
    """
    config = stored_config(workdir)
    if path is not None:
        with config.unlocked():
            config.data.path = path
    elif config.data.path and not Path(config.data.path).expanduser().exists():
        raise UserError(
            f"{config.data.path}: no such file or folder, the run's data; expected it where it was, or "
            "--config.data.path=FILE where it lies now; give that flag"
        )
    problem = load_problem(config)
    check_data(workdir, problem)
    number = chosen_round(workdir, round)
    _identifiability(workdir, problem, number, warn)
    if reference is not None:
        truth = npz.read_arrays(reference, ("x",))["x"]
        if truth.shape != (problem.num_examples, *problem.setup.shape):
            raise UserError(
                f"--reference: {reference} holds x of shape {truth.shape}; expected {(problem.num_examples, *problem.setup.shape)}"
            )
        if config.data.scale != 1:
            truth = np.asarray(truth, np.float32) * np.float32(config.data.scale)
        problem = problem._replace(truth=truth)
    with config.unlocked():
        config.eval.metrics = _possible(problem)
    problem = problem._replace(setup=problem.setup._replace(config=config))
    measured = make_measures(problem)(number, _reconstructions(workdir, problem, number))
    record = {**measured, **posterior_measures(workdir, problem, number)}
    workdir.log({"kind": "evaluation", "round": number, **record})
    return {name: float(np.float64(value)) for name, value in record.items()}


def _identifiability(workdir: Workdir, problem: Problem, number: int, warn: Callable[[str], None]) -> None:
    """Logs which directions of x no observation sees, and writes them to identifiability.npz."""
    found = identifiability.look(problem)
    if found is None:
        return
    path = workdir.root / "identifiability.npz"
    write_arrays(path, {"seen": found.seen, "directions": found.directions, "unseen": found.unseen})
    workdir.log({"kind": "identifiability", "round": number, **found.record()})
    for line in found.warnings():
        warn(f"{line} (see {path} and docs/theory.md)")


def _possible(problem: Problem) -> tuple[str, ...]:
    asked = problem.setup.config.eval.metrics
    names = [name for name, (_, needs_truth) in METRICS.items() if problem.truth is not None or not needs_truth]
    names += [name for name in asked if ":" in name]
    impossible = {name for name in ON_REQUEST if name not in asked}
    if problem.labels is None:
        impossible.add("accuracy")
    if min(problem.num_examples, problem.setup.config.eval.num_examples or problem.num_examples) < 16:
        impossible |= {name for name in METRICS if name.startswith(("features_", "kid", "frechet"))}
    if problem.num_examples < 4096:
        impossible |= {"sinkhorn", "sinkhorn_unpaired"}
    if len(problem.setup.shape) < 3:
        impossible.add("ssim")
    return tuple(name for name in names if name not in impossible)


def _reconstructions(workdir: Workdir, problem: Problem, number: int) -> Any:
    """The round's stored draws; where they are not kept any more, the same draws once more."""
    store = ReconstructionStore(workdir.reconstructions)
    if store.holds(number) and store.round(number).is_complete():
        return store.round(number).open().rows
    parallel = make_parallel(problem.setup.config.parallel)
    step, params = round_step(workdir, problem.setup, parallel, number)
    config = problem.setup.config

    def draw(indices: np.ndarray) -> np.ndarray:
        keys = attempt_keys(config.seed, "e_step", number)
        drawing = make_drawing(step, parallel, params, problem.observations, keys, config.e_step.batch_size)
        x, _ = draw_rows(drawing, np.asarray(indices))
        check_draws(x)
        return x

    return draw


def posterior_measures(workdir: Workdir, problem: Problem, number: int) -> dict[str, float]:
    """Measures of ``config.eval.posterior_draws`` draws for each of the first ``eval.posterior_examples`` observations.

    ``posterior_spread`` needs no truth; ``coverage_<p>`` and ``tarp_<p>`` are p / 100 for a calibrated posterior, and
    ``crps`` is least for the exact one. TARP's reference point of an observation is another example's draw, so it does
    not look at the truth.
    """
    config = problem.setup.config
    count = min(config.eval.posterior_examples, problem.num_examples)
    parallel = make_parallel(config.parallel)
    step, params = round_step(workdir, problem.setup, parallel, number)
    observed = rows(problem.observations, np.arange(count))
    keys = attempt_keys(config.seed, "evaluate", number)
    drawing = make_drawing(step, parallel, params, observed, keys, config.e_step.batch_size)
    x = draw_samples(drawing, count, config.eval.posterior_draws)
    estimates = {"posterior_spread": metrics.spread(x)}
    record: dict[str, float] = {}
    if held_out.possible(problem.setup.corruption):
        record |= held_out.make_score(problem, parallel)(step, params)
        record |= held_out.make_calibration(problem, parallel)(step, params)
    if problem.truth is not None:
        truth = np.asarray(problem.truth[:count])
        levels = metrics.LEVELS
        references = np.roll(x[0], 1, axis=0) if count > 1 else None
        key = stream_key(config.seed, "tarp")
        estimates["crps"] = metrics.crps(x, truth)
        covered = metrics.coverage(x, truth, levels), metrics.tarp(x, truth, key, levels, references)
        for name, found in zip(("coverage", "tarp"), covered, strict=True):
            estimates |= {f"{name}_{100 * level:.0f}": e for level, e in zip(levels, found, strict=True)}
    for name, estimate in estimates.items():
        record[name] = float(estimate.value)
        if estimate.standard_error is not None:
            record[f"{name}_se"] = float(estimate.standard_error)
        record[f"{name}_samples"] = int(estimate.samples)
    return record
