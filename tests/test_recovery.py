"""What stops a run or sends it back: draws and losses that are not finite, a reader that fails."""

import errno
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults import broken
from faults.command import command, refused
from faults.harness import arguments

from diffem_jax import checkpoints, em, starts
from diffem_jax.data import index_stream
from diffem_jax.data.store import RowReader
from diffem_jax.guards import NonFinite
from diffem_jax.parallel import make_parallel
from diffem_jax.rounds import Run
from diffem_jax.updates import Course, Updates
from diffem_jax.updates import run as run_updates
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


@pytest.mark.parametrize("recover", [0, 2])
def test_a_start_whose_draws_fail_is_not_tried_again(tmp_path, monkeypatch, recover):
    """No learning rate mends it, and the next attempt would draw the same."""
    tried = []

    def rounds(self):
        tried.append(1)
        raise NonFinite("E-step 0: 3 of 200 draws are NaN", 0, draws=True)

    monkeypatch.setattr(Run, "rounds", rounds)
    ended = command(*TINY, f"--config.recover={recover}", f"--workdir={tmp_path / 'run'}")
    refused(ended, "E-step 0", "config.start", "variance_floor")
    assert "learning_rate" not in ended.err and tried == [1]


def test_a_start_that_is_not_finite_is_not_kept(tmp_path, monkeypatch):
    whole = starts.STARTS["gaussian"]

    def broken(*arguments, **options):
        return jax.tree.map(lambda a: a * np.nan, whole(*arguments, **options))

    monkeypatch.setitem(starts.STARTS, "gaussian", broken)
    refused(command(*TINY, f"--workdir={tmp_path / 'run'}"), "config.start.name", "'gaussian'", "variance_floor")
    assert not (tmp_path / "run" / "start" / "fit").exists()


def test_the_last_good_round_is_kept_until_the_next_has_drawn(tmp_path, monkeypatch):
    finish = Run.finish_round

    def failing(self, number, *rest):
        if number == 2:
            raise NonFinite("E-step 2: draws are NaN", 2, draws=True)
        finish(self, number, *rest)

    monkeypatch.setattr(Run, "finish_round", failing)
    workdir = tmp_path / "run"
    flags = [*TINY, "--config.rounds=2", "--config.checkpoint.keep_rounds=1", f"--workdir={workdir}"]
    refused(command(*flags), "E-step 2", f"last good checkpoint is {workdir / 'rounds' / 'round_00001'}")
    monkeypatch.undo()
    assert command(*flags).code == 0
    assert [p.name for p in checkpoints.written(workdir / "rounds")] == ["round_00002"]


def test_a_round_that_goes_on_with_other_dispatches_has_as_many_updates(monkeypatch):
    """24 updates, 10 of them done, 8 a dispatch: 14 more, no more."""
    optimizer, parallel = optax.sgd(0.1), make_parallel("jit", jax.devices()[:1])
    step = parallel.map_m_step(em.make_m_step(lambda p, k, x: p * jnp.sum(x), optimizer, ema_decay=0.9))
    told = []
    updates = Updates(
        label="M-step 1",
        number=1,
        first_step=0,
        steps=24,
        dispatch=8,
        batch_size=4,
        every=10**6,
        m_step=step,
        read=lambda indices: np.ones((len(indices), 3), np.float32),
        attach=lambda rows, mine: rows,
        batches=index_stream(0, 1, 100, 4, 10),
        save=lambda state, course: None,
        stop=lambda: 0,
        note=lambda done, losses: told.append((done, len(losses))),
    )
    state = em.make_state(jnp.ones(()), optimizer)
    state, course = run_updates(updates, parallel, jax.random.key(0), state, Course(10))
    assert course.done == 24 and int(state.step) == 14 and told[-1] == (24, 2)
    assert sum(count for _, count in told) == 14


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
    """Losses are NaN above a level: what is told is the mean of exactly those levels, of the first update that has any."""

    def noise(key):
        return jnp.exp(jax.random.normal(jax.random.split(key)[0]))

    def breaking(above):
        def loss(params, key, x):
            level = noise(key)
            return jnp.where(level > above, jnp.nan, level * params + x)

        return loss

    def told(loss, updates, **options):
        step = jax.jit(em.make_m_step(loss, optimizer, ema_decay=0.9, noise=noise, **options))
        slots = jnp.tile(jnp.arange(64), (updates, 1))
        _, info = step(jax.random.key(2), em.make_state(jnp.ones(()), optimizer), jnp.zeros((updates, 64)), slots)
        return float(info["broken"]), float(info["noise"]), np.isfinite(np.asarray(info["loss"]))

    optimizer = optax.sgd(0.0)
    drawn = [em.example_keys(jax.random.fold_in(jax.random.key(2), i), jnp.arange(64)) for i in range(8)]
    levels = [np.asarray(jax.vmap(noise)(keys)) for keys in drawn]
    high = levels[0][levels[0] > 1.5]
    assert 5 < len(high) < 40
    broken, level, finite = told(breaking(1.5), 1, accumulate=4)
    assert broken == pytest.approx(len(high) / 64, rel=1e-5)
    assert level == pytest.approx(np.exp(np.log(high).mean()), rel=1e-4)
    assert not finite[0]
    # The first updates are finite: what is told is of the first that is not.
    above = np.float32(1.001) * max(levels[0].max(), levels[1].max())
    first = next(i for i, drawn in enumerate(levels) if drawn.max() > above)
    broken, level, finite = told(breaking(above), 8)
    assert first > 1
    assert finite[:first].all()
    assert not finite[first]
    assert broken == pytest.approx((levels[first] > above).sum() / 64, rel=1e-5)
    assert level == pytest.approx(np.exp(np.log(levels[first][levels[first] > above]).mean()), rel=1e-4)
    # All finite: the levels of the first by their part in the loss.
    broken, level, _ = told(lambda params, key, x: noise(key) * params + x, 2)
    assert broken == 0
    assert level == pytest.approx(np.exp(np.average(np.log(levels[0]), weights=levels[0])), rel=1e-4)
