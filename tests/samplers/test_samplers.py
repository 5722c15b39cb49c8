"""Samplers against the exact solution for Gaussians."""

import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax import testing
from diffem_jax.denoisers.edm import gaussian_denoiser
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.samplers.samplers import EVALUATIONS, SAMPLERS, ddim, dpmpp_2m, initial_noise, sample
from diffem_jax.samplers.schedules import SCHEDULES, VarianceExploding, log_uniform_grid
from diffem_jax.types import Sampler

LAW = Gaussian(jnp.array([0.5, -1.0, 0.0]), jnp.array([0.1, 0.5, 0.02]), jnp.array([[0.8, 0.3, -0.6]]))


def dense(law):
    return np.asarray(law.mean, np.float64), np.diag(np.asarray(law.variance, np.float64)) + np.asarray(
        law.factor.T @ law.factor, np.float64
    )


def within_five_errors(draws, mean, cov):
    """Mean and covariance of draws [N, D] against a Gaussian's."""
    n, diagonal = len(draws), np.diag(cov)
    assert (np.abs(draws.mean(0) - mean) < 5 * np.sqrt(diagonal / n)).all(), (draws.mean(0), mean)
    error = np.sqrt((np.outer(diagonal, diagonal) + cov**2) / n)
    assert (np.abs(np.cov(draws.T) - cov) < 5 * error).all(), (np.cov(draws.T), cov)


def draw(sampler, denoise, times, count=2048):
    run = jax.jit(jax.vmap(lambda key: sample(key, sampler, denoise, times, (3,))))
    return np.asarray(run(jax.random.split(jax.random.key(1), count)), np.float64)


@pytest.mark.parametrize("name", SAMPLERS)
def test_contract(name):
    testing.check_sampler(SAMPLERS[name], steps=160, tolerance=0.0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gaussian_law(name):
    """Correlated entries, and the schedule that the contract leaves out."""
    schedule = SCHEDULES["rectified_flow"](sigma_min=1e-3, sigma_max=100.0)
    draws = draw(SAMPLERS[name](schedule), gaussian_denoiser(schedule, LAW), log_uniform_grid(schedule, 160))
    within_five_errors(draws, *dense(LAW))


STRONG = {"ddim": 1, "heun": 2, "dpmpp_2m": 2}
WEAK = {"ddpm": 1, "dpmpp_2m_sde": 2}
WITHOUT_ORDER = {"pc"}


def test_every_sampler_is_held_to_its_order():
    # analytic_2m, which is exact for the Gaussian used here, has its order in test_analytic.py.
    assert set(SAMPLERS) == {*STRONG, *WEAK, *WITHOUT_ORDER, "analytic_2m"}


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
    """Halving the step divides the error of the law by 2^order."""
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

    firsts = []
    for sampler in (dpmpp_2m(schedule), ddim(schedule)):
        state = sampler.init(jax.random.key(0), times[0], (4,))
        state, _ = sampler.step(jax.random.key(1), state, times[0], times[1], lambda x, t: 0.5 * x)
        firsts.append(sampler.final(state, times[1]))
    np.testing.assert_array_equal(*firsts)


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


def test_evaluations_are_counted_right():
    schedule = VarianceExploding(0.01, 10.0)
    for name, make in SAMPLERS.items():
        calls = []
        sampler = make(schedule)
        state = sampler.init(jax.random.key(0), jnp.ones(()), (2,))

        def denoise(x, t, calls=calls):
            calls.append(t)
            return 0.5 * x

        sampler.step(jax.random.key(1), state, jnp.ones(()), jnp.float32(0.5), denoise)
        assert len(calls) == EVALUATIONS.get(name, 1), name
