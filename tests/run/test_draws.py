"""Several draws per observation: which row is of which, and what trains on them; and that a run knows its data."""

import json
import shutil

import numpy as np
import pytest
from faults.command import command, complete, refused, snapshot
from faults.harness import arguments, small

from diffem_jax.build.problem import load_problem, stored_config
from diffem_jax.run import m_step
from diffem_jax.run.identity import fingerprint
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import Observation

pytestmark = pytest.mark.usefixtures("quick")

COUNT, DRAWS = 200, 3


def rows(workdir, number):
    return np.asarray(ReconstructionStore(workdir / "reconstructions").round(number).open())


def ran(workdir, *more, **changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReconstructionStore, "drop_older", lambda self, *_: [])
        complete(*arguments(**changes), *more, f"--workdir={workdir}")
    return workdir


ASKED = set()
"""The rows that the updates of ``several`` have asked for."""


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    original = m_step.training_rows

    def noted(*arguments):
        count, read = original(*arguments)
        return count, lambda indices: ASKED.update(map(int, indices)) or read(indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m_step, "training_rows", noted)
        return ran(tmp_path_factory.mktemp("draws") / "several", e_step__draws=DRAWS)


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
    one = ran(tmp_path / "one", rounds=0)
    np.testing.assert_array_equal(rows(several, 0)[:COUNT], rows(one, 0))


def test_updates_train_on_all_of_them(several):
    assert set(range(DRAWS * COUNT)) == ASKED


def test_a_warm_start_takes_turns_where_there_are_fewer_draws(several, tmp_path):
    more = ran(tmp_path / "more", f"--config.start.checkpoint={several}", e_step__draws=2 * DRAWS, rounds=0)
    last = rows(several, 2)
    np.testing.assert_array_equal(rows(more, 0), np.concatenate([last, last]))
    fewer = ran(tmp_path / "fewer", f"--config.start.checkpoint={several}", rounds=0)
    np.testing.assert_array_equal(rows(fewer, 0), last[:COUNT])


def test_a_file_that_has_shrunk_is_no_second_draw(tmp_path):
    """Half of the rows are other observations, not half of the draws."""
    x = np.random.default_rng(0).normal(size=(128, 8, 8, 1)).astype(np.float32)
    mask = (np.random.default_rng(1).random((128, 8, 8, 1)) < 0.5).astype(np.uint8)
    fields = [a for a in arguments(rounds=0, eval__metrics="()")[1:] if "num_examples" not in a]
    flags = ["--config=own_data", f"--config.data.path={tmp_path / 'obs.npz'}", *fields]
    np.savez(tmp_path / "obs.npz", y=x * mask, mask=mask)
    complete(*flags, f"--workdir={tmp_path / 'before'}")
    np.savez(tmp_path / "obs.npz", y=(x * mask)[64:], mask=mask[64:])
    after = command(*flags, f"--config.start.checkpoint={tmp_path / 'before'}", f"--workdir={tmp_path / 'after'}")
    refused(after, "config.start.checkpoint", "128 reconstructions", "64 observations")


def write(path, seed, count=40):
    rng = np.random.default_rng(seed)
    mask = (rng.random((count, 8, 8, 1)) > 0.4).astype(np.float32)
    np.savez(path, y=(mask * (1 + 0.3 * rng.normal(size=mask.shape))).astype(np.float32), mask=mask)


def train(folder, *fields, data="obs.npz"):
    flags = small(eval__posterior_draws=2, eval__posterior_examples=4, data__path=folder / data)
    return command("--config=own_data", f"--workdir={folder / 'run'}", *flags, *(f"--config.{f}" for f in fields))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    write(folder / "obs.npz", 0)
    assert train(folder).code == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "here")
    return tmp_path / "here"


def test_the_path_is_stored_relative_to_the_folder_beside_it(run):
    stored = json.loads((run / "run" / "config.json").read_text())
    assert stored["data.path"] == "../obs.npz"
    assert Workdir(run / "run").stored_config()["data.path"] == str(run / "obs.npz")


@pytest.mark.parametrize("count", [40, 30])
def test_a_changed_file_is_refused_and_nothing_is_touched(run, count):
    write(run / "obs.npz", 1, count)
    before = snapshot(run)
    for fields in ((), ("rounds=2",)):
        refused(train(run, *fields), "obs.npz", "other observations", "40 then", f"{count} now", "--workdir")
    refused(command("--mode=evaluate", f"--workdir={run / 'run'}"), "other observations")
    assert snapshot(run) == before


def test_a_moved_file_is_named_by_its_field(run):
    (run / "obs.npz").rename(run / "moved.npz")
    evaluate = ["--mode=evaluate", f"--workdir={run / 'run'}"]
    refused(command(*evaluate), "obs.npz", "--config.data.path=FILE")
    write(run / "other.npz", 1)
    refused(command(*evaluate, f"--config.data.path={run / 'other.npz'}"), "other.npz", "other observations")
    complete(*evaluate, f"--config.data.path={run / 'moved.npz'}")
    sample = ["--mode=sample", f"--observations={run / 'moved.npz'}", f"--output={run / 'o.npz'}"]
    for mode in (["--mode=report"], sample):
        complete(*mode, f"--workdir={run / 'run'}", f"--config.data.path={run / 'moved.npz'}")
    assert train(run, data="moved.npz").code == 0, "the same data under another name go on"
    assert json.loads((run / "run" / "config.json").read_text())["data.path"] == "../moved.npz"


def test_the_fingerprint_is_of_values_not_of_files():
    y, mask = np.arange(24, dtype=np.float32).reshape(4, 6), np.ones((4, 6), np.float32)
    changed = y + np.eye(4, 6, dtype=np.float32)
    assert fingerprint(Observation(y, mask)) == fingerprint(Observation(y.copy(), mask))
    different = [Observation(y, mask), Observation(changed, mask), Observation(y, ()), Observation(y[:3], mask[:3])]
    assert len(set(map(fingerprint, different))) == 4
