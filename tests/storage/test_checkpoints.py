"""Checkpoints: whole or not at all, damage found and set aside, nothing executed, nobody else's files touched."""

import contextlib
import errno
import json
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.errors import UserError
from diffem_jax.storage import checkpoints
from diffem_jax.storage.files import digests

TREE = {"w": np.arange(600, dtype=np.float32).reshape(20, 30), "nested": {"step": np.asarray(7, np.int32)}}


def _tree(value):
    return jax.tree.map(lambda leaf: np.asarray(leaf + np.asarray(value, leaf.dtype)), TREE)


@pytest.fixture
def folder(tmp_path):
    for number in (1, 2, 3):
        checkpoints.save(tmp_path / f"round_{number:05d}", _tree(number), {"round": number, "loss": 0.1 + number})
    return tmp_path


def _same(a, b):
    assert jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y) and x.dtype == y.dtype, a, b))


def _largest(path):
    return max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _flip(path):
    file = _largest(path)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def test_what_is_saved_comes_back(folder):
    path = checkpoints.latest(folder)
    assert path is not None and path.name == "round_00003"
    _same(checkpoints.load(path), _tree(3))
    _same(checkpoints.load(path, jax.tree.map(jnp.asarray, TREE)), _tree(3))
    assert checkpoints.metadata(path) == {"round": 3, "loss": 3.1}
    checkpoints.save(path, _tree(9), {"round": 3})
    _same(checkpoints.load(path), _tree(9))


DAMAGES = {
    "one bit": _flip,
    "cut off": lambda p: _largest(p).write_bytes(_largest(p).read_bytes()[:-1]),
    "emptied": lambda p: _largest(p).write_bytes(b""),
    "a file gone": lambda p: _largest(p).unlink(),
    "never finished": lambda p: (p.parent / f"{p.name}.checksums.json").unlink(),
    "garbled checksums": lambda p: (p.parent / f"{p.name}.checksums.json").write_text("{"),
    "checksums of another kind": lambda p: (p.parent / f"{p.name}.checksums.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_one_before_is_used(folder, damage):
    newest = folder / "round_00003"
    DAMAGES[damage](newest)
    with pytest.raises(UserError, match="round_00003"):
        checkpoints.load(newest)
    told = []
    assert checkpoints.latest(folder, told.append) == folder / "round_00002"
    assert len(told) == 1 and "round_00003" in told[0] and "round_00003.corrupt" in told[0]
    assert (folder / "round_00003.corrupt").is_dir() and not newest.exists()
    assert checkpoints.latest(folder, told.append) == folder / "round_00002" and len(told) == 1
    _same(checkpoints.load(folder / "round_00002"), _tree(2))


def test_two_damaged_ones_of_one_name_are_both_kept(folder):
    for _ in range(2):
        checkpoints.save(folder / "round_00003", _tree(3), {"round": 3})
        _flip(folder / "round_00003")
        checkpoints.latest(folder, lambda line: None)
    assert {p.name for p in folder.glob("*.corrupt")} == {"round_00003.corrupt", "round_00003.1.corrupt"}


def test_what_a_killed_save_left_is_swept_by_the_next_and_files_of_others_are_left_alone(folder):
    left, others = folder / "round_00004.orbax-checkpoint-tmp", ("notes", "round_3_backup", "mine.orbax-checkpoint-tmp")
    for name in (*others, left.name):
        (folder / name).mkdir()
    (folder / "round_00009").write_text("a file, not a folder")
    assert checkpoints.latest(folder) == folder / "round_00003"
    checkpoints.save(folder / "round_00004", _tree(4), {"round": 4})
    assert not left.exists() and all((folder / name).exists() for name in (*others, "round_00009"))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), ValueError("RESOURCE_EXHAUSTED: No space")])
def test_a_full_disk_is_a_user_error_and_leaves_the_earlier_ones_whole(folder, monkeypatch, error):
    def full(path, *args, **kwargs):
        path.with_name(path.name + ".orbax-checkpoint-tmp").mkdir()
        raise error

    monkeypatch.setattr(checkpoints.ocp, "save_checkpointables", full)
    with pytest.raises(UserError, match=r"round_00004.*[nN]o space.*earlier checkpoints are whole"):
        checkpoints.save(folder / "round_00004", _tree(4), {"round": 4})
    assert checkpoints.latest(folder) == folder / "round_00003" and not list(folder.glob("round_00004*"))


def test_a_checkpoint_of_another_network_or_none_is_refused(folder):
    for like in (TREE | {"w": np.zeros((3, 3))}, {"w": TREE["w"]}, TREE | {"b": np.zeros(3)}):
        with pytest.raises(UserError, match="round_00003"):
            checkpoints.load(folder / "round_00003", like)
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoints.metadata(folder / "round_00004")


def test_nothing_in_a_checkpoint_is_executed(folder, tmp_path):
    """Even where someone gives the planted file the right checksum."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    path, record = folder / "round_00003", folder / "round_00003.checksums.json"
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        whole, sums = file.read_bytes(), record.read_text()
        file.write_bytes(pickle.dumps(Evil()))
        record.write_text(json.dumps(json.loads(sums) | {"files": digests(path)}))
        with contextlib.suppress(Exception):
            checkpoints.load(path)
        assert not (tmp_path / "executed").exists(), file
        file.write_bytes(whole)
        record.write_text(sums)
