"""The store of reconstructions under interruption and damage, and the stream of batch indices."""

import itertools
import os
from unittest import mock

import numpy as np
import pytest

from diffem_jax.errors import UserError
from diffem_jax.storage import rows as storage_rows
from diffem_jax.storage.reconstructions import ReconstructionStore, index_stream

N, SHAPE, SHARD = 23, (3, 2), 7


def _rows(round_, shard):
    return np.stack([np.full(SHAPE, float(i), np.float32) + np.arange(2) / 4 for i in round_.indices(shard)])


def _filled(folder, number=3):
    round_ = ReconstructionStore(folder).create(number, N, SHAPE, SHARD)
    for shard in range(round_.num_shards):
        round_.write_shard(shard, _rows(round_, shard))
    return round_


@pytest.mark.parametrize("in_memory", [True, False])
def test_rows_come_back_by_index_across_shards(tmp_path, monkeypatch, in_memory):
    if not in_memory:
        monkeypatch.setattr(storage_rows, "IN_MEMORY_BYTES", 0)
    round_ = _filled(tmp_path)
    assert (tmp_path / "round_00003" / "shard-00003-of-00004.npy").exists()
    rows = ReconstructionStore(tmp_path).round(3).open()
    index = np.array([22, 0, 7, 6, 22, 13])
    assert rows.shape == (N, *SHAPE) and np.array_equal(rows[index][:, 0, 0], index)
    whole = np.concatenate([_rows(round_, s) for s in range(4)])
    assert np.array_equal(np.asarray(rows), whole) and np.array_equal(rows[5:9], whole[5:9])
    assert np.array_equal(rows[-1], whole[-1])
    with pytest.raises(IndexError):
        rows[np.array([N])]


def test_an_interrupted_round_goes_on_where_it_was(tmp_path):
    store = ReconstructionStore(tmp_path)
    first = store.create(0, N, SHAPE, SHARD)
    for shard in (2, 0):
        first.write_shard(shard, _rows(first, shard))
    again = store.create(0, N, SHAPE, SHARD)
    assert again.done_shards() == ({0, 2}, ()) and not again.is_complete()
    with pytest.raises(ValueError, match="not complete"):
        again.open()
    for shard in (1, 3):
        again.write_shard(shard, _rows(again, shard))
    assert again.is_complete() and len(again.open()) == N


DAMAGES = {
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-5]),
    "garbled": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_set_aside_and_done_again(tmp_path, damage):
    round_ = _filled(tmp_path)
    damage(round_.folder / "shard-00001-of-00004.npy")
    assert not round_.is_complete()
    done, warnings = round_.done_shards()
    assert done == {0, 2, 3} and "shard-00001" in warnings[0]
    assert list(round_.folder.glob("shard-00001*.corrupt")) and round_.done_shards() == ({0, 2, 3}, ())
    round_.write_shard(1, _rows(round_, 1))
    assert round_.is_complete() and round_.open()[8][0, 0] == 8


def test_a_shard_without_its_sidecar_is_left_for_the_host_that_writes_it(tmp_path):
    round_ = _filled(tmp_path)
    (round_.folder / "shard-00002-of-00004.json").unlink()
    assert round_.done_shards() == ({0, 1, 3}, ()) and (round_.folder / "shard-00002-of-00004.npy").exists()


def test_a_shard_that_cannot_be_written_leaves_none(tmp_path, monkeypatch):
    round_ = ReconstructionStore(tmp_path).create(1, N, SHAPE, SHARD)
    for array in (np.zeros((6, *SHAPE)), np.zeros((7, 3)), np.full((7, *SHAPE), np.nan)):
        with pytest.raises(ValueError, match="shard 0"):
            round_.write_shard(0, array)
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError("no space left")))
    with pytest.raises(UserError, match=r"shard 0 could not be written.*no space"):
        round_.write_shard(0, _rows(round_, 0))
    assert [f.name for f in round_.folder.iterdir()] == ["manifest.json"] and round_.done_shards() == (set(), ())


def test_the_same_round_of_other_sizes_is_refused(tmp_path):
    _filled(tmp_path)
    with pytest.raises(UserError, match="num_examples 23 against 24"):
        ReconstructionStore(tmp_path).create(3, 24, SHAPE, SHARD)
    with pytest.raises(UserError, match=r"\[3\]"):
        ReconstructionStore(tmp_path).round(2)


def test_only_its_own_files_are_dropped(tmp_path):
    for number in (1, 2, 3):
        _filled(tmp_path, number)
    (tmp_path / "round_00001" / "notes.txt").write_text("mine")
    (tmp_path / "round_00000").mkdir()
    (tmp_path / "round_00000" / "shard-00000-of-00001.npy").write_bytes(b"someone else's")
    (tmp_path / "round_00002" / ".shard-00000-of-00004.npy.0a1b2c3d.diffem-tmp").write_bytes(b"left by a killed run")
    store = ReconstructionStore(tmp_path)
    assert store.drop_older(3) == [1, 2]
    assert [f.name for f in (tmp_path / "round_00001").iterdir()] == ["notes.txt"]
    assert (tmp_path / "round_00000" / "shard-00000-of-00001.npy").exists()
    assert not (tmp_path / "round_00002").exists() and store.rounds() == [3] and store.round(3).is_complete()


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (10, 10), (5, 13), (1, 3)])
def test_index_stream_drops_nothing_and_restarts_anywhere(n, batch):
    steps = 30
    whole = list(itertools.islice(index_stream(3, 2, n, batch), steps))
    flat = np.concatenate(whole)
    epochs = flat[: len(flat) // n * n].reshape(-1, n)
    assert np.array_equal(np.sort(epochs, 1), np.broadcast_to(np.arange(n), epochs.shape))
    if n > 1:
        assert len(np.unique(epochs, axis=0)) > 1
    for start in (1, 7, 29):
        rest = list(itertools.islice(index_stream(3, 2, n, batch, start), steps - start))
        assert np.array_equal(rest, whole[start:]) and rest[0].dtype == np.int64
    others = [next(index_stream(seed, round_, 100, 50)) for seed, round_ in [(0, 0), (0, 1), (1, 0)]]
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(others, 2))
    assert next(index_stream(0, 0, 1000, 64, 10**15)).shape == (64,)
