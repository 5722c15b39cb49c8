"""What a round leaves for people: its record, its line, the page of the run, and pictures of observations, draws and truth."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from diffem_jax.build.problem import Problem, rows
from diffem_jax.data.observations import seen_anywhere
from diffem_jax.errors import UserError
from diffem_jax.parallel import agree, process_count, process_index
from diffem_jax.report import page, plots
from diffem_jax.report.console import round_line, time_left
from diffem_jax.run import stopping
from diffem_jax.run.context import Record, Run, drawing_of
from diffem_jax.run.e_step import attempt_keys, draw_samples
from diffem_jax.storage import checkpoints
from diffem_jax.types import EMState, Observation


def record_round(run: Run, number: int, drawn: Record, state: EMState) -> None:
    """Measures and pictures of a round, its line, and the page; the first process writes."""
    if process_index() != 0:
        return
    workdir, config, path = run.workdir, run.problem.setup.config, run.workdir.picture(number)
    saved = checkpoints.metadata(workdir.round_checkpoint(number)) if number else {"step": 0}
    trained = {name: saved[name] for name in ("step", "loss", "m_step_seconds") if name in saved}
    due = number % config.eval.every == 0 or number == config.rounds
    draws = run.store.round(number).open().__getitem__
    measured = run.measure(number, draws) if due else {}
    picture(run.problem, draws, path, f"round {number}" if number else "start")
    if number and due:
        spread_picture(run, number, state)
    entry = {"kind": "round", "round": number, **trained, **drawn, "compile_seconds": run.clock.lap(), **measured}
    workdir.log(entry)
    for line in (round_line(number, entry), *time_left(config, number, entry)):
        run.say(line)
    run.writers.round(entry, path)
    page.write(workdir)


def end(run: Run, number: int, state: EMState) -> None:
    """After the last round: what the stopping rule picked, and the page."""
    records, rule = run.workdir.records(), run.problem.setup.config.stop
    found = stopping.stop_record(records, rule.rule, rule.patience)
    if process_index() == 0 and found is not None and found not in records:
        run.workdir.log(found)
        run.say(f"stop: {found['reason']}")
    if number and not (run.workdir.samples / "spread.png").exists():
        spread_picture(run, number, state)
    calibrate(run, number, state)
    if process_index() == 0:
        page.write(run.workdir)


def calibrate(run: Run, number: int, state: EMState) -> None:
    """Records once per run of rounds how often the last round's intervals hold measurements that were held back."""
    problem = run.problem
    known = any(r.get("kind") == "calibration" and r.get("round") == number for r in run.workdir.records())
    possible = number and problem.num_examples >= 16 and problem.setup.corruption.can_hold_out
    if not possible or agree(np.array(known)):
        return
    predictions = stopping.predict(problem, drawing_of(run, number, state), *stopping.CALIBRATED, run.stop.check)
    record = stopping.calibration(predictions)
    if process_index() == 0:
        run.workdir.log({"kind": "calibration", "round": number, **record})


def shown_observations(problem: Problem, observed: Observation) -> np.ndarray:
    """Observations as pictures show them: y, NaN where not measured, or what the network sees where y is not like x."""
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


def spread_picture(run: Run, number: int, state: EMState) -> None:
    """The PNG of several draws for each of six observations, or for one short vector: one E-step batch in all."""
    if process_count() > 1:
        return
    problem, batch = run.problem, run.problem.setup.config.e_step.batch_size
    vectors = plots.is_point(problem.setup.shape)
    count = 1 if vectors else min(6, problem.num_examples, max(1, batch // 2))
    observed = rows(problem.observations, np.arange(count))
    samples = min(4096 if vectors else 16, max(2, batch // count))
    keys = attempt_keys(problem.setup.config.seed, "spread")
    try:
        x = draw_samples(drawing_of(run, number, state), observed, keys, samples, quiet=True, pad=True)
    except UserError:  # of draws that are not finite the E-step speaks; a run does not end for want of a picture
        return
    truth = None if problem.truth is None else np.asarray(problem.truth[:count])
    shown = shown_observations(problem, observed)
    what = f"round {number}, p(x | y) of one y" if vectors else f"round {number}"
    plots.spread(run.workdir.samples / "spread.png", shown, x, truth, title=title_of(problem, what, shown))
