"""``--mode=evaluate``: measures of a round of a finished run, and of its posterior by several draws of each observation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffem_jax import metrics
from diffem_jax.build.problem import Problem, load_problem, rows, stored_config
from diffem_jax.config import override
from diffem_jax.data import npz
from diffem_jax.errors import UserError
from diffem_jax.parallel import make_parallel
from diffem_jax.run import identifiability, stopping
from diffem_jax.run.e_step import Drawing, Read, attempt_keys, check_draws, draw_rows, draw_samples, reader
from diffem_jax.run.identity import check_data
from diffem_jax.run.measures import METRICS, fields_of, make_measures
from diffem_jax.run.sample import chosen_round, round_drawing
from diffem_jax.run.termination import Say
from diffem_jax.storage.files import write_arrays
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import stream_key

ON_REQUEST = {"fid", "inception_score", "fd_dinov2", "lpips"}  # they need packages and weights of their own


def evaluate_run(
    workdir: Workdir, reference: str | None, round: int | None, warn: Say, fields: Sequence[tuple[str, str]]
) -> dict[str, float]:
    """Every measure that the data allow, of ``chosen_round``; also appended to metrics.jsonl.

    ``reference`` is an .npz with clean ``x`` of the same rows, for measuring only; ``fields`` of eval and data.path are
    set, as texts; ``warn`` takes lines on what the data cannot show. UserError for no such round, or if nothing fits.
    """
    config = stored_config(workdir)
    override(config, fields)
    if "data.path" not in dict(fields) and config.data.path and not Path(config.data.path).expanduser().exists():
        cure = "give --config.data.path=FILE where it lies now"
        raise UserError(f"{config.data.path}: no such file or folder, the run's data; expected it where it was; {cure}")
    problem = load_problem(config)
    check_data(workdir, problem)
    number = chosen_round(workdir, round)
    _record_unseen(workdir, problem, number, warn)
    if reference is not None:
        problem = problem._replace(truth=_read_reference(reference, problem))
    drawing = round_drawing(workdir, problem.setup, number, make_parallel(config.parallel))
    draws = _reconstructions(workdir, problem, number, drawing)
    left_out = ON_REQUEST if len(problem.setup.shape) > 2 else ON_REQUEST | {"ssim"}
    measure = make_measures(problem, [name for name in METRICS if name not in left_out])
    record = measure(number, draws) | posterior_measures(problem, number, drawing)
    workdir.log({"kind": "evaluation", "round": number, **record})
    return {name: float(value) for name, value in record.items()}


def _record_unseen(workdir: Workdir, problem: Problem, number: int, warn: Say) -> None:
    """Logs which directions of x no observation sees, and writes them to identifiability.npz."""
    if (found := identifiability.look(problem)) is None:
        return
    path = workdir.root / "identifiability.npz"
    write_arrays(path, {"seen": found.seen, "directions": found.directions, "unseen": found.unseen})
    workdir.log({"kind": "identifiability", "round": number, **found.record()})
    for line in found.warnings():
        warn(f"{line} (see {path} and docs/theory.md)")


def _read_reference(path: str, problem: Problem) -> np.ndarray:
    """Clean x of the problem's rows, in the units that it trains in."""
    truth, expected = npz.read_arrays(path, ("x",))["x"], (problem.num_examples, *problem.setup.shape)
    if truth.shape != expected:
        raise UserError(f"--reference: {path} holds x of shape {truth.shape}; expected {expected}")
    scale = problem.setup.config.data.scale
    return truth if scale == 1 else np.asarray(truth, np.float32) * np.float32(scale)


def _reconstructions(workdir: Workdir, problem: Problem, number: int, drawing: Drawing) -> Read:
    """The round's stored draws; where they are not kept any more, the same draws once more."""
    store = ReconstructionStore(workdir.reconstructions)
    if store.holds(number) and store.round(number).is_complete():
        return store.round(number).open().__getitem__
    read, keys = reader(problem.observations), attempt_keys(problem.setup.config.seed, "e_step", number)

    def draw(indices: np.ndarray) -> np.ndarray:
        x, _ = draw_rows(drawing, read, keys, indices)
        check_draws(x)
        return x

    return draw


def posterior_measures(problem: Problem, number: int, drawing: Drawing) -> dict[str, float]:
    """Measures of ``config.eval.posterior_draws`` draws for each of the first ``eval.posterior_examples`` observations.

    ``posterior_spread`` needs no truth; ``coverage_<p>`` and ``tarp_<p>`` are p / 100 for a calibrated posterior, and ``crps`` is
    least for the exact one. TARP's reference point of an observation is another example's draw.
    """
    config = problem.setup.config
    count = min(config.eval.posterior_examples, problem.num_examples)
    observed, keys = rows(problem.observations, np.arange(count)), attempt_keys(config.seed, "evaluate", number)
    x = draw_samples(drawing, observed, keys, config.eval.posterior_draws)
    estimates = {"posterior_spread": metrics.spread(x)}
    record: dict[str, float] = {}
    if problem.setup.corruption.can_hold_out:
        for measure, size in ((stopping.score, stopping.SCORED), (stopping.calibration, stopping.CALIBRATED)):
            record |= measure(stopping.predict(problem, drawing, *size))
    if problem.truth is not None:
        truth, levels = np.asarray(problem.truth[:count]), metrics.LEVELS
        references = np.roll(x[0], 1, axis=0) if count > 1 else None
        estimates["crps"] = metrics.crps(x, truth)
        estimates["psnr_of_mean"] = metrics.psnr(x.mean(axis=0), truth)
        covered = metrics.coverage(x, truth, levels)
        joint = metrics.tarp(x, truth, stream_key(config.seed, "tarp"), levels, references)
        for name, found in (("coverage", covered), ("tarp", joint)):
            estimates |= {f"{name}_{100 * level:.0f}": e for level, e in zip(levels, found, strict=True)}
    return record | fields_of(estimates)
