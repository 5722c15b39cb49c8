"""The one writer, work beside the main loop, and compiled programs that are kept."""

import contextlib
import errno
import os
import threading
from unittest import mock

import numpy as np
import pytest
from faults.command import python

from diffem_jax.storage import background, files
from diffem_jax.storage.background import Background, read_ahead


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
    assert np.array_equal(np.load(path), np.arange(5)) if content is write_rows else path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path):
    code = "import os, pathlib, sys; from diffem_jax.storage.files import write_atomically\n"
    code += "write_atomically(pathlib.Path(sys.argv[1]), lambda file: file.write(b'half') and os._exit(0))"
    folder = tmp_path / "deep"
    folder.mkdir()
    python(code, folder / "mine.json")
    assert len(list(folder.iterdir())) == 1
    others = [tmp_path / ".mine.json.0a1b2c3d.tmp", folder / "mine.json"]
    for path in others:
        path.write_text("mine")
    files.sweep_temporaries(tmp_path)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(others)


def test_an_error_in_the_loop_is_not_hidden_by_a_job_that_hangs(monkeypatch):
    monkeypatch.setattr(background, "GRACE_SECONDS", 0.05)
    hang = threading.Event()
    with pytest.raises(KeyError, match="loop"), Background() as worker:
        worker.start(lambda: hang.wait(20))
        raise KeyError("loop")
    with pytest.raises(KeyError, match="loop"), contextlib.closing(read_ahead(lambda: hang.wait(20), 2)) as rows:
        raise KeyError("loop", rows)
    hang.set()


def test_a_process_ends_although_its_reader_hangs():
    code = "import time; from diffem_jax.storage.background import Background\n"
    python(code + "Background().start(lambda: time.sleep(600))")


CODE = """
import sys, pathlib, jax, jax.numpy as jnp
from diffem_jax.storage.programs import keep_compiled
keep_compiled(pathlib.Path(sys.argv[1]))
counts = {"hits": 0, "misses": 0}
def note(event, **_):
    for name in counts:
        counts[name] += event == f"/jax/compilation_cache/cache_{name}"
jax.monitoring.register_event_listener(note)
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 8))).block_until_ready()
print(jax.config.jax_compilation_cache_dir, counts["hits"], counts["misses"])
"""


def start(folder, **variables):
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if "CACHE" in name]:
            del os.environ[name]
        place, hits, misses = python(CODE, folder, **variables).split()
    return place, int(hits), int(misses)


def test_the_second_process_compiles_nothing(tmp_path):
    place, hits, misses = start(tmp_path)
    assert place.startswith(str(tmp_path)) and hits == 0 and misses > 0
    again, hits, left = start(tmp_path)
    assert again == place and left == 0 and hits == misses


def test_what_the_user_chose_is_left_alone(tmp_path):
    own, folder = tmp_path / "own", tmp_path / "compiled"
    assert start(folder, JAX_COMPILATION_CACHE_DIR=str(own))[0] == str(own)
    assert start(folder, JAX_ENABLE_COMPILATION_CACHE="false")[0] == "None"
    (tmp_path / "file").write_text("")
    assert start(tmp_path / "file" / "below")[0] == "None" and not folder.exists()
