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

RESULTS = Path(__file__).parent / "results"


def interleave(
    sides: dict[str, Callable[[], Any]], repeats: int = 5, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each side, run in turn A B A B ... so that a machine's drift falls on all alike.

    With ``time.process_time`` as clock and one core they are the seconds of a quiet core, whoever else uses this one.
    """
    for side in sides.values():
        jax.block_until_ready(side())
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            began = clock()
            jax.block_until_ready(side())
            seconds[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def write(name: str, result: dict[str, Any]) -> None:
    """Writes results/NAME.json and prints it."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**result, "cores": len(os.sched_getaffinity(0))}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(f"{name}: {text}", flush=True)


def one_core() -> None:
    """Keeps this process, and the threads that XLA will start, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
