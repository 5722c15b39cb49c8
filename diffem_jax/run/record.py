"""What a round leaves for people: its record, its pictures, its line and the page of the run."""

from __future__ import annotations

import contextlib

import numpy as np

from diffem_jax.errors import UserError
from diffem_jax.parallel import agree, process_count, process_index
from diffem_jax.report import page
from diffem_jax.report.console import round_line
from diffem_jax.run import held_out, pictures, stopping
from diffem_jax.run.context import Record, Run, drawn_with, picture_path
from diffem_jax.storage import checkpoints
from diffem_jax.types import EMState


def record_round(run: Run, number: int, drawn: Record, state: EMState) -> None:
    """Measures and pictures of a round, its line, and the page; the first process writes."""
    if process_index() != 0:
        return
    workdir, config, path = run.workdir, run.problem.setup.config, picture_path(run, number)
    trained: Record = {"step": 0}
    if number:
        saved = checkpoints.metadata(workdir.round_checkpoint(number))
        trained = {name: saved[name] for name in ("step", "loss", "m_step_seconds")}
    due = number % config.eval.every == 0 or number == config.rounds
    draws = run.store.round(number).open().rows
    measured = run.measure(number, draws) if due else {}
    pictures.picture(run.problem, draws, path, f"round {number}" if number else "start")
    if number and due:
        spread(run, number, state)
    entry = {
        "kind": "round",
        "round": number,
        **trained,
        **drawn,
        "compile_seconds": run.clock.lap(),
        **measured,
    }
    workdir.log(entry)
    run.say(round_line(number, entry))
    run.estimate.round(number, entry)
    run.writers.round(entry, path)
    page.write(workdir)


def end(run: Run, number: int, state: EMState) -> None:
    """After the last round: what the stopping rule picked, and the page."""
    records = run.workdir.records()
    found = stopping.stop_record(records, run.problem.setup.config)
    if process_index() == 0 and found is not None and found not in records:
        run.workdir.log(found)
        run.say(f"stop: {found['reason']}")
    if number and not (run.workdir.samples / "spread.png").exists():
        spread(run, number, state)
    calibrate(run, number, state)
    if process_index() == 0:
        page.write(run.workdir)


def calibrate(run: Run, number: int, state: EMState) -> None:
    """Says once per run of rounds how often the last round's intervals hold measurements that were held back."""
    problem, before = run.problem, run.workdir.records()
    known = any(r.get("kind") == "calibration" and r.get("round") == number for r in before)
    if (
        not number
        or problem.num_examples < 16
        or not held_out.possible(problem.setup.corruption)
        or agree(np.array(known))
    ):
        return
    step, params = drawn_with(run, number, state)
    record = held_out.make_calibration(problem, run.engine.parallel)(step, params)
    if process_index() == 0:
        run.workdir.log({"kind": "calibration", "round": number, **record})
        for line in held_out.calibration_lines(record):
            run.say(line)


def spread(run: Run, number: int, state: EMState) -> None:
    """The picture of several draws of each observation, by one process alone; a run does not end for want of it."""
    if process_count() == 1:
        path = run.workdir.samples / "spread.png"
        step, params = drawn_with(run, number, state)
        with contextlib.suppress(UserError):  # of draws that are not finite the E-step speaks
            pictures.spread_picture(run.problem, step, run.engine.parallel, params, path, f"round {number}")
