"""Noise schedules, time grids, laws of t and loss weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.denoisers.losses import LOSS_WEIGHTS, BetaMixture, LogNormal, Uniform, snr_weight
from diffem_jax.samplers.schedules import (
    SCHEDULES,
    TIME_GRIDS,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    tangent_grid,
    time_at,
)

LOW, HIGH = 2e-3, 80.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    schedule = SCHEDULES[name](sigma_min=LOW, sigma_max=HIGH)
    t = jnp.linspace(0.0, 1.0, 33)
    alpha, sigma = jax.jit(jax.vmap(schedule))(t)
    ratio = np.asarray(sigma / alpha)
    assert alpha.shape == sigma.shape == (33,)
    np.testing.assert_allclose(ratio[[0, -1]], [LOW, HIGH], rtol=1e-4)
    assert (np.diff(ratio) > 0).all() and (np.asarray(alpha) > 0).all()
    np.testing.assert_allclose(time_at(schedule, jnp.asarray(ratio)), t, atol=1e-4)
    assert hash(schedule) == hash(SCHEDULES[name](sigma_min=LOW, sigma_max=HIGH))


def test_each_schedule_keeps_its_own_identity():
    t = jnp.linspace(0.0, 1.0, 9)
    np.testing.assert_array_equal(VarianceExploding()(t)[0], 1.0)
    alpha, sigma = VariancePreserving()(t)
    np.testing.assert_allclose(np.hypot(alpha, sigma), 1.0, rtol=1e-5)
    alpha, sigma = RectifiedFlow()(t)
    np.testing.assert_allclose(alpha + sigma, 1.0, rtol=1e-5)
    np.testing.assert_allclose(np.diff(sigma, 2), 0.0, atol=1e-6)


@pytest.mark.parametrize("grid", TIME_GRIDS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_grid_falls_from_one_to_zero(grid, name):
    times = np.asarray(TIME_GRIDS[grid](SCHEDULES[name](sigma_min=LOW, sigma_max=HIGH), 17))
    assert times.shape == (18,) and (np.diff(times) < 0).all()
    assert times[0] == 1.0 and times[-1] == 0.0


def test_karras_grid_has_equal_steps_in_a_root_of_sigma():
    schedule = VarianceExploding(LOW, HIGH)
    _, sigma = schedule(TIME_GRIDS["karras"](schedule, 16, rho=3.0))
    steps = np.diff(np.asarray(sigma) ** (1 / 3))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-3)


@pytest.mark.parametrize("steps", [1, 8, 64, 256])
@pytest.mark.parametrize("name", SCHEDULES)
def test_tangent_grid_has_equal_steps_in_an_angle(name, steps):
    schedule = SCHEDULES[name](sigma_min=LOW, sigma_max=HIGH)
    times = tangent_grid(schedule, steps, data_std=2.0)
    assert times[0] == 1 and times[-1] == 0 and (np.diff(times) < 0).all()
    alpha, sigma = schedule(times[:-1])
    angles = np.arctan(np.sqrt(np.asarray(sigma / alpha) / 2.0))
    np.testing.assert_allclose(np.diff(angles), -angles[0] / steps, rtol=0.05, atol=2e-4)


def beta_moments(a, b):
    mean = a / (a + b)
    return mean, mean * (1 - mean) / (a + b + 1)


def test_laws_of_time():
    """Each law's mean and variance within five standard errors, and t within [0, 1]."""
    even = [beta_moments(2, 5), beta_moments(5, 2)]
    mean = np.mean([m for m, _ in even])
    cases = [
        (Uniform(), 0.5, 1 / 12),
        (BetaMixture(), *beta_moments(3, 3)),
        (BetaMixture(((3.5, 1.5),)), *beta_moments(3.5, 1.5)),
        (BetaMixture(((2.0, 5.0), (5.0, 2.0))), mean, np.mean([v + m**2 for m, v in even]) - mean**2),
        # log sigma stays far from the ends, so that t is normal.
        (LogNormal(VarianceExploding(1e-4, 1e4), 0.0, 1.0), 0.5, (1 / np.log(1e8)) ** 2),
    ]
    for law, mean, variance in cases:
        t = np.asarray(jax.jit(jax.vmap(law.sample))(jax.random.split(jax.random.key(0), 8192)), np.float64)
        assert t.min() >= 0 and t.max() <= 1
        assert abs(t.mean() - mean) < 5 * t.std() / np.sqrt(len(t)), law
        centred = (t - t.mean()) ** 2
        assert abs(centred.mean() - variance) < 5 * centred.std() / np.sqrt(len(t)), law


def test_log_normal_is_clipped_to_the_schedule():
    t = jax.vmap(LogNormal(VarianceExploding(0.1, 1.0), 0.0, 3.0).sample)(jax.random.split(jax.random.key(0), 64))
    assert t.min() == 0 and t.max() == 1


def test_loss_weights():
    sigma = jnp.array([0.01, 1.0, 100.0])
    for name, weight in LOSS_WEIGHTS.items():
        values = weight(sigma, 2.0)
        assert (np.asarray(values) > 0).all() and (np.diff(values) <= 0).all(), name
        np.testing.assert_allclose(values[-1], 0.25, rtol=1e-3)
    # The inverse variance of a scalar given a noisy look at it.
    np.testing.assert_allclose(1 / snr_weight(sigma, 2.0), 4 * sigma**2 / (4 + sigma**2), rtol=1e-5)
