"""The log of metrics survives damaged lines, and keeps them."""

import json

import pytest

from diffem_jax.config import default, differences, flatten
from diffem_jax.train import _recoveries
from diffem_jax.workdir import Workdir

GOOD = [
    {"kind": "round", "round": 0, "psnr": 1.5},
    {"kind": "recovery", "round": 1, "attempt": 2},
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
    assert folder.records() == GOOD and _recoveries(folder) == 2
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
    ours = [".metrics.jsonl.123.tmp", ".environment.json.7.tmp", "rounds/.round_00001.checksums.json.99.tmp"]
    others = [".mine.txt.123.tmp", "metrics.jsonl.tmp", "notes/.metrics.jsonl.123.tmp", ".metrics.jsonl.tmp"]
    for name in ours + others:
        (folder.root / name).parent.mkdir(exist_ok=True)
        (folder.root / name).write_text("half")
    with folder.lock():
        assert not any((folder.root / name).exists() for name in ours)
    assert all((folder.root / name).exists() for name in others)
    assert folder.records() == GOOD


def test_no_log_yet(tmp_path):
    assert Workdir(tmp_path).records() == [] and _recoveries(Workdir(tmp_path)) == 0


def test_a_field_that_a_stored_config_lacks_counts_as_its_default():
    config = default()
    stored = flatten(config)
    del stored["start.minibatch"], stored["stop.rule"]
    assert differences(config, stored) == []
    with config.unlocked():
        config.start.minibatch = 64
        config.corruption.rate = 0.5
    assert differences(config, stored) == ["corruption.rate: None -> 0.5", "start.minibatch: 0 -> 64"]
