"""The README's commands and extension rows run as written (with a tiny model), and what it names exists."""

import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from faults.command import command
from faults.harness import arguments, tiny

from diffem_jax.errors import Preempted
from diffem_jax.run import train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"<!-- test: ([\w ]+) -->\n```\w+\n(.*?)```", README, re.DOTALL))
TINY = [flag for flag in arguments(rounds=1)[1:] if not flag.startswith(("--config.data", "--config.eval.metrics"))]


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Runs the lines of a block as a shell would, in an empty folder, with a tiny model; returns what they printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFEM_DATA_DIR", str(tmp_path / "cache"))

    def run(block):
        printed = ""
        for program, *words in map(shlex.split, block.splitlines()):
            if program == "diffem":
                ended = command(*words, *(TINY if any(word.startswith("--config=") for word in words) else ()))
                assert ended.code == 0, (words, ended)
                printed += ended.out
            else:
                assert program == "python"
                printed += subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True).stdout
        return printed

    return run


def test_readme_is_short():
    assert len(README.split()) <= 700
    assert len(re.findall(r"!\[", README)) == 1


def test_the_tested_blocks_are_there():
    assert set(BLOCKS) == {"commands", "own data", "python"}


def test_commands(shell, tmp_path):
    shell(BLOCKS["commands"])
    work = tmp_path / "runs/digits"
    for name in ("config.json", "metrics.jsonl", "rounds", "reconstructions", "samples/round_00001.png", "report.html"):
        assert (work / name).exists(), name


def test_own_data(shell, tmp_path):
    from sklearn.datasets import load_digits

    x = (load_digits().images[:96, :, :, None] / 4 - 2).astype(np.float32)
    mask = (np.random.default_rng(0).random(x.shape) < 0.5).astype(np.float32)
    np.savez(tmp_path / "obs.npz", y=np.where(mask > 0, x, np.nan), mask=mask)
    printed = shell(BLOCKS["own data"])
    assert printed.splitlines()[-1].startswith("(8, 96, 8, 8, 1) (96, 8, 8, 1)")
    assert (tmp_path / "draws.png").exists()
    assert (tmp_path / "runs/mine/report.html").exists()
    with np.load(tmp_path / "draws.npz") as draws:
        assert np.isfinite(draws["x"]).all()
        hidden = np.broadcast_to(mask == 0, x.shape)
        assert draws["std"][hidden].mean() > 3 * draws["std"][~hidden].mean()


def test_python(capsys):
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(BLOCKS["python"], "README.md", "exec"), {})
    assert capsys.readouterr().out == "(4, 8, 8, 1) (8, 4, 8, 8, 1)\n"


EXTENSIONS = {
    new: (write, flag)
    for new, write, flag in re.findall(r"^\| ([\w ]+) \| (.*) \| `(--config\S+)` \|$", README, re.MULTILINE)
}
each_extension = pytest.mark.parametrize("new", EXTENSIONS)


def named(flag):
    """The part that a row's flag names."""
    module, attribute = re.search(r"(examples[\w.]+):(\w+)", flag).groups()
    return getattr(importlib.import_module(module), attribute)


def test_every_kind_of_part_has_a_row():
    files = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__", "script"}
    assert {named(flag).__module__.partition(".")[2] for _, flag in EXTENSIONS.values()} == files


@each_extension
def test_extension_is_written_as_its_row_says(new):
    write, flag = EXTENSIONS[new]
    part = named(flag)
    calls = re.findall(r"`(\w*)\(([^`]*)\)`", write)
    assert calls
    for name, parameters in calls:
        if name == "Sampler":
            continue
        function = part if name == part.__name__ else getattr(part, name or "__call__", None)
        if function is None:  # the function that a maker gives
            continue
        found = [p for p in inspect.signature(function).parameters if p != "self"]
        asked = parameters.removesuffix(", ...").split(", ")
        assert found[: len(asked)] == asked, name


@each_extension
def test_extension_runs_by_its_flag(new, tmp_path, monkeypatch):
    """Every part is built and traced as its flag says; starts and metrics also compute. Slow tests train with each."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DIFFEM_DATA_DIR", str(tmp_path / "cache"))
    _, flag = EXTENSIONS[new]
    computes = new in ("start", "metric")
    if not computes:
        monkeypatch.setattr(train, "make_run", mock.Mock(side_effect=Preempted("traced")))
    flags = ["--config=digits", *shlex.split(flag)]
    ended = command(*tiny(*flags, rounds=0), f"--workdir={tmp_path / 'run'}")
    assert ended.code == (0 if computes else 143), ended
    if new == "metric":
        assert '"contrast"' in (tmp_path / "run/metrics.jsonl").read_text()


def test_every_path_exists():
    named = set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
    named |= set(re.findall(r"\b(?:docs|diffem_jax|configs|tests|colabs|experiments|benchmarks)/[\w./-]*\w", README))
    assert "docs/demo.png" in named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_every_make_target_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets
