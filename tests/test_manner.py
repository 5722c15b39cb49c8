"""How the command talks: help on one screen, first and last lines, estimates, colour, paths with spaces."""

import json
import re
import shlex
from pathlib import Path

import pytest
from absl import flags
from faults.command import command, refused

import diffem_jax.main
from diffem_jax import usage
from diffem_jax.config import default
from diffem_jax.report import console as announce
from diffem_jax.report import console as progress
from diffem_jax.storage.workdir import Workdir

PAGE = Path(__file__).parent.parent / "docs" / "command_line.md"


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_fits_a_screen(word):
    ended = command(word)
    lines = ended.out.splitlines()
    assert ended.code == 0 and 24 <= len(lines) <= 40 and max(map(len, lines)) <= 110
    examples = [line for line in lines if line.startswith("  diffem --")]
    assert len(examples) == 3
    for example in examples:
        named = {argument.partition("=")[0][2:] for argument in shlex.split(example)[1:]}
        assert {name for name in named if not name.startswith("config.")} <= set(flags.FLAGS)
    for name in usage.shipped_configs():
        assert name in ended.out


def test_help_names_every_flag_and_no_other():
    source = Path(diffem_jax.main.__file__).read_text()
    defined = set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", source))
    named = set(re.findall(r"--([a-z_]+)", usage.HELP)) - {"helpfull"}
    assert len(defined) > 10 and named == defined


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--confg=digits", ("--confg", "did you mean '--config'")),
        ("--mode=trian", ("--mode: 'trian'", "did you mean 'train'")),
        ("--num_samples=few", ("--num_samples: 'few'", "expected a whole number")),
        ("--config.rounds=few", ("config.rounds: 'few'", "expected a whole number", "4")),
        ("--config.corruption.rat=0.3", ("config.corruption.rat", "did you mean 'corruption.rate'")),
        ("--config.network.featurs=(3,)", ("config.network.featurs", "did you mean 'network.features'")),
        ("--config.corruption.std=2", ("config.corruption.std", "unknown field")),
        ("--config.corruption.fill_order=two", ("config.corruption.fill_order: 'two'", "expected a whole number", "1")),
        ("--eval.metrics=()", ("--eval.metrics", "did you mean '--config.eval.metrics'")),
        ("--eval.metric=()", ("--eval.metric", "did you mean '--config.eval.metrics'")),
        ("--rounds=3", ("--rounds", "did you mean '--config.rounds'")),
        ("config.rounds=3", ("'config.rounds=3'", "--config.rounds=3")),
        ("--flagfile=none.txt", ("--flagfile", "none.txt")),
    ],
)
def test_typing_errors_are_answered_in_plain_words(tmp_path, argument, words):
    ended = command("--config=digits", f"--workdir={tmp_path / 'run'}", argument)
    assert ended.code == 2 and len(ended.err.splitlines()) == 1 and not (tmp_path / "run").exists()
    for word in words:
        assert word in ended.err
    for jargon in ("literal", "Error", "one of <"):
        assert jargon not in ended.err


def test_config_is_found_by_name_in_either_form_of_the_flag(tmp_path):
    assert usage.shipped_configs()["digits"].name == "digits.py"
    for flag in (["--config", "digits"], ["--config=digits"], ["-config", "digits"]):
        ended = command(*flag, f"--workdir={tmp_path / 'run'}", "--config.rounds=-1")
        assert ended.code == 2 and "config.rounds: -1" in ended.err
    ended = command("--config=digits:mask60", f"--workdir={tmp_path / 'run'}")
    assert ended.code == 2 and "'mask60'; expected one of mask50" in ended.err and "ValueError" not in ended.err


def test_flags_of_fields_are_separated_from_the_others(tmp_path):
    (tmp_path / "more.txt").write_text("--config.rounds=2\n# a comment\n--override\n")
    others, fields = usage.split(
        [
            "diffem",
            "--config",
            "digits",
            "--config.seed",
            "3",
            "--noconfig.m_step.ema_warmup",
            f"--flagfile={tmp_path / 'more.txt'}",
        ]
    )
    assert others == ["diffem", "--config", "digits", "--override"]
    assert fields == [("seed", "3"), ("m_step.ema_warmup", "False"), ("rounds", "2")]
    assert usage.split(["diffem", "--config.m_step.ema_warmup", "--override"])[1] == [("m_step.ema_warmup", "True")]


