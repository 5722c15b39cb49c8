"""Schedules, time grids, and samplers against the exact solution for Gaussians."""

import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax import testing
from diffem_jax.corruptions import PixelMask, Projection
from diffem_jax.denoisers.edm import gaussian_denoiser
from diffem_jax.denoisers.losses import LOSS_WEIGHTS, BetaMixture, LogNormal, Uniform, snr_weight
from diffem_jax.gaussians import Gaussian
from diffem_jax.samplers import SCHEDULES, VarianceExploding, analytic_2m, log_uniform_grid, sample, tangent_grid
from diffem_jax.samplers.samplers import SAMPLERS, ddim, dpmpp_2m, initial_noise, observed_spread
from diffem_jax.samplers.schedules import TIME_GRIDS, time_at
from diffem_jax.types import Sampler, SpreadDenoiser

LOW, HIGH = 2e-3, 80.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_keeps_its_contract_and_spans_its_levels(name):
    schedule, t = SCHEDULES[name](sigma_min=LOW, sigma_max=HIGH), jnp.linspace(0.0, 1.0, 33)
    for given in (schedule, SCHEDULES[name]()):
        testing.check_schedule(given)
    alpha, sigma = jax.jit(jax.vmap(schedule))(t)
    np.testing.assert_allclose((sigma / alpha)[jnp.array([0, -1])], [LOW, HIGH], rtol=1e-4)
    np.testing.assert_allclose(time_at(schedule, sigma / alpha), t, atol=1e-4)


IDENTITIES = {"ve": lambda alpha, sigma: alpha, "vp": jnp.hypot, "rectified_flow": jnp.add}


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_keeps_its_own_identity(name):
    alpha, sigma = SCHEDULES[name]()(jnp.linspace(0.0, 1.0, 9))
    np.testing.assert_allclose(IDENTITIES[name](alpha, sigma), 1.0, rtol=1e-5)
    assert name != "rectified_flow" or np.abs(np.diff(sigma, 2)).max() < 1e-6


@pytest.mark.parametrize("grid", TIME_GRIDS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_grid_falls_from_one_to_zero(grid, name):
    times = np.asarray(TIME_GRIDS[grid](SCHEDULES[name](sigma_min=LOW, sigma_max=HIGH), 17))
    assert times.shape == (18,) and (np.diff(times) < 0).all() and times[0] == 1.0 and times[-1] == 0.0


def test_karras_grid_has_equal_steps_in_a_root_of_sigma():
    schedule = VarianceExploding(LOW, HIGH)
    _, sigma = schedule(TIME_GRIDS["karras"](schedule, 16, rho=3.0))
    steps = np.diff(np.asarray(sigma) ** (1 / 3))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-3)


@pytest.mark.parametrize("steps", [1, 8, 256])
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
    # Where it reaches beyond the schedule it is clipped.
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


LAW = Gaussian(jnp.array([0.5, -1.0, 0.0]), jnp.array([0.1, 0.5, 0.02]), jnp.array([[0.8, 0.3, -0.6]]))


@pytest.mark.parametrize("name", SAMPLERS)
def test_contract(name):
    testing.check_sampler(SAMPLERS[name], steps=160, tolerance=0.0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gaussian_law(name):
    """Correlated entries, and the schedule that the contract leaves out."""
    schedule = SCHEDULES["rectified_flow"](sigma_min=1e-3, sigma_max=100.0)
    given = (SAMPLERS[name](schedule), gaussian_denoiser(schedule, LAW), log_uniform_grid(schedule, 160), (3,))
    draws = np.asarray(jax.jit(jax.vmap(lambda key: sample(key, *given)))(jax.random.split(jax.random.key(1), 2048)))
    cov = np.asarray(jnp.diag(LAW.variance) + LAW.factor.T @ LAW.factor)
    assert (np.abs(draws.mean(0) - LAW.mean) < 5 * np.sqrt(np.diag(cov) / 2048)).all(), draws.mean(0)
    error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / 2048)
    assert (np.abs(np.cov(draws.T) - cov) < 5 * error).all(), (np.cov(draws.T), cov)


STRONG = {"ddim": 1, "heun": 2, "dpmpp_2m": 2}
WEAK = {"ddpm": 1, "dpmpp_2m_sde": 2}


def test_every_sampler_is_held_to_its_order():
    # pc has none; analytic_2m, which is exact for the Gaussian used here, has its order below.
    assert set(SAMPLERS) == {*STRONG, *WEAK, "pc", "analytic_2m"}


