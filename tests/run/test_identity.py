"""A run knows its data: a changed file is refused, a moved one is found or named."""

import json
import shutil

import numpy as np
import pytest
from faults.command import command, refused, snapshot

from diffem_jax.run.identity import fingerprint
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import Observation

SMALL = [
    "m_step.steps=1", "m_step.batch_size=8", "start.iterations=1", "start.rank=2", "e_step.steps=2", "e_step.draws=1",
]  # fmt: skip
SMALL += ["network.features=(8,)", "rounds=1", "eval.metrics=()", "eval.posterior_draws=2", "eval.posterior_examples=4"]


def write(path, seed, count=16):
    rng = np.random.default_rng(seed)
    mask = (rng.random((count, 4, 4, 1)) > 0.4).astype(np.float32)
    np.savez(path, y=(mask * (1 + 0.3 * rng.normal(size=mask.shape))).astype(np.float32), mask=mask)


def train(folder, *fields, data="obs.npz"):
    flags = [f"--config.{field}" for field in (*SMALL, f"data.path={folder / data}", *fields)]
    return command("--config=own_data", f"--workdir={folder / 'run'}", *flags)


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


@pytest.mark.parametrize("count", [16, 12])
def test_a_changed_file_is_refused_and_nothing_is_touched(run, count):
    write(run / "obs.npz", 1, count)
    before = snapshot(run)
    for fields in ((), ("rounds=2",)):
        refused(train(run, *fields), "obs.npz", "other observations", "16 then", f"{count} now", "--workdir")
    refused(command("--mode=evaluate", f"--workdir={run / 'run'}"), "other observations")
    assert snapshot(run) == before


def test_a_moved_file_is_named_by_its_field(run):
    (run / "obs.npz").rename(run / "moved.npz")
    evaluate = ["--mode=evaluate", f"--workdir={run / 'run'}"]
    refused(command(*evaluate), "obs.npz", "--config.data.path=FILE")
    write(run / "other.npz", 1)
    refused(command(*evaluate, f"--config.data.path={run / 'other.npz'}"), "other.npz", "other observations")
    assert command(*evaluate, f"--config.data.path={run / 'moved.npz'}").code == 0
    for mode in (
        ["--mode=report"],
        ["--mode=sample", f"--observations={run / 'moved.npz'}", f"--output={run / 'o.npz'}"],
    ):
        assert command(*mode, f"--workdir={run / 'run'}", f"--config.data.path={run / 'moved.npz'}").code == 0
    assert train(run, data="moved.npz").code == 0, "the same data under another name go on"
    assert json.loads((run / "run" / "config.json").read_text())["data.path"] == "../moved.npz"


def test_the_fingerprint_is_of_values_not_of_files():
    y = np.arange(24, dtype=np.float32).reshape(4, 6)
    one = fingerprint(Observation(y, np.ones((4, 6), np.float32)))
    assert one == fingerprint(Observation(y.copy(), np.ones((4, 6), np.float32)))
    changed = y.copy()
    changed[3, 5] += 1
    others = [
        Observation(changed, np.ones((4, 6), np.float32)),
        Observation(y, ()),
        Observation(y[:3], np.ones((3, 6), np.float32)),
    ]
    assert len({one, *map(fingerprint, others)}) == 4
