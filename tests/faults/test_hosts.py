"""Several processes on one machine through the real command: the same noise, results, files, and ends when one dies."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from diffem_jax.storage import checkpoints
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir

from . import layout
from .command import command, refused, snapshot
from .harness import ROOT, Harness, appeared, leaves, wait

FIELDS = {
    "data.num_examples": 128,
    "data.shape": "(2,)",
    "corruption.measurements": 1,
    "denoiser.preconditioning": "edm",
    "network.features": "(8,)",
    "network.embedding": 8,
    "rounds": 2,
    "m_step.steps": 20,
    "m_step.batch_size": 32,
    "m_step.updates_per_dispatch": 5,
    "checkpoint.every_steps": 5,
    "e_step.batch_size": 32,
    "e_step.shard_size": 32,
    "e_step.steps": 3,
    "start.iterations": 2,
    "start.rank": 2,
    "eval.metrics": "('sliced_wasserstein',)",
}
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    flags = ["--config=manifold:quick", *(f"--config.{name}={value}" for name, value in FIELDS.items())]
    return Harness(tmp_path_factory.mktemp("hosts"), flags)


def several() -> list[tuple[str, ...]]:
    """How each of two processes is told of the other; a free port each time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [(f"127.0.0.1:{port}", "2", str(i)) for i in range(2)]


def begin(harness: Harness, workdir: Path, *extra: str) -> list[subprocess.Popen[str]]:
    """Two processes of one run."""
    names = ("--coordinator", "--num_processes", "--process_id")
    flags = [[f"{name}={value}" for name, value in zip(names, values, strict=True)] for values in several()]
    return [harness.start(workdir, *own, *extra) for own in flags]


