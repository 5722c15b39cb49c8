"""What the benchmarks share: interleaved timing, runs without measures, the machine, results as JSON."""

import contextlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from diffem_jax.run import train
from diffem_jax.run.context import Run
from diffem_jax.run.e_step import make_drawing, run_e_step
from diffem_jax.storage.workdir import Workdir

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def interleave(
    sides: Mapping[Any, Callable[[], Any]], repeats: int = 5, clock: Callable[[], float] = time.process_time
) -> dict[Any, list[float]]:
    """Seconds of each side in each turn, A B A B ..., so that a machine's drift falls on all alike; a first call compiles.

    Processor seconds on one core are those of a quiet core, whoever else uses it.
    """
    for side in sides.values():
        jax.block_until_ready(side())
    seconds: dict[Any, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            began = clock()
            jax.block_until_ready(side())
            seconds[name].append(clock() - began)
    return seconds


def medians(seconds: Mapping[Any, Sequence[float]]) -> dict[Any, float]:
    """The median of each side's turns."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def excess(first: Sequence[float], second: Sequence[float]) -> float:
    """The share that the first side takes more, median over turns: steadier than that of the medians."""
    return statistics.median(a / b - 1 for a, b in zip(first, second, strict=True))


def make_run(problem: Any, folder: str | Path) -> Run:
    """The run of a problem in an empty folder, its start fitted and nothing trained, without measures or messages."""
    workdir = Workdir(folder)
    workdir.create()
    return train.make_run(problem, workdir)


def draw_round(run: Run, number: int, step: Callable[..., Any], params: Any) -> None:
    """An E-step of a round on the host, all of its observations."""
    drawing = make_drawing(step, run.engine.parallel, params, run.problem.setup.config.e_step.batch_size)
    run_e_step(run.problem, run.store, drawing, number, run.stop, run.say)


def machine() -> dict[str, Any]:
    """The card, its driver and the versions that compute."""
    device, versions = jax.devices()[0], {}
    for name in ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu", "flax", "optax", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        driver = "not asked: no nvidia-smi"
    found = {"device": device.device_kind, "devices": jax.device_count(), "backend": jax.default_backend()}
    return found | {"platform": device.client.platform_version.strip(), "versions": versions, "driver": driver}


def markdown(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    first, *others = (f"| {' | '.join(map(str, row))} |" for row in (head, *rows))
    return "\n".join([first.replace("|  |", "| |"), "|" + "---|" * len(head), *others])


def write_page(path: Path, text: str) -> None:
    """Puts the text between the markers of a page, the prose around them stays."""
    head, _, rest = path.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(f"{head}{BEGIN}\n\n{text.strip()}\n\n{END}{tail}")
    print(f"wrote {path.name}")


def write(name: str, result: dict[str, Any]) -> None:
    """Writes results/NAME.json and prints it."""
    text = json.dumps({**result, "cores": len(os.sched_getaffinity(0))}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(f"{name}: {text}", flush=True)


def one_core() -> None:
    """Keeps this process, and the threads that XLA will start, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
