"""Starts the real training command, kills it at chosen moments, starts it again, and compares what it left."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffem_jax.storage import checkpoints
from diffem_jax.storage.files import TEMPORARY
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir

ROOT = Path(__file__).resolve().parents[2]
STARTED: list[subprocess.Popen[str]] = []
"""Processes that may still run; whoever gives up early ends them."""
TINY = {
    "data.num_examples": 200,
    "network.features": "(16,)",
    "rounds": 2,
    "m_step.steps": 40,
    "m_step.batch_size": 64,
    "m_step.updates_per_dispatch": 10,
    "checkpoint.every_steps": 10,
    "e_step.batch_size": 64,
    "e_step.shard_size": 64,
    "e_step.steps": 4,
    "start.iterations": 3,
    "start.rank": 4,
    "eval.metrics": "('psnr',)",
    "eval.posterior_draws": 4,
    "eval.posterior_examples": 64,
}


def arguments(**changes: Any) -> list[str]:
    """The tiny run's flags; ``m_step__steps=80`` changes a field."""
    fields = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return ["--config=digits", *(f"--config.{name}={value}" for name, value in fields.items())]


def tiny(*flags: str, rounds: int) -> list[str]:
    """Some flags, and those of the tiny run that they leave open, but its network's."""
    given = {flag.partition("=")[0] for flag in flags}
    fields = {
        f"--config.{name}": value for name, value in (TINY | {"rounds": rounds}).items() if name != "network.features"
    }
    return [*flags, *(f"{name}={value}" for name, value in fields.items() if name not in given)]


class Killed(NamedTuple):
    """Whether a process was still running when the signal was sent, what it wrote, its exit code, and what it was at."""

    alive: bool
    output: str
    code: int
    phase: str


class Harness:
    """Runs of one command, each in a folder under ``root``; with a cache they share compiled programs, and have the same bits."""

    def __init__(self, root: Path, flags: list[str], cache: bool = True):
        self.root, self.flags = root, flags
        self.root.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        self.environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        self.environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        self.environment["JAX_ENABLE_COMPILATION_CACHE"] = str(cache).lower()
        if cache:
            self.environment |= {
                "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }

    def start(self, workdir: Path, *extra: str, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        """Starts the command; ``before`` runs in the child first."""
        command = [sys.executable, "-m", "diffem_jax.main", f"--workdir={workdir}", *self.flags, *extra]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=self.root, env=self.environment, preexec_fn=before, **pipes)  # type: ignore[call-overload]
        STARTED[:] = [*(p for p in STARTED if p.returncode is None), process]
        return process

    def finish(self, workdir: Path, *extra: str, code: int = 0, before: Callable[[], None] | None = None) -> str:
        """Runs the command to its end; its output. Asserts the exit code."""
        process = self.start(workdir, *extra, before=before)
        output = wait(process)
        assert process.returncode == code, f"exit code {process.returncode}, expected {code}:\n{output}"
        return output

    def kill(
        self,
        workdir: Path,
        moment: Callable[[], bool],
        number: int = signal.SIGKILL,
        extra: tuple[str, ...] = (),
        delay: float = 0.0,
        timeout: float = 120.0,
    ) -> Killed:
        """Starts the command and sends it a signal once ``moment()`` holds."""
        since = time.time()
        process = self.start(workdir, *extra)
        began = time.monotonic()
        while process.poll() is None and not moment() and time.monotonic() - began < timeout:
            time.sleep(0.0005)
        time.sleep(delay)
        alive = process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        output = wait(process)
        return Killed(alive, output, process.returncode, phase(workdir, output, since))


def wait(process: subprocess.Popen[str], timeout: float = 600.0) -> str:
    """The output of a process that ends by itself in time."""
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        output = process.communicate()[0]
        raise AssertionError(f"still running after {timeout:g} s:\n{output}") from None


def appeared(folder: Path, pattern: str) -> Callable[[], bool]:
    """A moment: a path that matches is there now and was not there when the process started."""
    before = set(folder.glob(pattern))
    return lambda: any(path not in before for path in folder.glob(pattern))


def after(seconds: float) -> Callable[[], bool]:
    """A moment: so long from now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def leaves(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(path, array) of a tree."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path), np.asarray(leaf)


def result(workdir: Path) -> dict[str, Any]:
    """What a run is compared by: every round's state, the last reconstructions, and the numbers but for times."""
    folder = Workdir(workdir)
    out: dict[str, Any] = {}
    for path in checkpoints.written(folder.rounds):
        out |= {f"{path.name}{name}": leaf.tobytes() for name, leaf in leaves(checkpoints.load(path))}
    store = ReconstructionStore(folder.reconstructions)
    out["rounds"] = store.rounds()
    last = store.round(out["rounds"][-1])
    out["reconstructions"] = np.asarray(last.open()).tobytes()
    for record in folder.records():
        kept = {name: value for name, value in record.items() if not name.endswith("_seconds")}
        out[f"{record['kind']} {record['round']}"] = json.dumps(kept, sort_keys=True)
    return out


PHASES = ("starting", "start's fit", "checkpoint", "E-step", "measures", "M-step", "after the last round")


def phase(workdir: Path, output: str, began: float) -> str:
    """What a process that began at a ``time.time`` was at when it died, by all that it said and by the files that it left."""
    folder = Workdir(workdir)
    if not any(word in output for word in ("continuing", "start: ", "\nround ")):
        return "starting" if "results " not in output or checkpoints.written(folder.rounds) else "start's fit"
    for place in (folder.start, folder.rounds, folder.latest):
        halves = [p for p in checkpoints.written(place) if not p.with_name(f"{p.name}.checksums.json").exists()]
        halves += place.glob("*.orbax-checkpoint-tmp*")
        if any(path.stat().st_mtime >= began for path in halves):
            return "checkpoint"
    store = ReconstructionStore(folder.reconstructions)
    drawn = max((n for n in store.rounds() if store.round(n).is_complete()), default=-1)
    saved = checkpoints.written(folder.rounds)
    if drawn < (int(saved[-1].name[-5:]) if saved else 0):
        return "E-step"
    logged = max((r["round"] for r in folder.records() if r["kind"] == "round"), default=-1)
    if logged < drawn:
        return "measures"
    return "M-step" if logged < folder.stored_config()["rounds"] else "after the last round"


def assert_same(workdir: Path, expected: dict[str, Any]) -> None:
    """Bit for bit the same result, nothing half-done left, and metrics in order."""
    found = result(workdir)
    differing = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    assert not differing, f"{workdir} differs in {differing[:8]} ({len(differing)} of {len(expected)})"
    left = [p for p in workdir.rglob("*") if "orbax-checkpoint-tmp" in p.name or p.name.endswith(TEMPORARY)]
    assert not left, f"left behind: {left}"
    numbers = [r["round"] for r in Workdir(workdir).records() if r["kind"] == "round"]
    assert numbers == sorted(set(numbers))


def copy(source: Path, target: Path) -> Path:
    """A work directory's copy, to be damaged."""
    return Path(shutil.copytree(source, target))
