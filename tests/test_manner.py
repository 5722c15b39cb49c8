"""How the command talks: help on one screen, first and last lines, estimates, colour, paths with spaces."""

import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from faults.command import command, refused

import diffem_jax.main
from diffem_jax import usage
from diffem_jax.build.problem import load_problem
from diffem_jax.config import default, flatten
from diffem_jax.report import console
from diffem_jax.storage.workdir import Workdir


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_fits_a_screen(word):
    ended = command(word)
    lines = ended.out.splitlines()
    assert ended.code == 0 and 24 <= len(lines) <= 40 and max(map(len, lines)) <= 110
    assert ended.out.count("\n  diffem --") == 3 and all(name in ended.out for name in usage.shipped_configs())


def test_help_names_every_flag_and_no_other_and_helpfull_every_field():
    source = Path(diffem_jax.main.__file__).read_text()
    defined = set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", source))
    named = set(re.findall(r"--([a-z_]+)", usage.HELP)) - {"helpfull"}
    assert len(defined) > 10 and named == defined
    ended = command("--helpfull")
    assert all(f"config.{name}" in ended.out for name in flatten(default()))


TYPING_ERRORS = {
    "--confg=digits": "--confg did you mean '--config'",
    "--mode=trian": "--mode: 'trian' did you mean 'train'",
    "--num_samples=few": "--num_samples: 'few' expected a whole number",
    "--config.rounds=few": "config.rounds: 'few' expected a whole number",
    "--config.corruption.rat=0.3": "config.corruption.rat did you mean 'corruption.rate'",
    "--config.network.featurs=(3,)": "config.network.featurs did you mean 'network.features'",
    "--config.corruption.fill_order=two": "config.corruption.fill_order: 'two' expected a whole number",
    "--eval.metric=()": "--eval.metric did you mean '--config.eval.metrics'",
    "--rounds=3": "--rounds did you mean '--config.rounds'",
    "config.rounds=3": "'config.rounds=3' --config.rounds=3",
    "--flagfile=none.txt": "--flagfile none.txt",
}
"""What is typed, and words of the answer."""


@pytest.mark.parametrize("argument", TYPING_ERRORS)
def test_typing_errors_are_answered_in_plain_words(tmp_path, argument):
    ended = command("--config=digits", f"--workdir={tmp_path / 'run'}", argument)
    assert ended.code == 2 and len(ended.err.splitlines()) == 1 and not (tmp_path / "run").exists()
    assert not [word for word in TYPING_ERRORS[argument].split() if word not in ended.err], ended.err
    assert not [jargon for jargon in ("literal", "Error", "one of <") if jargon in ended.err]


def test_last_lines_can_be_typed(tmp_path):
    workdir = Workdir(tmp_path / "a run's folder")
    workdir.create()
    *_, where, posterior, prior = console.ending(workdir, prior=True)
    assert str(workdir.report) in where and len(console.ending(workdir, prior=False)) == 3
    posterior, prior = (shlex.split(line.removeprefix("next:")) for line in (posterior, prior))
    assert f"--workdir={workdir.root}" in posterior and f"--workdir={workdir.root}" in prior
    assert any(word.startswith("--observations=") for word in posterior) and "--num_samples=64" in prior


def test_config_is_found_by_name_in_either_form_of_the_flag(tmp_path):
    assert usage.shipped_configs()["digits"].name == "digits.py"
    for flag in (["--config", "digits"], ["--config=digits"], ["-config", "digits"]):
        ended = command(*flag, f"--workdir={tmp_path / 'run'}", "--config.rounds=-1")
        assert ended.code == 2 and "config.rounds: -1" in ended.err
    ended = command("--config=digits:mask60", f"--workdir={tmp_path / 'run'}")
    assert ended.code == 2 and "'mask60'; expected one of mask50" in ended.err and "ValueError" not in ended.err


def test_flags_of_fields_are_separated_from_the_others(tmp_path):
    (tmp_path / "more.txt").write_text("--config.rounds=2\n# a comment\n--override\n")
    given = ["diffem", "--config", "digits", "--config.seed", "3", "--noconfig.m_step.ema_warmup"]
    others, fields = usage.split([*given, f"--flagfile={tmp_path / 'more.txt'}"])
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


