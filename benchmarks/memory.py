"""Memory of a run against the number of its observations, which stay memory-mapped on disk.

    python -m benchmarks.memory

Peak resident memory of loading (with all checks), of the start, of the E-step and of an M-step, each in a process of its
own, on 10,000 and on 100,000 masked observations 32x32x3 with a tiny network, both memory-mapped. Both M-steps make 200 updates
of batch 500, 2 a dispatch: one epoch of the large file. What the allocator keeps of freed blocks varies from run to run, so the
two sizes take turns, and medians of three are compared. What must not happen is growth with the file: at most 5 %.
"""

import json
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from typing import Any

import numpy as np

COUNTS = (10_000, 100_000)
SHAPE = (32, 32, 3)
STAGES = ("load", "e_step", "m_step")
BATCH = 500
REPEATS = 3


def observations(path: pathlib.Path, count: int) -> None:
    """An uncompressed .npz of masked noise, written chunk by chunk: nothing of its size is ever in memory."""
    rng = np.random.default_rng(0)
    mask = (rng.random((256, *SHAPE[:2], 1)) < 0.5).astype(np.uint8)
    y = rng.standard_normal((256, *SHAPE), np.float32) * mask
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, block in (("y", y), ("mask", mask)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": block.dtype.str, "fortran_order": False, "shape": (count, *block.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
                for first in range(0, count, len(block)):
                    file.write(block[: min(len(block), count - first)].tobytes())


def config(path: str) -> Any:
    from configs import own_data

    c = own_data.get_config("small")
    with c.unlocked():
        c.data.path, c.eval.metrics, c.checkpoint.every_steps = path, (), 10**6
        c.network.features, c.denoiser.preconditioning = (16,), "edm"
        c.start.update({"rank": 2, "iterations": 2, "num_examples": 512})
        c.e_step.update({"steps": 2, "batch_size": BATCH})
        c.m_step.update({"batch_size": BATCH, "steps": max(COUNTS) // BATCH, "updates_per_dispatch": 2})
    return c


def stage(name: str, path: str, folder: str) -> dict[str, float]:
    """One stage in this process: its seconds, and the peak resident memory of the process in MiB."""
    from benchmarks.common import draw_round, make_run
    from diffem_jax.build.problem import load_problem
    from diffem_jax.run.rounds import fresh_state, run_m_step
    from diffem_jax.storage import rows

    rows.IN_MEMORY_BYTES = 0
    c = config(path)
    began = time.monotonic()
    problem = load_problem(c)
    if name != "load":
        run = make_run(problem, folder)
        if name == "e_step":
            draw_round(run, 0, run.start_draw, run.start)
        else:
            run_m_step(run, 1, fresh_state(run))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mib": round(peak, 1), "seconds": round(time.monotonic() - began, 1)}


def measure(root: pathlib.Path, name: str, count: int, repeat: int) -> dict[str, float]:
    """One stage in a process of its own; an M-step reads what the first E-step wrote."""
    folder = root / f"run{count}_{0 if name == 'm_step' else repeat}"
    stage = ["--stage", name, str(root / f"{count}.npz"), str(folder)]
    done = subprocess.run([sys.executable, "-m", "benchmarks.memory", *stage], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} of {count}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(count, name, found, flush=True)
    if repeat and name == "e_step":
        shutil.rmtree(folder)
    return found


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of the peaks with the least and the most, and the median of the seconds."""
    peaks = sorted(run["peak_mib"] for run in runs)
    seconds = statistics.median(run["seconds"] for run in runs)
    return {"peak_mib": statistics.median(peaks), "least": peaks[0], "most": peaks[-1], "seconds": seconds}


def main() -> None:
    from benchmarks.common import write

    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for count in COUNTS:
            file = root / f"{count}.npz"
            observations(file, count)
            result[str(count)] = {"file_mib": round(file.stat().st_size / 2**20, 1)}
        order = [(name, count, repeat) for repeat in range(REPEATS) for name in STAGES for count in COUNTS]
        runs = {key: measure(root, *key) for key in order}
    for count in COUNTS:
        for name in STAGES:
            result[str(count)][name] = summary([runs[name, count, repeat] for repeat in range(REPEATS)])
    small, large = (result[str(count)] for count in COUNTS)
    growth = {name: large[name]["peak_mib"] / small[name]["peak_mib"] - 1 for name in STAGES}
    write("memory", {**result, "growth": growth})
    if max(growth.values()) >= 0.05:
        sys.exit(f"memory grows with the number of observations: {growth}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        print(json.dumps(stage(*sys.argv[2:])))
    else:
        main()
