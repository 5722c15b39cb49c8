"""analytic_2m against closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.corruptions import PixelMask, Projection
from diffem_jax.denoisers.edm import gaussian_denoiser
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.samplers import analytic_2m, sample, tangent_grid
from diffem_jax.samplers.samplers import observed_spread
from diffem_jax.samplers.schedules import SCHEDULES, VarianceExploding, log_uniform_grid
from diffem_jax.types import SpreadDenoiser

UNIT = Gaussian(jnp.zeros(1), jnp.ones(1), jnp.zeros((0, 1)))


def draw_many(denoise, times, shape, count, schedule, seed=1):
    run = jax.jit(jax.vmap(lambda key: sample(key, analytic_2m(schedule), denoise, times, shape)))
    return np.asarray(run(jax.random.split(jax.random.key(seed), count)), np.float64)


def posterior_covariance(cov, a, noise):
    gain = cov @ a.T @ np.linalg.inv(a @ cov @ a.T + noise**2 * np.eye(len(a)))
    return cov - gain @ a @ cov


ANY = [("ve", 1), ("ve", 8), ("ve", 12), ("vp", 12)], [("ve", 2), ("ve", 12), ("ve", 32), ("rectified_flow", 12)]


@pytest.mark.parametrize(
    ("grid", "name", "steps"),
    [(grid, *case) for grid, cases in zip((log_uniform_grid, tangent_grid), ANY, strict=True) for case in cases],
)
def test_variance_of_unseen_coordinate_at_any_number_of_steps(grid, name, steps):
    """f = Var(draw) / Var(exact) within five standard errors of 1."""
    schedule = SCHEDULES[name](sigma_min=1e-3, sigma_max=100.0)
    x = draw_many(gaussian_denoiser(schedule, UNIT), grid(schedule, steps), (1,), 2**16, schedule)
    assert abs(x.var() - 1) < 5 * np.sqrt(2 / 2**16)
    assert abs(x.mean()) < 5 / 2**8


@pytest.mark.parametrize("noise", [1e-2, 1e-3])
@pytest.mark.parametrize("kind", ["mask", "projection"])
def test_posterior_of_correlated_gaussian_in_twelve_steps(kind, noise):
    """The whole covariance, with a stand-in that knows nothing of the correlations; seen directions keep the noise's variance."""
    size, schedule = 16, VarianceExploding(1e-3, 100.0)
    factor = jax.random.normal(jax.random.key(5), (3, size)) * np.sqrt(0.9 / 3)
    prior = Gaussian(jnp.zeros(size), jnp.full(size, 0.1), factor)
    make = {"mask": lambda: PixelMask(shape=(size,), rate=0.5, noise_std=noise)}
    make["projection"] = lambda: Projection(shape=(size,), measurements=6, noise_std=noise)
    corruption = make[kind]()
    observation = corruption.sample(jax.random.key(3), jax.random.normal(jax.random.key(4), (size,)))
    denoise = SpreadDenoiser(
        gaussian_denoiser(schedule, prior, corruption, observation), observed_spread(corruption, observation)
    )
    x = draw_many(denoise, tangent_grid(schedule, 12), (size,), 2**13, schedule)
    a = np.asarray(jax.vmap(lambda e: corruption.forward(e, observation.operator))(jnp.eye(size)), np.float64).T
    a = a[np.abs(a).sum(1) > 0]
    cov = posterior_covariance(np.diag(np.full(size, 0.1)) + np.asarray(factor.T @ factor, np.float64), a, noise)
    w, q = np.linalg.eigh(cov)
    ratios = np.linalg.eigvalsh(np.cov(x @ (q / np.sqrt(w)), rowvar=False))
    # Eigenvalues of a sample covariance of 16 dimensions and 2^13 draws lie within 2 sqrt(16 / 2^13) = 0.088 of the truth's.
    assert ratios[0] > 0.91 - 0.03 and ratios[-1] < 1.09 + 0.03, ratios
    assert abs(np.trace(np.cov(x.T)) / np.trace(cov) - 1) < 0.03


def test_weak_second_order():
    """Halving the step divides the error of the variance by four where the stand-in's variance is wrong."""
    schedule = VarianceExploding(1e-3, 100.0)
    errors = [
        abs(linear_variance(schedule, log_uniform_grid(schedule, n), 0.03, data_std=1.0) / 0.03 - 1) for n in (40, 80)
    ]
    assert errors[0] < 0.03
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.3, errors


def linear_variance(schedule, times, variance, data_std):
    """Var(draw) for N(0, variance) and a stand-in of variance data_std^2: covariances of (x, noise, denoised) step by step."""
    sigma = np.append(np.asarray(schedule(times)[1], np.float64)[:-1], 0.0)
    cov, before = np.zeros((3, 3)), np.inf
    cov[0, 0] = data_std**2 + sigma[0] ** 2
    for t, s in itertools.pairwise(sigma):
        pull, h = 1 - (s / t) ** 2, np.log(t / s) if s > 0 else np.inf
        q = h / (2 * before) if s > 0 else 0.5
        gain, own = variance / (variance + t**2), data_std**2 / (data_std**2 + t**2)
        move = np.array(
            [
                [1 - pull + pull * (1 + q) * gain, -pull * q * own, -pull * q],
                [pull * q * gain, -pull * q * own, -pull * q],
                [gain, 0, 0],
            ]
        )
        cov = move @ cov @ move.T
        cov[:2, :2] += s**2 * pull + pull**2 * own * t**2
        before = h
    return cov[0, 0]


def test_wrong_data_std_costs_little():
    """The stand-in's variance wrong by a factor of 3 either way: still within 3% at 12 steps, 1% at 32."""
    schedule = VarianceExploding(1e-3, 100.0)
    for variance in (1 / 3, 3.0):
        for steps, tolerance in ((12, 0.03), (32, 0.01)):
            found = linear_variance(schedule, tangent_grid(schedule, steps), variance, 1.0) / variance
            assert abs(found - 1) < tolerance, (variance, steps, found)


def test_differentiable_and_finite():
    schedule = VarianceExploding(1e-3, 100.0)
    times = tangent_grid(schedule, 3)

    def loss(scale):
        x = sample(
            jax.random.key(0), analytic_2m(schedule), lambda x, t: scale * x / (1 + schedule(t)[1] ** 2), times, (4,)
        )
        return jnp.sum(x**2)

    value, gradient = jax.value_and_grad(loss)(jnp.ones(()))
    assert np.isfinite(value) and np.isfinite(gradient) and abs(float(gradient)) > 0
