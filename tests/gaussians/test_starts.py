"""Closed-form starts: EM's course, what it recovers, and where it must not break."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.corruptions import PixelMask, Projection
from diffem_jax.corruptions.base import Linear
from diffem_jax.em import map_examples
from diffem_jax.gaussians import starts
from diffem_jax.gaussians.factor_analysis import em_iteration
from diffem_jax.gaussians.gaussians import Mixture
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.gaussians.starts import fit, make_start_draw

MEAN = np.array([0.5, -0.3, 0.1, 0.8])
FACTOR = np.array([[0.9, 0.7, -0.5, 0.2]])
COV = FACTOR.T @ FACTOR + np.diag([0.1, 0.2, 0.15, 0.3])
CORRUPTIONS = {
    "mask": PixelMask(shape=(4,), rate=0.4, noise_std=0.1),
    "projection": Projection(shape=(4,), measurements=3, noise_std=0.1),
}


def observe(corruption, x, seed=1):
    keys = jax.random.split(jax.random.key(seed), len(x))
    return jax.jit(jax.vmap(corruption.sample))(keys, jnp.asarray(x, jnp.float32))


def gaussian_data(count=4096, seed=0):
    return np.random.default_rng(seed).multivariate_normal(MEAN, COV, size=count)


def moments(law):
    part = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), law.components)
    return part.mean, np.diag(np.broadcast_to(part.variance, part.mean.shape)) + part.factor.T @ part.factor


def never_falls(values, slack=1e-3):
    assert len(values) > 2 and np.isfinite(values).all()
    assert (np.diff(values) > -slack).all(), values
    assert values[-1] > values[0] + 0.05, values


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_recovers_a_gaussian_from_incomplete_observations(name):
    corruption, x = CORRUPTIONS[name], gaussian_data(2048)
    options = {"rank": 2, "iterations": 60, "tolerance": 0.0, "batch_size": 2048}
    result = fit(jax.random.key(0), corruption, observe(corruption, x), **options)
    never_falls(result.log_likelihoods)
    mean, cov = moments(result.mixture)
    # Standard errors of complete data; a coordinate pair is seen together in a third of the examples or more.
    effective = len(x) / 4
    assert (np.abs(mean - MEAN) < 5 * np.sqrt(np.diag(COV) / effective)).all(), mean
    error = np.sqrt((np.outer(np.diag(COV), np.diag(COV)) + COV**2) / effective)
    assert (np.abs(cov - COV) < 5 * error).all(), cov
    # A diagonal fit would be far off: the test can fail.
    assert np.abs(COV[0, 1]) > 5 * error[0, 1]


def test_batches_and_padding_change_nothing():
    corruption = CORRUPTIONS["mask"]
    observations = observe(corruption, gaussian_data(30))
    fits = [fit(jax.random.key(0), corruption, observations, rank=0, iterations=4, batch_size=rows) for rows in (30, 7)]
    np.testing.assert_allclose(fits[0].log_likelihoods, fits[1].log_likelihoods, rtol=1e-4, atol=1e-5)
    for a, b in zip(jax.tree.leaves(fits[0].mixture), jax.tree.leaves(fits[1].mixture), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
    # Masks allow a variance a coordinate.
    assert fits[0].mixture.components.variance.shape == (1, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Differences(Linear):
    """Differences of neighbours and the first entry: no closed form, so conjugate gradients and dense determinants."""

    def forward(self, x, operator):
        return jnp.concatenate([x[:1], jnp.diff(x)])


def test_a_corruption_without_closed_form():
    corruption = Differences(shape=(4,), noise_std=0.2)
    x = gaussian_data(2048)
    observations = observe(corruption, x)
    result = fit(jax.random.key(0), corruption, observations, rank=2, iterations=40, tolerance=0.0)
    never_falls(result.log_likelihoods)
    mean, _ = moments(result.mixture)
    assert (np.abs(mean - MEAN) < 5 * np.sqrt((np.diag(COV) + 0.2) / 2048)).all()


def test_data_on_a_line_with_hardly_any_noise():
    """The likelihood has no upper bound there but for the variance floor; float32 must hold."""
    corruption, values = PixelMask(shape=(3,), rate=0.3, noise_std=1e-3), []
    x = np.random.default_rng(0).uniform(-2, 2, (256, 1)) * np.array([1.0, -0.5, 0.8])
    observations = observe(corruption, x)
    options = {"rank": 1, "components": 2, "iterations": 15}
    result = fit(jax.random.key(0), corruption, observations, report=lambda *told: values.append(told[-1]), **options)
    assert np.isfinite(values).all() and len(values) > len(result.log_likelihoods)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.mixture))
    draw = jax.jit(map_examples(make_start_draw(corruption)))
    draws = np.asarray(draw(jax.random.key(1), result.mixture, observations, jnp.arange(256)))
    assert np.isfinite(draws).all()
    off = np.where(np.asarray(observations.operator) > 0, draws - np.asarray(observations.y), 0.0)
    assert np.abs(off).max() < 0.02
    # With one entry seen the line tells the rest, up to the floor.
    some = np.asarray(observations.operator).sum(1) > 0
    assert np.sqrt(np.mean((draws - x)[some] ** 2)) < 0.1
    # An example's draw belongs to the example, not to the batch.
    part = draw(jax.random.key(1), result.mixture, jax.tree.map(lambda a: a[3:6], observations), jnp.arange(3, 6))
    np.testing.assert_allclose(draws[3:6], part, atol=1e-3)


def test_a_component_that_lost_its_examples_survives():
    corruption = CORRUPTIONS["mask"]
    observations = observe(corruption, gaussian_data(64))
    means = jnp.stack([jnp.zeros(4), jnp.full(4, 100.0)])
    law = Mixture(jnp.log(jnp.full(2, 0.5)), Gaussian(means, jnp.ones((2, 4)), jnp.full((2, 1, 4), 0.5)))
    given, fixed = (observations, jnp.arange(64), jnp.ones(64)), {"variance_floor": 1e-4, "batch_size": 64}
    for i in range(3):
        law, value = em_iteration(jax.random.key(i), law, *given, corruption=corruption, **fixed)
        assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(law))
    lost = jax.tree.map(lambda leaf: leaf[1], law.components)
    assert jnp.exp(law.log_weights[1]) < 0.05
    np.testing.assert_allclose(lost.mean, 100.0, rtol=1e-3)
    np.testing.assert_allclose(lost.variance, 1.0, rtol=0.01)
    np.testing.assert_allclose(lost.factor, 0.5, rtol=0.01)


def test_a_step_that_was_too_long_leaves_nothing_behind(monkeypatch):
    """One that is not even finite: EM goes on from where it was."""
    corruption = CORRUPTIONS["mask"]
    observations, calls, relax = observe(corruption, gaussian_data(512)), [], starts.relax
    options = {"rank": 2, "iterations": 30, "tolerance": 0.0}
    right = fit(jax.random.key(0), corruption, observations, **options)

    def overflowing(*arguments):
        calls.append(1)
        moved = relax(*arguments)
        return jax.tree.map(lambda a: a * jnp.nan, moved) if len(calls) == 8 else moved

    monkeypatch.setattr(starts, "relax", overflowing)
    result = fit(jax.random.key(0), corruption, observations, **options)
    assert len(calls) > 10 and np.isfinite(result.log_likelihoods).all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(result.mixture))
    assert result.log_likelihoods[-1] > right.log_likelihoods[-1] - 5e-3


def test_of_many_observations_a_few_are_fitted_first(monkeypatch):
    """The same likelihood as by passes over all, most of which become passes over a few."""
    corruption, passes = CORRUPTIONS["mask"], []
    observations = observe(corruption, gaussian_data())

    def counted(key, mixture, taken, *rest, **options):
        passes.append(len(taken.y))
        return em_iteration(key, mixture, taken, *rest, **options)

    monkeypatch.setattr(starts, "em_iteration", counted)

    def fitted(coarse, **options):
        monkeypatch.setattr(starts, "COARSE", coarse)
        passes.clear()
        result = fit(jax.random.key(0), corruption, observations, rank=2, batch_size=256, **options)
        return result.log_likelihoods[-1], passes.count(4096), passes.count(512)

    # However few iterations there are, at least half of them pass over all.
    assert fitted(512, iterations=5, tolerance=0.0)[1:] == (3, 2)
    whole, all_passes, _ = fitted(4096, iterations=60)
    coarse, over_all, over_few = fitted(512, iterations=60)
    assert abs(coarse - whole) < 5e-3 and 0 < over_all < all_passes / 2 and over_few > over_all


def test_shrinkage_adds_examples_without_correlations():
    """Of examples seen whole the fit keeps the variances, and N / (N + shrinkage) of each covariance."""
    corruption, x = PixelMask(shape=(4,), rate=0.0, noise_std=1e-3), gaussian_data(256)
    options = {"rank": 4, "iterations": 400, "tolerance": 1e-7}
    _, cov = moments(fit(jax.random.key(0), corruption, observe(corruption, x), shrinkage=64.0, **options).mixture)
    sample = np.cov(x.T, bias=True)
    right = np.where(np.eye(4) > 0, sample, 0.8 * sample)
    np.testing.assert_allclose(cov, right, atol=0.01)
    assert np.abs(sample - right).max() > 0.05


def test_shrinkage_is_chosen_by_what_is_left_out():
    """Few examples of independent coordinates are shrunk, many that lie along a line are not."""
    corruption, options = PixelMask(shape=(12,), rate=0.3, noise_std=0.1), {"rank": 8, "iterations": 30}
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(40, 12)), rng.normal(size=(400, 1)) * np.ones(12) + 0.1 * rng.normal(size=(400, 12))

    def off_diagonal(x, shrinkage):
        law = fit(jax.random.key(0), corruption, observe(corruption, x), shrinkage=shrinkage, **options).mixture
        _, cov = moments(law)
        return np.sqrt(np.mean(cov[~np.eye(12, dtype=bool)] ** 2))

    assert off_diagonal(few, -1.0) < 0.8 * off_diagonal(few, 0.0)
    assert off_diagonal(many, -1.0) == off_diagonal(many, 0.0) > 0.8
    assert np.isfinite(off_diagonal(few[:2], -1.0))
