"""The files in examples/: each keeps its contract, and trains by name in a config; wrong objects are refused before any compute."""

import importlib
import re
import shlex
import sys
from unittest import mock

import pytest
from faults.command import ROOT, command, complete, refused
from faults.harness import result, tiny

from diffem_jax import testing
from diffem_jax.errors import Preempted
from diffem_jax.run import train
from examples import corruption, network, posterior, sampler, schedule

OUTSIDE = '''
"""Objects that do not keep their contract."""
import jax.numpy as jnp

def no_schedule(sigma_min, sigma_max):
    return lambda t: (jnp.ones(2), t)

def unparsable(sigma_min, sigma_max):
    return 3

def wrong_posterior(denoise, schedule, corruption, observation):
    return lambda x, t: denoise(x, t)[:2]

def no_mixture(key, corruption, observations):
    return jnp.zeros(3)
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder on the path with objects that break their contract."""
    monkeypatch.setenv("DIFFEM_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "outside.py").write_text(OUTSIDE)
    yield tmp_path
    sys.modules.pop("outside", None)


CONTRACTS = {
    "corruption": lambda: testing.check_corruption(corruption.RowDropout(shape=(4, 3, 1), rate=0.4, noise_std=0.1)),
    "network": lambda: testing.check_network(network.Gated(width=8, depth=1), starts_at_zero=True),
    "sampler": lambda: testing.check_sampler(sampler.churn, samples=1024),
    "schedule": lambda: testing.check_schedule(schedule.Cosine()),
    "posterior": lambda: testing.check_posterior(posterior.gradient_free, exact=True),
}
SLOW = pytest.param("posterior", marks=pytest.mark.slow)


@pytest.mark.parametrize("kind", [*(kind for kind in CONTRACTS if kind != "posterior"), SLOW])
def test_part_keeps_its_contract(kind):
    CONTRACTS[kind]()


ROWS = re.findall(r"^\| ([\w ]+) \| .* \| `(--config\S+)` \|$", (ROOT / "README.md").read_text(), re.M)
FLAGS = {new: shlex.split(flags) for new, flags in ROWS}
"""How the README says that a part is used."""


def named(flags):
    module, attribute = re.search(r"(examples[\w.]+):(\w+)", " ".join(flags)).groups()
    return getattr(importlib.import_module(module), attribute)


def test_readme_has_a_row_for_every_kind_of_part():
    files = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__", "script"}
    assert {named(flags).__module__.partition(".")[2] for flags in FLAGS.values()} == files


@pytest.mark.parametrize("new", FLAGS)
def test_part_runs_by_its_flag(new, tmp_path, monkeypatch):
    """Every part is built and traced; starts and metrics also compute. Slow tests train with each."""
    monkeypatch.chdir(ROOT)
    computes = new in ("start", "metric")
    if not computes:
        monkeypatch.setattr(train, "make_run", mock.Mock(side_effect=Preempted("traced")))
    ended = command(*tiny("--config=digits", *FLAGS[new], rounds=0), f"--workdir={tmp_path / 'run'}")
    assert ended.code == (0 if computes else 143), ended
    if new == "metric":
        assert '"contrast"' in (tmp_path / "run/metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("new", FLAGS)
def test_run_goes_on_with_a_part_named_in_the_config(new, tmp_path):
    """One round prolonged to two, against two in one go."""
    for name, rounds in (("prolonged", 1), ("prolonged", 2), ("straight", 2)):
        ended = complete(*tiny("--config=digits", *FLAGS[new], rounds=rounds), f"--workdir={tmp_path / name}")
        assert ("continuing after round 1" in ended.out) == ((name, rounds) == ("prolonged", 2))
    prolonged, straight = (result(tmp_path / name)["reconstructions"] for name in ("prolonged", "straight"))
    assert prolonged == straight


WRONG = {
    "schedule.name=outside:no_schedule": "two scalars",
    "schedule.name=outside:unparsable": "does not fit",
    "schedule.name=outside:missing": "cannot be imported",
    "start.name=outside:no_mixture": "expected a finite diffem_jax.Mixture",
    "method=outside:wrong_posterior": "cannot be traced",
}


@pytest.mark.parametrize("flag", WRONG)
def test_wrong_objects_are_refused(outside, flag):
    flags = tiny("--config=digits", f"--config.{flag}", "--config.network.features=(8,)", rounds=1)
    ended = command(*flags, f"--workdir={outside / 'run'}")
    refused(ended, f"config.{flag.partition('=')[0]}", WRONG[flag])
    assert not list(outside.glob("run/rounds/*"))
