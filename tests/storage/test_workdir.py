"""The log of metrics survives damaged lines, and keeps them; parameters of another network are not drawn with."""

import json
import shutil

import jax
import pytest
from faults.command import command, refused, snapshot
from faults.harness import arguments

import diffem_jax as dx
from diffem_jax.build.problem import stored_config
from diffem_jax.config import default, differences, flatten
from diffem_jax.networks.embedding import NETWORK_VERSION
from diffem_jax.pretrained import SHIPPED
from diffem_jax.storage.workdir import Workdir

GOOD = [
    {"kind": "round", "round": 0, "psnr": 1.5},
    {"kind": "stop", "round": 1, "picked": 0},
    {"kind": "round", "round": 1},
]
DAMAGES = {
    "a number": b"3",
    "a list": b"[1, 2]",
    "null": b"null",
    "text": b'"round"',
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


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_lines_are_passed_over_and_kept_aside(folder, damage, place):
    lines = [json.dumps(r).encode() for r in GOOD]
    lines.insert({"first": 0, "middle": 1, "last": 3}[place], DAMAGES[damage])
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
    assert folder.records() == [
        {"kind": "round", "round": 0, "psnr": 9.0},
        *GOOD[1:],
        {"kind": "evaluation", "round": 1},
    ]
    assert not folder.metrics.with_name("metrics.jsonl.corrupt").exists()


def test_half_written_files_of_a_killed_process_are_removed_and_no_others(folder):
    ours = [
        f"{name}.0a1b2c3d.diffem-tmp"
        for name in (".metrics.jsonl", "rounds/.round_00001.checksums.json", "samples/.a.png")
    ]
    others = [".mine.txt.123.tmp", "metrics.jsonl.tmp", "notes/mine.diffem-tmp", "rounds/.notes"]
    for name in ours + others:
        (folder.root / name).parent.mkdir(exist_ok=True)
        (folder.root / name).write_text("half")
    with folder.lock():
        assert not any((folder.root / name).exists() for name in ours)
    assert all((folder.root / name).exists() for name in others)
    assert folder.records() == GOOD


def test_no_log_yet(tmp_path):
    assert Workdir(tmp_path).records() == []


def test_a_field_that_a_stored_config_lacks_counts_as_its_default():
    config = default()
    stored = flatten(config)
    del stored["start.num_examples"], stored["stop.rule"]
    assert differences(config, stored) == []
    with config.unlocked():
        config.start.num_examples = 64
        config.corruption.rate = 0.7
        config.network.normalize = True  # the default of its class
    assert differences(config, stored) == ["corruption.rate: 0.5 -> 0.7", "start.num_examples: 0 -> 64"]


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
    refused(command(folder, *tiny), *words)
    refused(command(folder, *tiny, "--override"), *words)
    refused(command(folder, "--mode=sample", f"--output={tmp_path / 'o.npz'}"), *words)
    refused(command(folder, "--mode=evaluate"), *words)
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
