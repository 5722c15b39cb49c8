"""The log of metrics survives damaged lines, and keeps them; parameters of another network are not drawn with."""

import json
import shutil

import jax
import pytest
from faults.command import command, refused, snapshot
from faults.harness import arguments

import diffem_jax as dx
from diffem_jax.build.problem import stored_config
from diffem_jax.config import default, flatten
from diffem_jax.networks.embedding import NETWORK_VERSION
from diffem_jax.pretrained import SHIPPED
from diffem_jax.storage.workdir import Workdir

GOOD = [
    {"kind": "round", "round": 0, "psnr": 1.5},
    {"kind": "stop", "round": 1, "picked": 0},
    {"kind": "round", "round": 1},
]
DAMAGES = {
    "a list": b"[1, 2]",
    "cut off": b'{"kind": "round", "rou',
    "not UTF-8": b'{"kind": "round", "round": 2, "note": "\xff\xfe"}',
    "zeros": b"\x00" * 40,
    "no number": b'{"kind": "round"}',
    "a number of another type": b'{"kind": "round", "round": "two"}',
    "deeply nested": b"[" * 100_000,
    "another line end": b'{"kind": "round", "round": 2}\r{',
}


@pytest.fixture
def folder(tmp_path):
    folder = Workdir(tmp_path)
    for record in GOOD:
        folder.log(record)
    return folder


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_lines_are_passed_over_and_kept_aside(folder, damage, place):
    lines = [json.dumps(r).encode() for r in GOOD]
    lines.insert({"first": 0, "last": 3}[place], DAMAGES[damage])
    # A crash leaves no line end behind what it cut off.
    folder.metrics.write_bytes(b"\n".join(lines))
    assert folder.records() == GOOD
    folder.log({"kind": "round", "round": 1, "psnr": 2.5})
    assert folder.records() == [*GOOD[:2], {"kind": "round", "round": 1, "psnr": 2.5}]
    assert folder.metrics.with_name("metrics.jsonl.corrupt").read_bytes() == DAMAGES[damage] + b"\n"
    folder.log({"kind": "round", "round": 2})
    assert len(folder.records()) == 4
    assert folder.metrics.with_name("metrics.jsonl.corrupt").read_bytes().count(b"\n") == 1


def test_a_record_replaces_that_of_its_round_and_kind_alone(folder):
    folder.log({"kind": "evaluation", "round": 1})
    folder.log({"kind": "round", "round": 0, "psnr": 9.0})
    first, last = {"kind": "round", "round": 0, "psnr": 9.0}, {"kind": "evaluation", "round": 1}
    assert folder.records() == [first, *GOOD[1:], last]
    assert not folder.metrics.with_name("metrics.jsonl.corrupt").exists()


def test_half_written_files_of_a_killed_process_are_removed_and_no_others(folder):
    names = (".metrics.jsonl", "rounds/.round_00001.checksums.json", "samples/.a.png")
    ours = [f"{name}.0a1b2c3d.diffem-tmp" for name in names]
    others = [".mine.txt.123.tmp", "metrics.jsonl.tmp", "notes/mine.diffem-tmp", "rounds/.notes"]
    for name in ours + others:
        (folder.root / name).parent.mkdir(exist_ok=True)
        (folder.root / name).write_text("half")
    with folder.lock():
        assert not any((folder.root / name).exists() for name in ours)
    assert all((folder.root / name).exists() for name in others) and folder.records() == GOOD


@pytest.fixture
def another(tmp_path, request):
    """A folder whose config says another version of the networks, or none."""
    folder = Workdir(tmp_path / "run")
    folder.create()
    folder.check_config(default(), False)
    stored = json.loads(folder.config.read_text())
    assert stored["network_version"] == NETWORK_VERSION
    stored["network_version"] = request.param
    folder.config.write_text(json.dumps({name: value for name, value in stored.items() if value is not None}))
    return folder


@pytest.mark.parametrize("another", [None, NETWORK_VERSION - 1, NETWORK_VERSION + 1, "x"], indirect=True)
def test_parameters_of_another_network_are_refused(another, tmp_path):
    words, tiny = (str(another.config), "network version", f"expected {NETWORK_VERSION}"), arguments(eval__metrics="()")
    before, folder = snapshot(tmp_path), f"--workdir={another.root}"
    for mode in ((*tiny, "--override"), ("--mode=sample", f"--output={tmp_path / 'o.npz'}"), ("--mode=evaluate",)):
        refused(command(folder, *mode), *words)
    warm = [*tiny, f"--config.start.checkpoint={another.root}", "--config.start.take=parameters"]
    refused(command(f"--workdir={tmp_path / 'new'}", *warm), *words)
    assert snapshot(tmp_path) == before
    # Its reconstructions and records are as good as ever.
    assert stored_config(another, network=False).rounds == default().rounds
    assert another.stored_config() == flatten(default())


def test_a_model_of_another_network_is_refused(tmp_path, monkeypatch):
    with jax.numpy_dtype_promotion("standard"):
        assert dx.load("digits").shape == (8, 8, 1)
    monkeypatch.setattr("diffem_jax.storage.workdir.NETWORK_VERSION", NETWORK_VERSION + 1)
    shutil.copytree(SHIPPED / "digits", tmp_path / "digits")
    with pytest.raises(dx.UserError, match=rf"digits/config\.json: network version {NETWORK_VERSION}; expected"):
        dx.load(tmp_path / "digits")
