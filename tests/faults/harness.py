"""Starts the real training command, kills it at chosen moments, starts it again, and compares what it left."""

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

from .command import ROOT

FIELDS = """
data.num_examples=200 network.features=(16,) rounds=2 m_step.steps=40 m_step.batch_size=64
m_step.updates_per_dispatch=10 checkpoint.every_steps=10 e_step.batch_size=100 e_step.shard_size=64 e_step.steps=4
e_step.draws=1 start.iterations=3 start.rank=4 eval.metrics=('psnr',) eval.posterior_draws=4 eval.posterior_examples=64
"""
TINY: dict[str, Any] = dict(field.split("=", 1) for field in FIELDS.split())
SMALL = {
    **{"rounds": 1, "m_step.steps": 2, "m_step.batch_size": 8, "e_step.steps": 2, "e_step.draws": 1},
    **{"start.iterations": 1, "start.rank": 2, "network.features": "(8,)", "eval.metrics": "()"},
}
"""A run on a file that does every step and learns nothing."""


def small(of: dict[str, Any] = SMALL, /, **changes: Any) -> list[str]:
    """The flags of SMALL, or of others; ``m_step__steps=3`` changes a field or adds one."""
    fields = of | {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--config.{name}={value}" for name, value in fields.items()]


def arguments(**changes: Any) -> list[str]:
    """The tiny run's flags; ``m_step__steps=80`` changes a field."""
    return ["--config=digits", *small(TINY, **changes)]


def tiny(*flags: str, rounds: int) -> list[str]:
    """Some flags, and those of the tiny run that they leave open, but its network's."""
    given = {flag.partition("=")[0] for flag in flags}
    left = {name: value for name, value in TINY.items() if name != "network.features"} | {"rounds": rounds}
    return [*flags, *(f"--config.{n}={value}" for n, value in left.items() if f"--config.{n}" not in given)]


class Killed(NamedTuple):
    """Whether a process was still running when the signal was sent, what it wrote, and its exit code."""

    alive: bool
    output: str
    code: int


class Harness:
    """Runs of one command, each in a folder under ``root``; with a cache they share compiled programs, and have the same bits."""

    def __init__(self, root: Path, flags: list[str], cache: bool = True, devices: int = 2):
        self.root, self.flags = root, flags
        self.root.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        self.environment |= {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_ENABLE_COMPILATION_CACHE": str(cache).lower()}

    def start(self, workdir: Path, *extra: str, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        """Starts the command; ``before`` runs in the child first."""
        command = [sys.executable, "-m", "diffem_jax.main", f"--workdir={workdir}", *self.flags, *extra]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.root, env=self.environment, preexec_fn=before, **pipes)  # type: ignore[call-overload]

    def finish(self, workdir: Path, *extra: str, code: int = 0, before: Callable[[], None] | None = None) -> str:
        """Runs the command to its end; its output. Asserts the exit code."""
        process = self.start(workdir, *extra, before=before)
        output = wait(process)
        assert process.returncode == code, f"exit code {process.returncode}, expected {code}:\n{output}"
        return output

    def kill(
        self, workdir: Path, moment: Callable[[], bool], number: int = signal.SIGKILL, *extra: str, delay: float = 0.0
    ) -> Killed:
        """Starts the command and sends it a signal once ``moment()`` holds."""
        process = self.start(workdir, *extra)
        began = time.monotonic()
        while process.poll() is None and not moment() and time.monotonic() - began < 120:
            time.sleep(0.0005)
        time.sleep(delay)
        alive = process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        output = wait(process)
        return Killed(alive, output, process.returncode)


def wait(process: subprocess.Popen[str], timeout: float = 600.0) -> str:
    """The output of a process that ends by itself in time."""
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        output = process.communicate()[0]
        raise AssertionError(f"still running after {timeout:g} s:\n{output}") from None


def until(moment: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not moment():
        assert process.poll() is None, wait(process)
        time.sleep(0.0005)


def appeared(folder: Path, pattern: str) -> Callable[[], bool]:
    """A moment: a path that matches is there now and was not there when the process started."""
    before = set(folder.glob(pattern))
    return lambda: any(path not in before for path in folder.glob(pattern))


def after(seconds: float) -> Callable[[], bool]:
    """A moment: so long from now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def leaves(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
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
    return Path(shutil.copytree(source, target))