def test_full_device_memory_is_answered_with_what_to_lower(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    error = "jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 GiB.\\nmore')"
    (tmp_path / "greedy.py").write_text(f"import jax\ndef start(key, corruption, observations):\n    raise {error}\n")
    small = ("--config.start.name=greedy:start", "--config.data.num_examples=64")
    ended = command("--config=digits", *small, f"--workdir={tmp_path / 'run'}")
    cures = ("m_step.batch_size", "m_step.accumulate", "e_step.batch_size", "network.remat", "network.dtype")
    refused(ended, "device memory: full", "allocate 8 GiB.)", *(f"config.{name}" for name in cures))
    assert "more" not in ended.err


def config(**sections):
    c = default()
    with c.unlocked():
        c.rounds, c.m_step.steps, c.m_step.batch_size, c.e_step.steps = 3, 100, 10, 6
        c.prior.steps = sections.get("prior", 0)
    return c


def test_estimate_after_a_round_is_what_rounds_take():
    record = {"m_step_seconds": 100.0, "e_step_seconds": 20.0}
    assert announce.time_left(config(prior=50), 0, {"e_step_seconds": 9.0}) == []
    assert announce.time_left(config(prior=50), 1, record) == ["estimate: about 4 min 50 s left at this round's pace"]
    assert announce.time_left(config(), 3, record) == []


def test_logged_rate_leaves_compilation_out(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.Progress("M-step 1", 100, "updates", every=10.0)
    for seconds, line in (
        (60.0, "M-step 1: 10/100 updates\n"),
        (5.0, ""),
        (5.0, "30/100 updates, 2 updates/s, 35 s left\n"),
    ):
        now[0] += seconds
        bar.advance(10)
        printed = capsys.readouterr().out
        assert printed.endswith(line) and bool(printed) == bool(line)


def test_last_lines_say_what_was_reached_and_what_to_type(tmp_path):
    workdir = Workdir(tmp_path / "a run's folder")
    workdir.create()
    rounds = [
        {"kind": "round", "round": 0, "step": 0, "e_step_seconds": 5.0, "psnr": 14.5, "psnr_se": 0.05},
        {"kind": "round", "round": 2, "step": 80, "e_step_seconds": 5.0, "m_step_seconds": 70.0, "loss": 0.3,
         "redrawn": 0, "psnr": 17.25, "psnr_se": 0.05, "psnr_samples": 100},
    ]  # fmt: skip
    workdir.metrics.write_text("".join(json.dumps(r) + "\n" for r in rounds))
    done, where, *following = announce.ending(workdir, prior=True)
    assert done == "done: 2 rounds in 1 min 20 s of computing; PSNR, dB 17.250 ± 0.050 (start 14.50)"
    assert str(workdir.report) in where
    posterior, prior = (shlex.split(line.removeprefix("next:")) for line in following)
    assert f"--workdir={workdir.root}" in posterior and f"--workdir={workdir.root}" in prior
    assert any(word.startswith("--observations=") for word in posterior) and "--num_samples=64" in prior
    assert len(announce.ending(workdir, prior=False)) == 3


def test_first_lines_say_what_will_be_done(tmp_path):
    import jax
    import numpy as np

    from diffem_jax.build.problem import load_problem

    c = default()
    with c.unlocked():
        c.data.num_examples, c.rounds, c.m_step.steps, c.prior.steps = 40, 7, 1234, 99
        c.corruption.rate = 0.25
    problem = load_problem(c)
    shapes = {"a": jax.ShapeDtypeStruct((1000, 3), np.float32), "b": jax.ShapeDtypeStruct((5,), np.float32)}
    text = "\n".join(announce.beginning(problem, Workdir(tmp_path / "my run"), shapes))
    words = (
        "40 observations of digits",
        "8x8x1",
        "pixel_mask",
        "rate 0.25",
        "diffem",
        "3,005 parameters",
        "rounds      7, ",
    )
    for word in (*words, "1,234 updates", "analytic_2m in 32 steps", "prior       99", "my run", "2 x cpu"):
        assert word in text, (word, text)