@pytest.mark.parametrize(("name", "order"), STRONG.items())
@pytest.mark.parametrize("schedule", ["ve", "vp"])
def test_order_of_convergence(name, order, schedule):
    """Halving the step divides the error by 2^order; the probability flow of a Gaussian is known in closed form."""
    schedule = SCHEDULES[schedule](sigma_min=0.05, sigma_max=20.0)
    law = Gaussian(jnp.array([0.5, -1.0, 0.3]), jnp.array([0.1, 0.5, 2.0]), jnp.zeros((0, 3)))
    key, errors = jax.random.key(0), []
    with jax.debug_key_reuse(False):
        for steps in (40, 80):
            sampler = SAMPLERS[name](schedule)
            x = sample(key, sampler, gaussian_denoiser(schedule, law), log_uniform_grid(schedule, steps), (3,))
            (high_alpha, high), (low_alpha, low) = schedule(jnp.ones(())), schedule(jnp.zeros(()))
            start = initial_noise(schedule, 1.0, jax.random.fold_in(key, 0), jnp.ones(()), (3,)) / high_alpha
            shrink = jnp.sqrt((law.variance + (low / low_alpha) ** 2) / (law.variance + (high / high_alpha) ** 2))
            errors.append(float(jnp.abs(x - (law.mean + shrink * (start - law.mean))).max()))
    assert errors[1] < 0.05
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.3, errors


def exact_variance(name, schedule, variance, steps):
    """The variance of a sampler's draws for N(0, variance): a draw is linear in its noises, so no sampling is needed."""
    sampler, times = SAMPLERS[name](schedule), log_uniform_grid(schedule, steps)

    def denoise(x, t):
        alpha, sigma = schedule(t)
        return alpha * variance * x / (alpha**2 * variance + sigma**2)

    def draw(noises):
        left = list(noises)
        with mock.patch.object(jax.random, "normal", lambda key, shape=(): left.pop(0).reshape(shape)):
            state = sampler.init(jax.random.key(0), times[0], ())
            for t, s in itertools.pairwise(times):
                state, _ = sampler.step(jax.random.key(0), state, t, s, denoise)
        assert not left
        return sampler.final(state, times[-1])

    return float(jnp.sum(jax.jit(jax.grad(draw))(jnp.zeros(steps + 1)) ** 2))


@pytest.mark.parametrize(("name", "order"), WEAK.items())
def test_weak_order_of_convergence(name, order):
    schedule = VarianceExploding(0.05, 20.0)
    with jax.debug_key_reuse(False):
        errors = [exact_variance(name, schedule, 0.5, steps) - 0.5 - 0.05**2 for steps in (40, 80)]
    assert abs(errors[0]) < 0.1
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.15, errors


def test_predictor_corrector_comes_closer_with_steps():
    """Its corrections take steps of a fixed size, so that there is no order to hold it to."""
    schedule = VarianceExploding(0.05, 20.0)
    with jax.debug_key_reuse(False):
        errors = [abs(exact_variance("pc", schedule, 0.5, steps) - 0.5 - 0.05**2) for steps in (10, 40)]
    assert errors[1] < 0.2 * errors[0] and errors[1] < 0.02, errors


def test_dpmpp_first_step_has_no_past():
    """The state's infinite log-SNR must neither yield NaN, also under grad and jit, nor change the first step."""
    schedule = VarianceExploding(0.01, 10.0)
    times = log_uniform_grid(schedule, 3)

    def loss(scale, times):
        def denoise(x, t):
            return scale * x / (1 + schedule(t)[1] ** 2)

        return jnp.sum(sample(jax.random.key(0), dpmpp_2m(schedule), denoise, times, (4,)) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(jnp.ones(()), times)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradient) and abs(float(gradient[0])) > 0

    def first(sampler):
        state = sampler.init(jax.random.key(0), times[0], (4,))
        state, _ = sampler.step(jax.random.key(1), state, times[0], times[1], lambda x, t: 0.5 * x)
        return sampler.final(state, times[1])

    np.testing.assert_array_equal(first(dpmpp_2m(schedule)), first(ddim(schedule)))


