"""Models in one line: the shipped one draws better than its start, an exported run draws what the run draws, damage is told."""

import json
import re
import shutil
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from faults.command import complete
from faults.harness import arguments

import diffem_jax as dx
from diffem_jax import data, metrics, pretrained
from diffem_jax.gaussians.gaussians import mixture_posterior_mean
from diffem_jax.run.sample import posterior_draws
from diffem_jax.storage.workdir import Workdir

DIGITS = pretrained.SHIPPED / "digits"


@pytest.fixture(autouse=True)
def library_promotion():
    """Optax's schedules promote integer counts to floats; a model's set-up makes its optimiser too."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def model():
    return dx.load("digits")


def test_the_shipped_model_is_small_and_has_a_card(model):
    assert sum(path.stat().st_size for path in DIGITS.iterdir()) <= 2_000_000
    for word in ("Data", "Training", "Figures", "Limits", "Licence", "CC BY 4.0", "1,500"):
        assert word in model.card, word
    told = dict(re.findall(r"--config\.([\w.]+)='?([^' ]+)", model.card))
    stored = json.loads((DIGITS / "config.json").read_text())
    for field, value in told.items():
        kept = stored[field]
        assert kept == (value if isinstance(kept, str) else json.loads(value.replace("(", "[").replace(",)", "]")))


def test_the_shipped_model_draws_held_out_digits_better_than_its_start(model):
    x = np.asarray(data.load("digits", split="test").x)[:100]
    observations = model.observe(x, seed=3)
    start, network = (draw(observations, 2) for draw in (model.start_draws, model.posterior_draws))
    assert network.shape == (2, 100, 8, 8, 1) and np.isfinite(network).all()
    assert metrics.psnr(network[0], x).value > metrics.psnr(start[0], x).value + 1.0
    seen = np.broadcast_to(observations.operator, x.shape) > 0
    assert np.abs(network - x)[:, seen].mean() < 0.05 < network.std(axis=0)[~seen].mean()


def test_the_shipped_prior_draws_digits(model):
    x = model.prior_draws(200)
    truth = np.asarray(data.load("digits", split="test").x)[:200]
    noise = np.random.default_rng(0).normal(truth.mean(), truth.std(), truth.shape).astype(np.float32)
    far, near = (metrics.sliced_wasserstein(a, truth, jax.random.key(0)).value for a in (noise, x))
    assert x.shape == (200, 8, 8, 1) and near < far / 4
    np.testing.assert_allclose(model.prior_draws(3), model.prior_draws(3), atol=0)


def test_a_prior_that_began_as_the_start_is_loaded_as_one(model, monkeypatch):
    config = model.config.copy_and_resolve_references()
    with config.unlocked():
        config.prior.base = "start"
    denoiser = pretrained.prior_model(model.setup._replace(config=config), model._start).denoiser
    fresh = denoiser.init(jax.random.key(0))
    draws = mock.Mock(return_value=np.zeros((1, *model.shape), np.float32))
    monkeypatch.setattr(pretrained, "draws_of_prior", draws)
    pretrained.Pretrained(config, {**model._parts, "prior": fresh}).prior_draws()
    assert draws.call_args.args[3] is fresh
    x, t = jax.random.normal(jax.random.key(1), model.shape), np.float32(0.6)
    # A fresh network's last layer is zero.
    _, sigma = model.setup.schedule(t)
    expected = mixture_posterior_mean(None, model._start, x, np.ones((), np.float32), sigma, None)
    np.testing.assert_allclose(denoiser.prior(fresh, x, t, None), expected, atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    with jax.numpy_dtype_promotion("standard"):
        tiny = arguments(eval__metrics="()", rounds=1, data__num_examples=100)
        complete(*tiny, f"--workdir={workdir}")
    return workdir


@pytest.mark.slow
def test_a_work_directory_and_its_export_draw_what_the_command_draws(run, tmp_path):
    model = dx.load(run)
    observed = model.observe(np.zeros((4, 8, 8, 1), np.float32))
    np.savez(tmp_path / "obs.npz", y=observed.y, mask=observed.operator)
    _, expected = posterior_draws(Workdir(run), str(tmp_path / "obs.npz"), 3, seed=5)
    np.testing.assert_allclose(model.posterior_draws(observed, 3, seed=5), expected, atol=1e-4)
    folder = dx.export(run, tmp_path / "small", card="# mine")
    assert sum(p.stat().st_size for p in folder.iterdir()) < sum(p.stat().st_size for p in run.rglob("*")) / 4
    small = dx.load(folder)
    assert small.card == "# mine"
    drawn = small.posterior_draws(tmp_path / "obs.npz", 3, seed=5)
    assert 0 < np.abs(drawn - expected).max() < 0.05
    with pytest.raises(dx.UserError, match=r"no prior.*prior\.steps"):
        small.prior_draws(2)
    with pytest.raises(dx.UserError, match="observations: y has shape"):
        model.posterior_draws(observed._replace(y=observed.y[:, :4]))


@pytest.mark.parametrize("damage", ["model.npz", "config.json", "checksums.json"])
def test_a_damaged_model_is_refused(tmp_path, damage):
    shutil.copytree(DIGITS, tmp_path / "digits")
    path = tmp_path / "digits" / damage
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    with pytest.raises(dx.UserError, match=damage.replace(".", r"\.")):
        dx.load(tmp_path / "digits")


def test_a_name_that_is_none_is_told_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(dx.UserError, match="did you mean 'digits'"):
        dx.load("digit")
    with pytest.raises(dx.UserError, match="neither"):
        dx.load(Path("digits"))
