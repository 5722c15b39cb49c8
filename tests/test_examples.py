"""The packages in examples/, together in one run and alone, by name in a config; what is wrong is refused before any compute."""

import sys
from pathlib import Path

import numpy as np
import pytest
from faults.command import command, refused

from diffem_jax.testing.command import tiny

EXAMPLES = Path(__file__).parent.parent / "examples"
FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/pyproject.toml"))
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
ALL = '''
"""The digits with every kind of part from outside but a posterior transform."""
from ml_collections import ConfigDict
from diffem_jax.config import default

def get_config():
    c = default()
    with c.unlocked():
        c.corruption = ConfigDict({"name": "row_dropout:RowDropout", "rate": 0.3, "noise_std": 0.01})
        c.network = ConfigDict({"name": "gated:Gated", "width": 8, "depth": 1})
        c.start.name, c.start.shrink = "shrunk:shrunk", 0.2
        c.schedule.name, c.e_step.sampler = "cosine:Cosine", "churn:churn"
    return c
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFEM_DATA_DIR", str(tmp_path / "cache"))
    for folder in (tmp_path, *FOLDERS):
        monkeypatch.syspath_prepend(folder)
    (tmp_path / "outside.py").write_text(OUTSIDE)
    (tmp_path / "all.py").write_text(ALL)
    yield tmp_path
    sys.modules.pop("outside", None)


def test_there_is_one_of_each_kind():
    assert [f.name for f in FOLDERS] == [
        "churn_sampler",
        "cosine_schedule",
        "gated_network",
        "gradient_free",
        "row_dropout",
        "shrunk_start",
    ]
    for folder in FOLDERS:
        assert len(list(folder.glob("test_*.py"))) == 1
        module = next(p.stem for p in folder.glob("*.py") if p.stem != "config" and not p.stem.startswith("test_"))
        assert f'py-modules = ["{module}"]' in (folder / "pyproject.toml").read_text()


@pytest.mark.slow
def test_all_together_by_name(outside):
    flags, work = [f"--config={outside / 'all.py'}"], f"--workdir={outside / 'run'}"
    for rounds in (1, 2):
        ended = command(*tiny(*flags, rounds=rounds), work)
        assert ended.code == 0, ended
    assert "continuing after round 1" in ended.out
    rng = np.random.default_rng(0)
    mask = (rng.random((3, 8, 1, 1)) < 0.6) * np.ones((3, 8, 8, 1), np.float32)
    np.savez(outside / "obs.npz", y=mask * rng.normal(size=(3, 8, 8, 1)).astype(np.float32), mask=np.float32(mask))
    output = outside / "draws.npz"
    ended = command("--mode=sample", work, f"--observations={outside / 'obs.npz'}", f"--output={output}")
    assert ended.code == 0, ended
    with np.load(output) as draws:
        assert draws["x"].shape == (1, 3, 8, 8, 1) and np.isfinite(draws["x"]).all()


@pytest.mark.slow
def test_a_posterior_transform_by_name(outside):
    flags = ["--config=digits", "--config.method=gradient_free:gradient_free", "--config.network.features=(8,)"]
    ended = command(*tiny(*flags, rounds=1), f"--workdir={outside / 'run'}")
    assert ended.code == 0, ended


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("schedule.name=outside:no_schedule", ("config.schedule.name", "two scalars")),
        ("schedule.name=outside:unparsable", ("config.schedule.name", "does not fit")),
        ("schedule.name=outside:missing", ("config.schedule.name", "cannot be imported")),
        ("schedule.name=vee", ("config.schedule.name", "'ve'")),
        ("start.name=outside:missing", ("config.start.name", "cannot be imported")),
        ("start.name=gausian", ("config.start.name", "'gaussian'")),
        pytest.param(
            "start.name=outside:no_mixture",
            ("config.start.name", "expected a finite diffem_jax.Mixture"),
        ),
        ("method=outside:wrong_posterior", ("config.method", "cannot be traced")),
        ("method=outside:missing", ("config.method", "cannot be imported")),
    ],
)
def test_wrong_objects_are_refused(outside, flag, words):
    flags = tiny("--config=digits", f"--config.{flag}", "--config.network.features=(8,)", rounds=1)
    refused(command(*flags, f"--workdir={outside / 'run'}"), *words)
    assert not (outside / "run" / "rounds").exists() or not list((outside / "run" / "rounds").iterdir())


def test_a_schedule_without_time(outside):
    flags = ["--config=digits", "--config.schedule.name=outside:without_time", "--config.e_step.time_grid=karras"]
    refused(command(*tiny(*flags, rounds=1), f"--workdir={outside / 'run'}"), "config.e_step.time_grid", "time(sigma)")
