"""What stops a run or sends it back: draws and losses that are not finite, a reader that fails."""

import errno
import re
import shutil
import signal

import numpy as np
import pytest
from faults import broken
from faults.command import command, refused
from faults.harness import arguments

from diffem_jax import em
from diffem_jax.data.store import RowReader
from diffem_jax.guards import NonFinite
from diffem_jax.rounds import Run
from diffem_jax.workdir import Workdir

TINY = arguments(
    e_step__batch_size=100, eval__metrics="()", rounds=1, m_step__steps=20, denoiser__preconditioning="edm"
)
BROKEN = "--config.e_step.sampler=faults.broken:sampler"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose draws are NaN, then gone back, then whole; and what the two commands said."""
    workdir = tmp_path_factory.mktemp("recovery") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(broken.WORKDIR, str(workdir))
        first = command(*TINY, BROKEN, f"--workdir={workdir}")
        aside = (workdir / "rounds" / "round_00001.corrupt").is_dir()
        second = command(*TINY, BROKEN, f"--workdir={workdir}", "--config.recover=1")
    return workdir, first, aside, second


@pytest.mark.slow
def test_draws_that_are_not_finite_stop_the_run_with_round_step_level_and_checkpoint(run):
    workdir, first, aside, _ = run
    refused(
        first, "E-step 1", "step 20 of the run", "200 draws are NaN" if "200 of 200" in first.err else "draws are NaN"
    )
    refused(first, "last good checkpoint", str(workdir / "start" / "fit"), "learning_rate", "recover")
    level = float(re.search(r"at noise level ([0-9.e+-]+) \(step", first.err).group(1))
    # The grid's last level above the sampler's threshold.
    assert broken.LEVEL <= level < 20 * broken.LEVEL
    assert aside


@pytest.mark.slow
def test_draws_that_are_not_finite_are_recovered_from(run):
    workdir, _, _, second = run
    assert second.code == 0, second
    assert "going back" in second.out and "learning rate times 0.5" in second.out
    records = Workdir(workdir).records()
    recovery = next(r for r in records if r["kind"] == "recovery")
    assert recovery["round"] == 1 and recovery["attempt"] == 1 and "noise level" in recovery["reason"]
    assert [r["round"] for r in records if r["kind"] == "round"] == [0, 1]


def test_as_many_attempts_as_config_recover_says_each_with_half_the_rate(tmp_path, monkeypatch):
    rates = []

    def rounds(self):
        rates.append(self.setup.config.m_step.learning_rate)
        raise NonFinite("M-step 1: the loss is nan", 1)

    monkeypatch.setattr(Run, "rounds", rounds)
    workdir = tmp_path / "run"
    always = [*TINY, "--config.m_step.learning_rate=0.01", "--config.recover=2", f"--workdir={workdir}"]
    refused(command(*always), "the loss is nan", str(workdir / "start" / "fit"), "learning_rate")
    assert rates == [0.01, 0.005, 0.0025]
    (recovery,) = (r for r in Workdir(workdir).records() if r["kind"] == "recovery")
    assert recovery["attempt"] == 2
    # The attempts are the run's, not the process's.
    refused(command(*always), "the loss is nan")
    assert rates[3:] == [0.0025]


class Slow(BaseException):
    pass


@pytest.mark.slow
def test_a_reader_that_fails_raises_in_the_main_loop_at_once(run, tmp_path, monkeypatch):
    """The reader of the M-step's own rows; no thread swallows it, nothing hangs, and the run goes on once it reads again."""
    workdir = tmp_path / "run"
    shutil.copytree(run[0], workdir)
    monkeypatch.setenv(broken.WORKDIR, str(workdir))
    more = [*TINY, BROKEN, "--config.recover=1", f"--workdir={workdir}", "--config.rounds=2"]
    calls, right = [], RowReader.rows

    def failing(self, indices):
        calls.append(len(indices))
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error", "shard-00001-of-00004.npy")
        return right(self, indices)

    def late(number, frame):
        raise Slow

    monkeypatch.setattr(RowReader, "rows", failing)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    try:
        with pytest.raises(OSError, match="shard-00001"):
            command(*more)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert len(calls) == 2
    monkeypatch.setattr(RowReader, "rows", right)
    assert command(*more).code == 0


def test_the_level_of_a_broken_loss_is_that_of_its_example():
    """Losses are NaN above a level: what is told is the mean of exactly those levels, on one device or several."""
    import jax
    import jax.numpy as jnp
    import optax

    def noise(key):
        return jnp.exp(jax.random.normal(jax.random.split(key)[0]))

    def loss(params, key, x):
        level = noise(key)
        return jnp.where(level > 1.5, jnp.nan, level * params + x)

    optimizer = optax.sgd(0.0)
    keys = em.example_keys(jax.random.fold_in(jax.random.key(0), 0), jnp.arange(64))
    levels = np.asarray(jax.vmap(noise)(keys))
    high = levels[levels > 1.5]
    assert 5 < len(high) < 40
    step = jax.jit(em.make_m_step(loss, optimizer, ema_decay=0.9, noise=noise, accumulate=4))
    state = em.make_state(jnp.ones(()), optimizer)
    _, info = step(jax.random.key(0), state, jnp.zeros((1, 64)), jnp.arange(64)[None])
    assert float(info["broken"][0]) == pytest.approx(len(high) / 64, rel=1e-5)
    assert float(info["noise"][0]) == pytest.approx(np.exp(np.log(high).mean()), rel=1e-4)
    # All finite: the levels by their part in the loss.
    step = jax.jit(em.make_m_step(lambda p, k, x: noise(k) * p + x, optimizer, ema_decay=0.9, noise=noise))
    _, info = step(jax.random.key(0), state, jnp.zeros((1, 64)), jnp.arange(64)[None])
    assert float(info["broken"][0]) == 0
    assert float(info["noise"][0]) == pytest.approx(np.exp(np.average(np.log(levels), weights=levels)), rel=1e-4)
