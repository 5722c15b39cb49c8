"""A name in a config, through the command: trained, prolonged, and equal to a run that was never stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir
from diffem_jax.testing.base import require

TINY = {
    "data.num_examples": 64,
    "m_step.steps": 20,
    "m_step.batch_size": 32,
    "m_step.updates_per_dispatch": 10,
    "e_step.steps": 4,
    "e_step.batch_size": 64,
    "start.iterations": 3,
    "start.rank": 2,
}


def tiny(*flags: str, rounds: int) -> list[str]:
    """The flags of a run of seconds; a field that is given stays as given."""
    given = {flag.partition("=")[0] for flag in flags}
    fields = {f"--config.{name}": value for name, value in (TINY | {"rounds": rounds}).items()}
    return [*flags, *(f"{name}={value}" for name, value in fields.items() if name not in given)]


def check_command(*flags: str, folder: Path, source: Path | None = None) -> None:
    """Trains by the command with objects of one's own named in the flags, and goes on from its checkpoint.

    One round is run, and the same folder prolonged to two; both must leave the same draws, bit for bit, as two rounds
    in one go. Takes about half a minute.

    Args:
        *flags: for instance ``--config=digits`` and ``--config.e_step.sampler=mymodule:mine``.
        folder: an empty folder for the runs.
        source: the folder of the module, put first on PYTHONPATH; None where it is installed.

    Raises:
        AssertionError: with what the command said.
    """
    places = [str(source)] if source else []
    path = os.pathsep.join([*places, str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "DIFFEM_DATA_DIR": str(folder / "cache")}

    def run(name: str, rounds: int) -> str:
        argv = [sys.executable, "-m", "diffem_jax.main", *tiny(*flags, rounds=rounds), f"--workdir={folder / name}"]
        done = subprocess.run(argv, cwd=source or folder, env=environment, capture_output=True, text=True, timeout=900)
        require(done.returncode == 0, f"{' '.join(flags)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    run("stopped", 1)
    said = run("stopped", 2)
    require("continuing after round 1" in said, f"the second command did not go on from the first: {said}")
    run("straight", 2)
    indices = np.arange(int(TINY["data.num_examples"]))
    stopped, straight = (
        ReconstructionStore(Workdir(folder / name).reconstructions).round(2).open().rows(indices)
        for name in ("stopped", "straight")
    )
    require(np.array_equal(stopped, straight), "a prolonged run must leave the same draws as one in one go")