def end(processes: list[subprocess.Popen[str]], code: int = 0) -> list[str]:
    outputs = [wait(process) for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [code, code], (codes, outputs)
    return outputs


def until(moment: Callable[[], bool], processes: list[subprocess.Popen[str]]) -> None:
    while not moment():
        for process in processes:
            assert process.poll() is None, wait(process)
        time.sleep(0.0005)


@contextlib.contextmanager
def devices(harness: Harness, count: int):
    """Processes started inside see so many CPU devices."""
    before = dict(harness.environment)
    harness.environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={count}"
    yield
    harness.environment.clear()
    harness.environment.update(before)


def draws(workdir: Path, number: int) -> np.ndarray:
    return np.asarray(ReconstructionStore(workdir / "reconstructions").round(number).open())


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    return dict(leaves(checkpoints.load(Workdir(workdir).last_round())))


def assert_close(workdir: Path, expected: Path, number: int) -> None:
    """Parameters and reconstructions to round-off, and what was logged."""
    np.testing.assert_allclose(draws(workdir, number), draws(expected, number), atol=2e-3)
    found, wanted = parameters(workdir), parameters(expected)
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        np.testing.assert_allclose(found[name], leaf, rtol=2e-3, atol=2e-4, err_msg=name)
    records = [[r for r in Workdir(w).records() if r["kind"] == "round"] for w in (workdir, expected)]
    assert [r["round"] for r in records[0]] == [r["round"] for r in records[1]] == list(range(number + 1))
    assert records[0][-1]["loss"] == pytest.approx(records[1][-1]["loss"], rel=1e-3)


@pytest.fixture(scope="module")
def alone(harness):
    harness.finish(harness.root / "alone")
    return harness.root / "alone"


@pytest.mark.slow
def test_noise_is_bit_equal_and_updates_agree_over_processes(harness):
    """1 x 1, 1 x 2 and 2 x 1, under pmap and jit, SGD (which shows a wrong scale of gradients) and Adam."""
    runs = {"one": [()], "two": several()}
    started = []
    for name, places in runs.items():
        for i, place in enumerate(places):
            call = [sys.executable, "-m", "tests.faults.layout", str(harness.root / f"{name}_{i}.npz"), *place]
            started.append(subprocess.Popen(call, cwd=ROOT, env=harness.environment, text=True, **PIPES))
    for process in started:
        output = wait(process)
        assert process.returncode == 0, output
    one, *two = (dict(np.load(harness.root / f"{name}.npz")) for name in ("one_0", "two_0", "two_1"))
    with jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
        here = layout.results()  # on the two devices of this process
    assert len(jax.devices()) == 2
    for name, expected in one.items():
        if name.startswith("noise"):
            assert expected.shape == (8, 3) and np.array_equal(expected, one["noise jit"])
            np.testing.assert_array_equal(np.concatenate([t[name] for t in two]), expected)
            np.testing.assert_array_equal(here[name], expected)
        else:
            way = name.split()[0]
            for other in (two[0][name], two[1][name], here[name], one[f"{way} jit"]):
                np.testing.assert_allclose(other, expected, rtol=2e-6, err_msg=name)
            assert np.abs(expected - [0.5, -0.2]).max() > 1e-2


def test_two_processes_train_as_one(harness):
    """2 x 1 and 1 x 2: each process writes its shards, one writes metrics, and the results are those of one process."""
    workdir, one = harness.root / "two", harness.root / "one_of_two_devices"
    processes = begin(harness, workdir, "--config.rounds=1")
    ended = command(*harness.flags, f"--workdir={one}", "--config.rounds=1")  # in this process, on its two devices
    assert ended.code == 0 and len(jax.devices()) == 2, ended
    lead, other = end(processes)
    assert "round 1: " in lead and "round" not in other
    sidecars = sorted((workdir / "reconstructions/round_00001").glob("shard-*.json"))
    assert [json.loads(file.read_text())["process"] for file in sidecars] == [0, 1, 0, 1]
    assert_close(workdir, one, 1)


@pytest.mark.slow
def test_a_run_of_two_processes_is_prolonged_by_one(harness, alone):
    workdir = harness.root / "prolonged"
    end(begin(harness, workdir, "--config.rounds=1"))
    assert "continuing after round 1 of 2" in harness.finish(workdir)
    assert_close(workdir, alone, 2)


@pytest.mark.slow
def test_two_processes_begin_from_another_runs_results(harness, alone):
    """A warm start, reconstructions and parameters: both processes take the same, and train as one process does."""
    one, two = harness.root / "warm_one", harness.root / "warm_two"
    warm = (f"--config.start.checkpoint={alone}", "--config.start.take=both", "--config.rounds=1")
    lead, other = end(begin(harness, two, *warm))
    assert "warm start: the reconstructions of" in lead and "warm start: the parameters of" in lead
    assert "warm start" not in other
    harness.finish(one, *warm)
    assert_close(two, one, 1)
    warm_loss, cold_loss = (Workdir(w).records()[1]["loss"] for w in (two, alone))
    assert abs(warm_loss - cold_loss) > 0.01 * cold_loss


@pytest.mark.slow
@pytest.mark.parametrize("way", ["pmap", "jit"])
def test_layouts_agree(harness, alone, way):
    """1 process x 2 devices and 2 processes x 1 give what 1 x 1 gives, by either way of mapping."""
    for name, count, start in (("devices", 2, None), ("processes", 1, begin)):
        workdir, extra = harness.root / f"{name}_{way}", f"--config.parallel={way}"
        with devices(harness, count):
            if start is None:
                harness.finish(workdir, extra)
            else:
                end(start(harness, workdir, extra))
        assert_close(workdir, alone, 2)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two_from_inside_a_round_and_back(harness, alone):
    workdir = harness.root / "relayed"
    moment = appeared(workdir, "latest/round_00001_update_000000010.checksums.json")
    ended = harness.kill(workdir, moment, signal.SIGTERM)
    assert ended.code == 143, ended.output
    processes = begin(harness, workdir)
    until(appeared(workdir, "latest/round_00002_update_000000010.checksums.json"), processes)
    # A signal to one ends both at the same update.
    processes[1].send_signal(signal.SIGTERM)
    outputs = end(processes, 143)
    assert "M-step 1: continuing from update" in outputs[0]
    output = harness.finish(workdir)
    assert "M-step 2: continuing from update" in output
    assert_close(workdir, alone, 2)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_host_killed_ends_the_others_within_a_minute_and_the_rerun_continues(harness, alone, victim):
    workdir = harness.root / f"killed_{victim}"
    processes = begin(harness, workdir, "--config.checkpoint.every_steps=5")
    until(appeared(workdir, "latest/round_00001_update_000000010.checksums.json"), processes)
    processes[victim].kill()
    began = time.monotonic()
    survivor = processes[1 - victim]
    output = wait(survivor, 60)
    wait(processes[victim])
    assert survivor.returncode != 0, output
    print(f"ended after {time.monotonic() - began:.1f} s with code {survivor.returncode}")
    outputs = end(begin(harness, workdir))
    assert "continuing round" in outputs[0]
    assert_close(workdir, alone, 2)


@pytest.mark.slow
def test_a_mistake_ends_all_processes(harness, tmp_path):
    """Another config in a used folder: told, no process waits for the other, nothing changed."""
    workdir = tmp_path / "run"
    harness.finish(workdir, "--config.rounds=0")
    before = snapshot(workdir)
    processes = begin(harness, workdir, "--config.rounds=0", "--config.m_step.learning_rate=0.5")
    outputs = [wait(process, 60) for process in processes]
    assert all(process.returncode != 0 for process in processes), outputs
    assert any("m_step.learning_rate" in output for output in outputs)
    assert snapshot(workdir) == before


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--coordinator=nowhere"], "--coordinator"),
        (["--coordinator=127.0.0.1:x"], "--coordinator"),
        (["--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=2"], "--process_id"),
    ],
)
def test_addresses_that_cannot_be_are_told(tmp_path, flags, word):
    refused(command("--config=manifold", f"--workdir={tmp_path / 'run'}", *flags), word)
    assert not list(tmp_path.iterdir())
