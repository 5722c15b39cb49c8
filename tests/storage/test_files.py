"""The one writer: a file is there whole or not at all, and what a killed process left is found again."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from diffem_jax.storage import files


def write_rows(file):
    np.save(file, np.arange(5), allow_pickle=False)


@pytest.mark.parametrize("content", ["new", b"new", write_rows], ids=["text", "bytes", "function"])
def test_content_is_written_whole_or_not_at_all(tmp_path, monkeypatch, content):
    path = tmp_path / "file"
    files.write_atomically(path, "old")
    assert path.read_bytes() == b"old"

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space.*file") as caught:
            files.write_atomically(path, content)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    files.write_atomically(path, content)
    if content is write_rows:
        np.testing.assert_array_equal(np.load(path), np.arange(5))
    else:
        assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_function_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    files.write_atomically(path, "old")

    def fail(file):
        file.write(b"half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        files.write_atomically(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path):
    code = (
        "import os, pathlib, sys; from diffem_jax.storage.files import write_atomically\n"
        "def end(file): file.write(b'half'); file.flush(); os._exit(9)\n"
        "write_atomically(pathlib.Path(sys.argv[1]), end)"
    )
    folder = tmp_path / "deep"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", code, str(folder / "mine.json")])
    assert done.returncode == 9 and len(list(folder.iterdir())) == 1
    others = [tmp_path / ".mine.json.0a1b2c3d.tmp", folder / "mine.json"]
    for path in others:
        path.write_text("mine")
    files.sweep_temporaries(tmp_path)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(others)


@pytest.mark.parametrize("name", ["a.npz", "a", "a.b"])
def test_arrays_are_named_as_numpy_names_them(tmp_path, name):
    arrays = {"x": np.arange(3), "y": np.ones((2, 2), np.float32)}
    path = files.write_arrays(tmp_path / name, arrays)
    np.savez(tmp_path / f"by_numpy_{name}", **arrays)
    assert (tmp_path / f"by_numpy_{path.name}").exists()
    found = np.load(path)
    assert all(np.array_equal(found[key], arrays[key]) for key in arrays) and list(found) == list(arrays)


def test_sums_tell_one_bit(tmp_path):
    path = tmp_path / "sub" / "file"
    path.parent.mkdir()
    path.write_bytes(b"123456789")
    assert files.crc32(path) == 0xCBF43926
    before = files.digests(tmp_path)
    assert list(before) == ["sub/file"] and len(before["sub/file"]) == 32
    path.write_bytes(b"123456788")
    assert files.digests(tmp_path) != before
