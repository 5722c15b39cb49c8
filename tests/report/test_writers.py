"""Optional writers: what they write is read back; a missing package or an unknown name is told before any compute."""

import struct
import sys
import tempfile

import numpy as np
import pytest
from faults.command import command, refused
from PIL import Image

from diffem_jax.config import default
from diffem_jax.report.writers import Writers
from diffem_jax.storage.workdir import Workdir

RECORDS = [
    {"kind": "round", "round": 0, "step": 0, "e_step_seconds": 1.5, "psnr": 14.5, "psnr_se": 0.1, "psnr_samples": 9},
    {"kind": "round", "round": 1, "step": 40, "e_step_seconds": 1.25, "psnr": 16.5, "loss": 0.25},
]


def config(*names):
    c = default()
    with c.unlocked():
        c.writers = names
    return c


def picture(folder):
    path = folder / "round_00000.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path


def write(workdir, name, resumed=0, records=RECORDS):
    workdir.create()
    writers = Writers(workdir, config(name), resumed)
    path = picture(workdir.samples)
    for record in records:
        writers.round(record, path)
    writers.losses(20, 0.5)
    writers.close()


def events(folder):
    """Every event of a folder's event files: length, its checksum, the message, its checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(folder):
    values = [(v.tag, e.step, v.simple_value) for e in events(folder) for v in e.summary.value]
    return {(tag, step): value for tag, step, value in values if value}


def test_tensorboard_events_are_read_back(tmp_path):
    pytest.importorskip("tensorboardX", reason="an extra: pip install 'diffem-jax[tensorboard]'")
    workdir = Workdir(tmp_path / "a run")
    write(workdir, "tensorboard")
    found = scalars(workdir.root / "tensorboard")
    assert found["round/psnr", 0] == 14.5 and found["round/psnr", 40] == 16.5
    assert found["round/loss", 40] == 0.25 and found["training/loss", 20] == 0.5
    assert not any(tag.endswith(("_samples", "/kind", "/step")) for tag, _ in found)
    pictures = [v for e in events(workdir.root / "tensorboard") for v in e.summary.value if v.HasField("image")]
    assert [(v.image.width, v.image.height) for v in pictures] == [(4, 4), (4, 4)]
    before = len(events(workdir.root / "tensorboard"))
    write(workdir, "tensorboard", resumed=40)
    assert len(events(workdir.root / "tensorboard")) > before


@pytest.mark.slow
def test_wandb_offline_holds_the_numbers(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="an extra: pip install 'diffem-jax[wandb]'")
    workdir, places = Workdir(tmp_path / "run"), ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
    # Its service listens on a socket whose path must be short.
    with tempfile.TemporaryDirectory() as short:
        settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TMPDIR": short}
        for name, value in (settings | dict.fromkeys(places, str(tmp_path / "wandb"))).items():
            monkeypatch.setenv(name, value)
        write(workdir, "wandb")
        write(workdir, "wandb", 40, RECORDS[1:])
    files = sorted((workdir.root / "wandb").glob("offline-run-*/*.wandb"))
    names = {path.stem for path in files}
    assert len(files) == 2 and len(names) == 1  # a run that goes on keeps its id
    assert b"round/psnr" in files[0].read_bytes() and b"16.5" in files[0].read_bytes()


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_told_before_any_compute(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    ended = command("--config=digits", f"--config.writers=('{name}',)", f"--workdir={tmp_path / 'run'}")
    refused(ended, "config.writers", package, f"diffem-jax[{name}]")
    assert not list(tmp_path.iterdir())


def test_only_the_first_process_writes(tmp_path):
    workdir = Workdir(tmp_path / "run")
    workdir.create()
    writers = Writers(workdir, config("tensorboard"), lead=False)
    writers.round(RECORDS[0], picture(workdir.samples))
    writers.close()
    assert not (workdir.root / "tensorboard").exists()
