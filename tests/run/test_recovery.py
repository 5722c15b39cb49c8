"""What stops a run or sends it back: draws and losses that are not finite, a reader that fails."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults import broken
from faults.command import command, refused
from faults.harness import arguments

from diffem_jax import em
from diffem_jax.errors import NonFinite
from diffem_jax.gaussians import starts
from diffem_jax.parallel import make_parallel
from diffem_jax.run import rounds, train
from diffem_jax.run.m_step import Training, row_batches
from diffem_jax.run.m_step import train as train_updates
from diffem_jax.run.termination import StopRequest
from diffem_jax.storage import checkpoints
from diffem_jax.storage.workdir import Workdir

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
        patch.delenv(broken.WORKDIR)
        second = command(*TINY, BROKEN, f"--workdir={workdir}")
    return workdir, first, aside, second


@pytest.mark.slow
def test_draws_that_are_not_finite_stop_the_run_with_round_and_checkpoint(run):
    workdir, first, aside, _ = run
    refused(first, "E-step 1", "draws are NaN", "last good checkpoint", str(workdir / "start" / "fit"), "learning_rate")
    assert aside


@pytest.mark.slow
def test_the_round_that_failed_is_trained_again_by_the_same_command(run):
    workdir, _, _, second = run
    assert second.code == 0, second
    assert [r["round"] for r in Workdir(workdir).records() if r["kind"] == "round"] == [0, 1]


def test_start_draws_that_fail_name_the_start(tmp_path, monkeypatch):
    """A lower learning rate would not fix it."""

    def run_rounds(run):
        raise NonFinite("E-step 0: 3 of 200 draws are NaN", 0)

    monkeypatch.setattr(train, "run_rounds", run_rounds)
    ended = command(*TINY, f"--workdir={tmp_path / 'run'}")
    refused(ended, "E-step 0", "config.start", "variance_floor")
    assert "learning_rate" not in ended.err


def test_a_start_that_is_not_finite_is_not_kept(tmp_path, monkeypatch):
    whole = starts.STARTS["gaussian"]

    def broken(*arguments, **options):
        return jax.tree.map(lambda a: a * np.nan, whole(*arguments, **options))

    monkeypatch.setitem(starts.STARTS, "gaussian", broken)
    refused(command(*TINY, f"--workdir={tmp_path / 'run'}"), "config.start.name", "'gaussian'", "variance_floor")
    assert not (tmp_path / "run" / "start" / "fit").exists()


def test_the_last_good_round_is_kept_until_the_next_has_drawn(tmp_path, monkeypatch):
    finish = rounds.finish_round

    def failing(run, number, state):
        if number == 2:
            raise NonFinite("E-step 2: draws are NaN", 2)
        finish(run, number, state)

    monkeypatch.setattr(rounds, "finish_round", failing)
    workdir = tmp_path / "run"
    flags = [*TINY, "--config.rounds=2", "--config.checkpoint.keep_rounds=1", f"--workdir={workdir}"]
    refused(command(*flags), "E-step 2", f"last good checkpoint is {workdir / 'rounds' / 'round_00001'}")
    monkeypatch.undo()
    assert command(*flags).code == 0
    assert [p.name for p in checkpoints.written(workdir / "rounds")] == ["round_00002"]


def test_a_round_that_goes_on_with_other_dispatches_has_as_many_updates(tmp_path):
    """24 updates, 10 of them done, 8 a dispatch: 14 more, no more."""
    optimizer, parallel = optax.sgd(0.1), make_parallel("jit", jax.devices()[:1])
    step = parallel.map_m_step(em.make_m_step(lambda p, k, x: p * jnp.sum(x), optimizer, ema_decay=0.9))
    told = []
    state = em.make_state(jnp.ones(()), optimizer)
    path = tmp_path / "round_00001_update_000000010"
    checkpoints.save(path, state._asdict(), {"round": 1, "done": 10, "loss_sum": 0.0, "loss_count": 0})
    training = Training(
        label="M-step 1",
        number=1,
        first_step=0,
        steps=24,
        dispatch=8,
        batch_size=4,
        every=10**6,
        m_step=step,
        batches=row_batches(0, 1, 100, 4, lambda indices: np.ones((len(indices), 3), np.float32)),
        folder=tmp_path,
        record={"round": 1},
        note=lambda done, losses: told.append((done, len(losses))),
    )
    state, _ = train_updates(training, parallel, jax.random.key(0), lambda: state, StopRequest(), told.append)
    said = told.pop(0)
    assert "from update 10 of 24" in said
    assert int(state.step) == 14 and told[-1] == (24, 2)
    assert sum(count for _, count in told) == 14
