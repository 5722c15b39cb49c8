"""Real processes that are killed, stopped, starved of disk or handed damaged files: the same command ends with the same bits.

``python -m tests.faults.soak --kills 30`` (``make soak``) is the long version.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import time

import pytest

from diffem_jax.storage import checkpoints
from diffem_jax.storage.workdir import Workdir

from .harness import Harness, appeared, arguments, assert_same, copy, leaves, phase, result, wait


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return Harness(tmp_path_factory.mktemp("faults"), arguments())


@pytest.fixture(scope="module")
def whole(harness):
    harness.finish(harness.root / "whole")
    return harness.root / "whole"


@pytest.fixture(scope="module")
def expected(whole):
    return result(whole)


def test_killed_in_an_e_step_an_m_step_and_a_checkpoint(harness, expected):
    workdir = harness.root / "killed"

    began = time.time()
    first = harness.start(workdir)
    shard = appeared(workdir, "reconstructions/round_00000/shard-*.npy")
    while not shard():
        assert first.poll() is None, wait(first)
    first.send_signal(signal.SIGSTOP)
    refusal = harness.finish(workdir, code=2)
    assert "in use by" in refusal and f"process {first.pid} " in refusal
    first.kill()
    output = wait(first)
    assert first.returncode == -signal.SIGKILL and phase(workdir, output, began) == "E-step"
    assert not (workdir / "rounds").exists()

    # The dead process's lock does not block.
    ended = harness.kill(workdir, appeared(workdir, "latest/round_00001_update_000000020.checksums.json"))
    assert ended.phase in ("M-step", "checkpoint"), ended
    assert ended.alive and not (workdir / "rounds" / "round_00001").exists(), ended.output

    ended = harness.kill(workdir, appeared(workdir, "*/round_00002*.orbax-checkpoint-tmp*"))
    assert ended.alive and "M-step 1: continuing from update" in ended.output, ended.output
    assert ended.phase == "checkpoint", ended
    assert not (workdir / "rounds" / "round_00002").exists()

    harness.finish(workdir)
    assert_same(workdir, expected)


@pytest.mark.slow  # each by itself is in tests/run/test_m_step.py and tests/storage/test_checkpoints.py
def test_preempted_then_a_damaged_rolling_checkpoint_then_a_full_disk(harness, expected):
    workdir = harness.root / "preempted"
    moment = appeared(workdir, "latest/round_00001_update_000000020.checksums.json")
    ended = harness.kill(workdir, moment, signal.SIGTERM)
    assert ended.code == 143 and "SIGTERM: saved" in ended.output, ended.output
    rolling = sorted(p for p in (workdir / "latest").iterdir() if p.is_dir())
    assert len(rolling) == 2 and rolling[-1].name > "round_00001_update_000000020"

    _truncate(rolling[-1])
    (workdir / "latest" / "notes").mkdir()
    (workdir / "latest" / "notes" / "mine.txt").write_text("mine")

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, 24_000))

    output = harness.finish(workdir, code=2, before=small_files)
    assert (
        f"{rolling[-1]}: " in output
        and "set aside" in output
        and (workdir / "latest" / f"{rolling[-1].name}.corrupt").is_dir()
    )
    assert f"M-step 1: continuing from update {int(rolling[0].name[-9:])} of" in output
    assert "could not be written" in output and "File too large" in output and "Traceback" not in output, output
    assert rolling[0].is_dir() and not (workdir / "rounds" / "round_00001").exists()

    harness.finish(workdir)
    assert_same(workdir, expected)
    assert (workdir / "latest" / "notes" / "mine.txt").read_text() == "mine"
    assert (workdir / "latest" / f"{rolling[-1].name}.corrupt").is_dir()


def test_a_damaged_newest_round_and_shard_are_set_aside_and_made_again(harness, whole, expected):
    workdir = copy(whole, harness.root / "damaged")
    _garble(workdir / "rounds" / "round_00002")
    shard = workdir / "reconstructions" / "round_00002" / "shard-00001-of-00004.npy"
    shard.write_bytes(shard.read_bytes()[:-100])
    manifest = workdir / "reconstructions" / "round_00002" / "manifest.json"
    manifest.write_text(manifest.read_text()[:50])
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "round", "rou')
    (workdir / "rounds" / "round_00007.orbax-checkpoint-tmp").mkdir()
    planted = harness.root / "executed"
    for folder in (
        workdir / "rounds" / "round_00001",
        workdir / "rounds",
        workdir / "reconstructions",
        workdir / "start",
    ):
        (folder / "state.pkl").write_bytes(pickle.dumps(_Evil(str(planted))))

    output = harness.finish(workdir)

    assert "rounds/round_00002: " in output and "missing or damaged; set aside as round_00002.corrupt" in output
    assert f"{shard}: cut off or garbled" in output
    assert (workdir / "rounds" / "round_00002.corrupt").is_dir() and len(list(shard.parent.glob("*.corrupt"))) == 2
    assert not planted.exists()
    assert_same(workdir, expected)


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def _largest(checkpoint):
    return max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _garble(checkpoint):
    file = _largest(checkpoint)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(bytes(data))


def _truncate(checkpoint):
    file = _largest(checkpoint)
    file.write_bytes(file.read_bytes()[:-7])


# The slow ones: every phase preempted, and the prior killed. A rerun ends with the same bits.

PRIOR = ("--config.prior.steps=60", "--config.prior.sampler_steps=4")


@pytest.fixture(scope="module")
def expected_prior(harness, whole):
    workdir = copy(whole, harness.root / "with_prior")
    harness.finish(workdir, *PRIOR)
    return prior_of(workdir)


def prior_of(workdir):
    folder = Workdir(workdir).prior
    assert [p.name for p in checkpoints.written(folder)] == ["final"]
    return {name: leaf.tobytes() for name, leaf in leaves(checkpoints.load(folder / "final"))}


@pytest.mark.slow
def test_sigterm_during_the_starts_fit_and_during_an_e_step(harness, expected):
    workdir = harness.root / "early"
    ended = harness.kill(workdir, appeared(workdir, "config.json"), signal.SIGTERM, delay=0.5)
    assert ended.code == 143 and "SIGTERM" in ended.output and "Traceback" not in ended.output, ended.output
    assert not list((workdir / "start").glob("fit.checksums.json")), ended.output
    moment = appeared(workdir, "reconstructions/round_00000/shard-00000-of-00004.json")
    ended = harness.kill(workdir, moment, signal.SIGTERM)
    assert ended.code == 143 and "SIGTERM: saved" in ended.output and "Traceback" not in ended.output, ended.output
    whole_ones = list((workdir / "reconstructions" / "round_00000").glob("shard-*.json"))
    assert 1 <= len(whole_ones) < 4 or not (workdir / "rounds").exists()
    harness.finish(workdir)
    assert_same(workdir, expected)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_prior_training_stopped_goes_on_from_its_checkpoint(harness, whole, expected_prior, number):
    workdir = copy(whole, harness.root / f"prior_{number}")
    moment = appeared(workdir, "prior/round_00002_update_000000020.checksums.json")
    ended = harness.kill(workdir, moment, number, extra=PRIOR)
    assert ended.alive and ended.code == (143 if number == signal.SIGTERM else -number), ended.output
    assert not (workdir / "prior" / "final").exists()
    output = harness.finish(workdir, *PRIOR)
    assert "prior: continuing from update" in output
    assert prior_of(workdir) == expected_prior


@pytest.mark.slow
def test_a_stale_prior_is_trained_again(harness, whole, expected_prior):
    """More rounds, or more updates: what it was trained on is noted, and differs. The same command again: nothing."""
    workdir = copy(whole, harness.root / "stale")
    harness.finish(workdir, *PRIOR)
    assert "prior: trained" not in harness.finish(workdir, *PRIOR)
    output = harness.finish(workdir, *PRIOR, "--config.prior.steps=20")
    assert "training it again" in output and prior_of(workdir) != expected_prior
    output = harness.finish(workdir, *PRIOR, "--config.rounds=3")
    assert "is of round 2" in output and "training it again" in output
    assert checkpoints.metadata(workdir / "prior" / "final")["round"] == 3
