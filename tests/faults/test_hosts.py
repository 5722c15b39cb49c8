"""Several processes on one machine through the real command: the same noise, results, files, and ends when one dies."""

import json
import signal
import socket
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from diffem_jax.storage import checkpoints
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir

from .command import command, complete, refused, snapshot
from .harness import Harness, appeared, leaves, until, wait

FIELDS = """
data.num_examples=128 data.shape=(2,) corruption.measurements=1 denoiser.preconditioning=edm network.features=(8,)
network.embedding=8 rounds=2 m_step.steps=20 m_step.batch_size=32 m_step.updates_per_dispatch=5 m_step.optimizer=sgd
m_step.clip_norm=0.0 m_step.learning_rate=0.01 checkpoint.every_steps=5 e_step.batch_size=32 e_step.shard_size=32
e_step.steps=3 start.iterations=2 start.rank=2 eval.metrics=('sliced_wasserstein',)
"""
"""SGD shows a wrong scale of gradients, which Adam would hide."""


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    flags = ["--config=manifold:quick", *(f"--config.{field}" for field in FIELDS.split())]
    return Harness(tmp_path_factory.mktemp("hosts"), flags, devices=1)


def begin(harness: Harness, workdir: Path, *extra: str) -> list[subprocess.Popen[str]]:
    """Two processes of one run, that meet at a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        together = (f"--coordinator=127.0.0.1:{probe.getsockname()[1]}", "--num_processes=2")
    return [harness.start(workdir, *together, f"--process_id={number}", *extra) for number in range(2)]


def end(processes: list[subprocess.Popen[str]], code: int = 0) -> list[str]:
    outputs = [wait(process) for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [code, code], (codes, outputs)
    return outputs


def assert_close(workdir: Path, expected: Path, number: int) -> None:
    """Parameters and reconstructions to round-off, for which all noise must be the same, and what was logged."""
    places = (workdir, expected)
    draws = [np.asarray(ReconstructionStore(w / "reconstructions").round(number).open()) for w in places]
    np.testing.assert_allclose(*draws, atol=2e-3)
    found, wanted = (dict(leaves(checkpoints.load(Workdir(w).last_round()))) for w in places)
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        np.testing.assert_allclose(found[name], leaf, rtol=2e-3, atol=2e-4, err_msg=name)
    records = [[r for r in Workdir(w).records() if r["kind"] == "round"] for w in places]
    assert [r["round"] for r in records[0]] == [r["round"] for r in records[1]] == list(range(number + 1))
    assert records[0][-1]["loss"] == pytest.approx(records[1][-1]["loss"], rel=1e-3)


@pytest.fixture(scope="module")
def alone(harness):
    harness.finish(harness.root / "alone")
    return harness.root / "alone"


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
@pytest.mark.parametrize("way", ["pmap", "jit"])
def test_processes_and_devices_agree_with_one(harness, alone, way):
    """2 processes x 1 device and 1 process x 2 (this one) give what 1 x 1 gives."""
    several, devices = harness.root / f"processes_{way}", harness.root / f"devices_{way}"
    end(begin(harness, several, f"--config.parallel={way}"))
    complete(*harness.flags, f"--workdir={devices}", f"--config.parallel={way}")
    for workdir in (several, devices):
        assert_close(workdir, alone, 2)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two_from_inside_a_round_and_back(harness, alone):
    workdir = harness.root / "relayed"
    moment = appeared(workdir, "latest/round_00001_update_000000010.checksums.json")
    ended = harness.kill(workdir, moment, signal.SIGTERM)
    assert ended.code == 143, ended.output
    moment, processes = appeared(workdir, "latest/round_00002_update_000000010.checksums.json"), begin(harness, workdir)
    until(moment, processes[0])
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
    moment, processes = appeared(workdir, "latest/round_00001_update_000000010.checksums.json"), begin(harness, workdir)
    until(moment, processes[0])
    processes[victim].kill()
    survivor = processes[1 - victim]
    output = wait(survivor, 60)
    wait(processes[victim])
    assert survivor.returncode != 0, output
    outputs = end(begin(harness, workdir))
    assert "continuing round" in outputs[0]
    assert_close(workdir, alone, 2)


@pytest.mark.slow
def test_a_mistake_ends_all_processes(harness, tmp_path):
    workdir = tmp_path / "run"
    harness.finish(workdir, "--config.rounds=0")
    before = snapshot(workdir)
    processes = begin(harness, workdir, "--config.rounds=0", "--config.m_step.learning_rate=0.5")
    outputs = [wait(process, 60) for process in processes]
    assert all(process.returncode != 0 for process in processes), outputs
    assert any("m_step.learning_rate" in output for output in outputs) and snapshot(workdir) == before


@pytest.mark.parametrize("flags", ["--coordinator=nowhere", "--coordinator=a:x", "--coordinator=a:1 --process_id=2"])
def test_addresses_that_cannot_be_are_refused(tmp_path, flags):
    word = flags.split()[-1].partition("=")[0]
    refused(command("--config=manifold", f"--workdir={tmp_path / 'run'}", "--num_processes=2", *flags.split()), word)
    assert not list(tmp_path.iterdir())
