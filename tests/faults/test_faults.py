"""Real processes that are killed, stopped, starved of disk or handed damaged files: the same command ends with the same bits.

``make soak`` is the long version: it kills 30 times at random moments.
"""

import os
import random
import signal
import time

import pytest

from diffem_jax.storage import checkpoints
from diffem_jax.storage.workdir import Workdir

from .command import command, complete, refused
from .harness import Harness, after, appeared, arguments, assert_same, copy, leaves, result, until, wait


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return Harness(tmp_path_factory.mktemp("faults"), arguments(eval__metrics="()"))


def finish(harness, workdir):
    """What the command says that runs to its end in this process, where it has the same bits and starts faster."""
    ended = complete(*harness.flags, f"--workdir={workdir}")
    return ended.out + ended.err


@pytest.fixture(scope="module")
def whole(harness):
    finish(harness, harness.root / "whole")
    return harness.root / "whole"


@pytest.fixture(scope="module")
def expected(whole):
    return result(whole)


def test_killed_in_an_e_step_and_a_checkpoint(harness, expected):
    workdir = harness.root / "killed"
    first = harness.start(workdir)
    until(appeared(workdir, "reconstructions/round_00000/shard-*.npy"), first)
    first.send_signal(signal.SIGSTOP)
    refused(command(*harness.flags, f"--workdir={workdir}"), "in use by", f"process {first.pid} ")
    first.kill()
    wait(first)
    assert first.returncode == -signal.SIGKILL and not (workdir / "rounds").exists()
    # The dead process's lock does not block.
    ended = harness.kill(workdir, appeared(workdir, "latest/round_00001_update_000000020*.orbax-checkpoint-tmp*"))
    assert ended.alive and not (workdir / "rounds" / "round_00001").exists(), ended.output
    assert "M-step 1: continuing from update" in finish(harness, workdir)
    assert_same(workdir, expected)


def test_a_damaged_newest_round_and_shard_are_set_aside_and_made_again(harness, whole, expected):
    workdir = copy(whole, harness.root / "damaged")
    files = (path for path in (workdir / "rounds" / "round_00002").rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-7])
    shard = workdir / "reconstructions" / "round_00002" / "shard-00001-of-00004.npy"
    shard.write_bytes(shard.read_bytes()[:-100])
    manifest = workdir / "reconstructions" / "round_00002" / "manifest.json"
    manifest.write_text(manifest.read_text()[:50])
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "round", "rou')
    (workdir / "rounds" / "round_00007.orbax-checkpoint-tmp").mkdir()
    output = finish(harness, workdir)
    assert "rounds/round_00002: " in output and "missing or damaged; set aside as round_00002.corrupt" in output
    assert f"{shard}: cut off or garbled" in output
    assert (workdir / "rounds" / "round_00002.corrupt").is_dir() and len(list(shard.parent.glob("*.corrupt"))) == 2
    assert_same(workdir, expected)


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
    ended = harness.kill(workdir, moment, number, *PRIOR)
    assert ended.alive and ended.code == (143 if number == signal.SIGTERM else -number), ended.output
    assert not (workdir / "prior" / "final").exists()
    output = harness.finish(workdir, *PRIOR)
    assert "prior: continuing from update" in output and prior_of(workdir) == expected_prior


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


PATTERNS = """
start/fit* reconstructions/round_00000/shard-*.npy reconstructions/round_0000*/shard-00001-of-00004.npy
reconstructions/round_0000*/.shard-* latest/round_0000*_update_*.checksums.json latest/*.orbax-checkpoint-tmp*
rounds/*.orbax-checkpoint-tmp* rounds/round_0000*.checksums.json samples/round_0000*.png
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """As often as DIFFEM_KILLS says; the bits are also those of a run without cached programs."""
    flags, kills, rng = arguments(m_step__steps=200, checkpoint__every_steps=20), 0, random.Random(0)
    Harness(tmp_path, flags, cache=False).finish(tmp_path / "whole")
    harness, expected = Harness(tmp_path, flags), result(tmp_path / "whole")
    began = time.monotonic()
    harness.finish(tmp_path / "cached")
    length = time.monotonic() - began
    assert_same(tmp_path / "cached", expected)
    while kills < int(os.environ.get("DIFFEM_KILLS", "4")):
        workdir, alive = tmp_path / f"after_{kills}", True
        while alive:
            pattern = rng.choice((None, *PATTERNS.split()))
            moment = appeared(workdir, pattern) if pattern else after(rng.uniform(0.2, 0.9) * length)
            alive, output, _ = harness.kill(workdir, moment, delay=rng.uniform(0, 0.02))
            kills += alive
            print(f"{kills} kills: {pattern or 'by time'}, {'killed' if alive else 'was done'}")
            assert alive or "done:" in output, output
        assert_same(workdir, expected)