def test_every_part_of_a_trajectory_has_its_own_key():
    def step(key, state, t, s, denoise):
        index, seen = state
        return (index + 1, seen.at[index].set(jax.random.bits(key))), {}

    def init(key, t, shape):
        return 1, jnp.zeros(shape, jnp.uint32).at[0].set(jax.random.bits(key))

    recorder = Sampler(init, step, lambda state, t: state[1])
    run = jax.vmap(lambda key: sample(key, recorder, lambda x, t: x, jnp.linspace(1.0, 0.0, 8), (8,)))
    seen = np.asarray(run(jax.random.split(jax.random.key(0), 3)))
    assert len(np.unique(seen)) == 24 and seen.all()


UNIT = Gaussian(jnp.zeros(1), jnp.ones(1), jnp.zeros((0, 1)))


def draw_many(denoise, times, shape, count, schedule):
    run = jax.jit(jax.vmap(lambda key: sample(key, analytic_2m(schedule), denoise, times, shape)))
    return np.asarray(run(jax.random.split(jax.random.key(1), count)), np.float64)


@pytest.mark.parametrize("grid", [log_uniform_grid, tangent_grid])
@pytest.mark.parametrize(("name", "steps"), [("ve", 1), ("ve", 12), ("vp", 12), ("rectified_flow", 32)])
def test_variance_of_unseen_coordinate_at_any_number_of_steps(grid, name, steps):
    """f = Var(draw) / Var(exact) within five standard errors of 1."""
    schedule = SCHEDULES[name](sigma_min=1e-3, sigma_max=100.0)
    x = draw_many(gaussian_denoiser(schedule, UNIT), grid(schedule, steps), (1,), 2**16, schedule)
    assert abs(x.var() - 1) < 5 * np.sqrt(2 / 2**16) and abs(x.mean()) < 5 / 2**8


@pytest.mark.parametrize(("kind", "noise"), [("mask", 1e-2), ("projection", 1e-3)])
def test_posterior_of_correlated_gaussian_in_twelve_steps(kind, noise):
    """The whole covariance, with a stand-in that knows nothing of the correlations; seen directions keep the noise's variance."""
    size, schedule = 16, VarianceExploding(1e-3, 100.0)
    factor = jax.random.normal(jax.random.key(5), (3, size)) * np.sqrt(0.9 / 3)
    prior = Gaussian(jnp.zeros(size), jnp.full(size, 0.1), factor)
    make = {"mask": lambda: PixelMask(shape=(size,), rate=0.5, noise_std=noise)}
    make["projection"] = lambda: Projection(shape=(size,), measurements=6, noise_std=noise)
    corruption = make[kind]()
    observation = corruption.sample(jax.random.key(3), jax.random.normal(jax.random.key(4), (size,)))
    spread = observed_spread(corruption, observation)
    denoise = SpreadDenoiser(gaussian_denoiser(schedule, prior, corruption, observation), spread)
    x = draw_many(denoise, tangent_grid(schedule, 12), (size,), 2**13, schedule)
    a = np.asarray(jax.vmap(lambda e: corruption.forward(e, observation.operator))(jnp.eye(size)), np.float64).T
    a = a[np.abs(a).sum(1) > 0]
    cov = np.diag(np.full(size, 0.1)) + np.asarray(factor.T @ factor, np.float64)
    cov = cov - cov @ a.T @ np.linalg.inv(a @ cov @ a.T + noise**2 * np.eye(len(a))) @ a @ cov
    w, q = np.linalg.eigh(cov)
    ratios = np.linalg.eigvalsh(np.cov(x @ (q / np.sqrt(w)), rowvar=False))
    # Eigenvalues of a sample covariance of 16 dimensions and 2^13 draws lie within 2 sqrt(16 / 2^13) = 0.088 of the truth's.
    assert ratios[0] > 0.91 - 0.03 and ratios[-1] < 1.09 + 0.03, ratios
    assert abs(np.trace(np.cov(x.T)) / np.trace(cov) - 1) < 0.03


def test_weak_second_order():
    """Halving the step divides the error of the variance by four where the stand-in's variance is wrong."""
    schedule = VarianceExploding(1e-3, 100.0)
    grids = [log_uniform_grid(schedule, steps) for steps in (40, 80)]
    errors = [abs(linear_variance(schedule, grid, 0.03, data_std=1.0) / 0.03 - 1) for grid in grids]
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
        noise, denoised = -pull * q * own, -pull * q
        x = 1 - pull + pull * (1 + q) * gain
        move = np.array([[x, noise, denoised], [pull * q * gain, noise, denoised], [gain, 0, 0]])
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
