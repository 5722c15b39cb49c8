"""What the benchmarks share: interleaved timing, medians, results as JSON."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from diffem_jax.run import train
from diffem_jax.run.context import Run
from diffem_jax.run.e_step import run_e_step
from diffem_jax.storage.workdir import Workdir

RESULTS = Path(__file__).parent / "results"


def interleave(
    sides: dict[str, Callable[[], Any]], repeats: int = 5, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each side, run in turn A B A B ... so that a machine's drift falls on all alike.

    With ``time.process_time`` as clock and one core they are the seconds of a quiet core, whoever else uses this one.
    """
    return {name: statistics.median(values) for name, values in turns(sides, repeats, clock).items()}


def turns(sides: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each side in each turn, after one that compiles."""
    for side in sides.values():
        jax.block_until_ready(side())
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            began = clock()
            jax.block_until_ready(side())
            seconds[name].append(clock() - began)
    return seconds


def overhead(
    sides: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.process_time
) -> tuple[float, float, float]:
    """Median seconds of two sides, and the median over turns of what the first takes more than the second, as a share.

    A share of each turn is of the machine as it was then: it is steadier than that of the medians.
    """
    seconds = turns(sides, repeats, clock)
    (first, second) = seconds.values()
    more = statistics.median(a / b - 1 for a, b in zip(first, second, strict=True))
    return statistics.median(first), statistics.median(second), more


def make_run(problem: Any, folder: str | Path) -> Run:
    """The run of a problem in an empty folder, its start fitted and nothing trained, without measures or messages."""
    workdir = Workdir(folder)
    workdir.create()
    return train.make_run(problem, workdir)


def draw_round(run: Run, number: int, step: Callable[..., Any], params: Any) -> None:
    """An E-step of a round on the host, all of its observations."""
    run_e_step(run.problem, run.store, run.engine.parallel, step, params, number, run.stop, run.say)


def write(name: str, result: dict[str, Any]) -> None:
    """Writes results/NAME.json and prints it."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**result, "cores": len(os.sched_getaffinity(0))}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(f"{name}: {text}", flush=True)


def one_core() -> None:
    """Keeps this process, and the threads that XLA will start, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
