"""Several draws an observation in each round: which row is of which observation, and what trains on them."""

import numpy as np
import pytest
from faults.command import command, refused
from faults.harness import arguments

from diffem_jax.build.problem import load_problem, stored_config
from diffem_jax.run import m_step
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir

COUNT, DRAWS = 200, 3


def rows(workdir, number):
    return np.asarray(ReconstructionStore(workdir / "reconstructions").round(number).open())


def run(workdir, *more, **changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReconstructionStore, "drop_older", lambda self, *_: [])
        ended = command(*arguments(**changes), *more, f"--workdir={workdir}")
    assert ended.code == 0, ended
    return workdir


@pytest.fixture(scope="module")
def asked():
    """The rows that the updates of ``several`` have asked for."""
    return set()


@pytest.fixture(scope="module")
def several(tmp_path_factory, asked):
    original = m_step.training_rows

    def noted(*arguments):
        count, read = original(*arguments)
        return count, lambda indices: asked.update(map(int, indices)) or read(indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m_step, "training_rows", noted)
        return run(tmp_path_factory.mktemp("draws") / "several", e_step__draws=DRAWS)


def test_row_s_n_plus_i_is_draw_s_of_observation_i(several):
    observed = load_problem(stored_config(Workdir(several))).observations
    seen = np.broadcast_to(np.asarray(observed.operator) > 0, observed.y.shape)
    for number in range(3):
        x = rows(several, number)
        assert len(x) == DRAWS * COUNT
        draws = x.reshape(DRAWS, COUNT, *x.shape[1:])
        # Noise of 0.01: every draw keeps what its own observation saw, and no two agree on what it did not.
        assert np.abs(np.where(seen, draws - observed.y, 0)).max() < 0.1
        for a, b in ((0, 1), (1, 2), (0, 2)):
            assert (np.abs(draws[a] - draws[b]).max(axis=(1, 2, 3)) > 0.1).all()


def test_the_first_rows_are_those_of_one_draw(several, tmp_path):
    one = run(tmp_path / "one", rounds=0)
    np.testing.assert_array_equal(rows(several, 0)[:COUNT], rows(one, 0))


def test_updates_train_on_all_of_them(several, asked):
    assert asked == set(range(DRAWS * COUNT))


def test_a_warm_start_takes_turns_where_there_are_fewer_draws(several, tmp_path):
    more = run(tmp_path / "more", f"--config.start.checkpoint={several}", e_step__draws=2 * DRAWS, rounds=0)
    last = rows(several, 2)
    np.testing.assert_array_equal(rows(more, 0), np.concatenate([last, last]))
    fewer = run(tmp_path / "fewer", f"--config.start.checkpoint={several}", rounds=0)
    np.testing.assert_array_equal(rows(fewer, 0), last[:COUNT])


def test_a_file_that_has_shrunk_is_no_second_draw(tmp_path):
    """Half of the rows are other observations, not half of the draws."""
    x = np.random.default_rng(0).normal(size=(128, 8, 8, 1)).astype(np.float32)
    mask = (np.random.default_rng(1).random((128, 8, 8, 1)) < 0.5).astype(np.uint8)
    fields = [a for a in arguments(rounds=0, eval__metrics="()")[1:] if "num_examples" not in a]
    flags = ["--config=own_data", f"--config.data.path={tmp_path / 'obs.npz'}", *fields]
    np.savez(tmp_path / "obs.npz", y=x * mask, mask=mask)
    ended = command(*flags, f"--workdir={tmp_path / 'before'}")
    assert ended.code == 0, ended
    np.savez(tmp_path / "obs.npz", y=(x * mask)[64:], mask=mask[64:])
    after = command(*flags, f"--config.start.checkpoint={tmp_path / 'before'}", f"--workdir={tmp_path / 'after'}")
    refused(after, "config.start.checkpoint", "128 reconstructions", "64 observations")


@pytest.mark.parametrize("changes", [{"e_step__draws": 0}, {"e_step__draws": 2, "method": "oracle"}])
def test_what_makes_no_sense_is_refused(tmp_path, changes):
    refused(command(*arguments(**changes), f"--workdir={tmp_path / 'run'}"), "config.e_step.draws", "expected")