def test_estimate_after_a_round_is_what_rounds_take():
    c, record = default(), {"m_step_seconds": 100.0, "e_step_seconds": 20.0}
    with c.unlocked():
        c.rounds, c.m_step.steps, c.m_step.batch_size, c.e_step.steps = 3, 100, 10, 6
    assert console.time_left(c, 0, {"e_step_seconds": 9.0}) == console.time_left(c, 3, record) == []
    c.prior.steps = 50
    assert console.time_left(c, 1, record) == ["estimate: about 4 min 50 s left at this round's pace"]


def test_logged_rate_leaves_compilation_out(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    bar, lines = console.Progress("M-step 1", 100, "updates", every=10.0), {60.0: "M-step 1: 10/100 updates\n"}
    for seconds, line in (*lines.items(), (5.0, ""), (5.0, "30/100 updates, 2 updates/s, 35 s left\n")):
        now[0] += seconds
        bar.advance(10)
        printed = capsys.readouterr().out
        assert printed.endswith(line) and bool(printed) == bool(line)


def test_first_lines_say_what_will_be_done(tmp_path):
    c = default()
    with c.unlocked():
        c.data.num_examples, c.rounds, c.m_step.steps, c.prior.steps = 40, 7, 1234, 99
        c.corruption.rate = 0.25
    problem = load_problem(c)
    shapes = {"a": jax.ShapeDtypeStruct((1000, 3), np.float32), "b": jax.ShapeDtypeStruct((5,), np.float32)}
    text = "\n".join(console.beginning(problem, Workdir(tmp_path / "my run"), shapes))
    words = ["40 observations of digits", "8x8x1", "pixel_mask", "rate 0.25", "diffem", "3,005 parameters", "2 x cpu"]
    words += ["rounds      7, ", "1,234 updates", "analytic_2m in 32 steps", "prior       99", "my run"]
    assert not [word for word in words if word not in text], text


ROUNDS = [
    {"kind": "round", "round": 0, "step": 0, "e_step_seconds": 2.0, "compile_seconds": 9.0, "psnr": 14.0},
    {"kind": "round", "round": 1, "step": 10, "loss": 0.5, "m_step_seconds": 60.0, "e_step_seconds": 3.0, "redrawn": 0}
    | {"psnr": 17.4413, "psnr_se": 0.06, "psnr_samples": 1797},
]


def test_the_last_line_has_each_measure_and_the_starts():
    assert console.reached([]) == "done: no round was asked for"
    assert console.reached(ROUNDS[:1]) == "done: 0 rounds in 2 s of computing; PSNR, dB 14.00"
    line = console.reached(ROUNDS)
    assert line == "done: 1 round in 1 min 5 s of computing; PSNR, dB 17.441 ± 0.060 (start 14.00)"


def test_a_rounds_line_is_its_measures_and_times():
    line = console.round_line(1, ROUNDS[1])
    assert line == "round 1: loss 0.5, m_step_seconds 60, e_step_seconds 3, psnr 17.44"
    line = console.round_line(1, ROUNDS[1] | {"redrawn": 2, "coverage_50": 0.5, "coverage_90": 0.9})
    assert line.endswith("psnr 17.44, coverage_90 0.9, redrawn 2")


@pytest.mark.parametrize(("value", "word"), [(0.88, ""), (0.95, ""), (0.8, "too narrow"), (0.97, "too wide")])
def test_the_end_says_how_wide_the_draws_are(tmp_path, value, word):
    workdir = Workdir(tmp_path)
    for record in ROUNDS:
        workdir.log(record)
    assert len(console.ending(workdir, prior=False)) == 3
    workdir.log({**ROUNDS[1], "held_out_coverage_90": value})
    said = console.ending(workdir, prior=True)[1]
    assert f"90% intervals hold {100 * value:.0f}% of held-back measurements" in said
    assert word in said and ("warning" in said) == bool(word)
