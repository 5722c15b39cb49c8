"""The files in examples/: each keeps its contract, and trains by name in a config; wrong objects are refused before any compute."""

import sys

import pytest
from faults.command import command, refused
from faults.harness import result, tiny

from diffem_jax import testing
from examples import corruption, network, posterior, sampler, schedule

OUTSIDE = '''
"""Objects that do not keep their contract."""
import jax.numpy as jnp

def no_schedule(sigma_min, sigma_max):
    return lambda t: (jnp.ones(2), t)

def unparsable(sigma_min, sigma_max):
    return 3

def without_time(sigma_min, sigma_max):
    return lambda t: (1 - t, t + 0.01)

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


def test_corruption_keeps_its_contract():
    testing.check_corruption(corruption.RowDropout(shape=(4, 3, 1), rate=0.4, noise_std=0.1))


def test_network_keeps_its_contract():
    testing.check_network(network.Gated(width=8, depth=1), starts_at_zero=True)


def test_sampler_keeps_its_contract():
    testing.check_sampler(sampler.churn, samples=1024)


def test_schedule_keeps_its_contract():
    testing.check_schedule(schedule.Cosine())


@pytest.mark.slow
def test_posterior_transform_keeps_its_contract():
    testing.check_posterior(posterior.gradient_free, exact=True)


NAMED = {
    "corruption": (
        "corruption.name=examples.corruption:RowDropout",
        "corruption.rate=0.4",
        "corruption.noise_std=0.01",
    ),
    "network": ("network.name=examples.network:Gated", "network.width=8", "network.depth=1"),
    "posterior": ("method=examples.posterior:gradient_free",),
    "sampler": ("e_step.sampler=examples.sampler:churn",),
    "schedule": ("schedule.name=examples.schedule:Cosine",),
    "start": ("start.name=examples.start:shrunk",),
    "time_distribution": ("m_step.time_law=examples.time_distribution:Late",),
    "metric": ("eval.metrics=('examples.metric:contrast',)",),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMED)
def test_run_goes_on_with_a_part_named_in_the_config(kind, tmp_path):
    """One round prolonged to two, against two in one go."""
    flags = ["--config=digits", *(f"--config.{field}" for field in NAMED[kind])]
    for name, rounds in (("prolonged", 1), ("prolonged", 2), ("straight", 2)):
        ended = command(*tiny(*flags, rounds=rounds), f"--workdir={tmp_path / name}")
        assert ended.code == 0, ended
        assert ("continuing after round 1" in ended.out) == ((name, rounds) == ("prolonged", 2))
    prolonged, straight = (result(tmp_path / name)["reconstructions"] for name in ("prolonged", "straight"))
    assert prolonged == straight


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("schedule.name=outside:no_schedule", ("config.schedule.name", "two scalars")),
        ("schedule.name=outside:unparsable", ("config.schedule.name", "does not fit")),
        ("schedule.name=outside:missing", ("config.schedule.name", "cannot be imported")),
        ("schedule.name=vee", ("config.schedule.name", "'ve'")),
        ("start.name=outside:missing", ("config.start.name", "cannot be imported")),
        ("start.name=gausian", ("config.start.name", "'gaussian'")),
        ("start.name=outside:no_mixture", ("config.start.name", "expected a finite diffem_jax.Mixture")),
        ("method=outside:wrong_posterior", ("config.method", "cannot be traced")),
        ("method=outside:missing", ("config.method", "cannot be imported")),
    ],
)
def test_wrong_objects_are_refused(outside, flag, words):
    flags = tiny("--config=digits", f"--config.{flag}", "--config.network.features=(8,)", rounds=1)
    refused(command(*flags, f"--workdir={outside / 'run'}"), *words)
    assert not (outside / "run" / "rounds").exists() or not list((outside / "run" / "rounds").iterdir())
