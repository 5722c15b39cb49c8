"""What stops a run or sends it back: draws and starts that are not finite."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults.command import command, complete, refused
from faults.harness import arguments

from diffem_jax.errors import NonFinite
from diffem_jax.gaussians import starts
from diffem_jax.run import rounds, train
from diffem_jax.samplers import ddpm
from diffem_jax.storage import checkpoints
from diffem_jax.storage.workdir import Workdir

pytestmark = pytest.mark.usefixtures("quick")

TINY = arguments(m_step__steps=20, eval__metrics="()", rounds=1)


class Broken:
    level = 0.0
    """Draws are NaN below it."""


def broken(schedule, data_std=1.0):
    right = ddpm(schedule, data_std)

    def step(key, state, t, s, denoise):
        state, info = right.step(key, state, t, s, denoise)
        alpha, sigma = schedule(s)
        return state._replace(x=jnp.where(sigma / alpha < Broken.level, jnp.nan, state.x)), info

    return right._replace(step=step)


@pytest.mark.slow
def test_draws_that_are_not_finite_stop_the_run_and_the_same_command_trains_the_round_again(tmp_path, monkeypatch):
    monkeypatch.setattr(Broken, "level", 0.5)
    flags = [*TINY, f"--config.e_step.sampler={__name__}:broken", f"--workdir={tmp_path}"]
    good = f"last good checkpoint is {tmp_path / 'start/fit'}"
    refused(command(*flags), "E-step 1", "draws are NaN", good, "learning_rate")
    assert (tmp_path / "rounds" / "round_00001.corrupt").is_dir()
    monkeypatch.undo()
    complete(*flags)
    assert [r["round"] for r in Workdir(tmp_path).records() if r["kind"] == "round"] == [0, 1]


def test_start_draws_that_fail_name_the_start(tmp_path, monkeypatch):
    """A lower learning rate would not fix it."""
    failure = NonFinite("E-step 0: 3 of 200 draws are NaN", 0)
    monkeypatch.setattr(train, "run_rounds", mock.Mock(side_effect=failure))
    ended = command(*TINY, f"--workdir={tmp_path / 'run'}")
    refused(ended, "E-step 0", "config.start", "variance_floor")
    assert "learning_rate" not in ended.err


def test_a_start_that_is_not_finite_is_not_kept(tmp_path, monkeypatch):
    fit = starts.STARTS["gaussian"]
    spoilt = lambda *given, **options: jax.tree.map(lambda a: a * np.nan, fit(*given, **options))  # noqa: E731
    monkeypatch.setitem(starts.STARTS, "gaussian", spoilt)
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
    complete(*flags)
    assert [p.name for p in checkpoints.written(workdir / "rounds")] == ["round_00002"]
