"""Posterior transforms: exact where the theory says so, one example at a time, and useful where it does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.corruptions import CORRUPTIONS, Clipping, PixelMask, Projection, VaryingNoise
from diffem_jax.denoisers.edm import gaussian_denoiser
from diffem_jax.denoisers.guidance import POSTERIORS, consistent, dps, mmps, pigdm, single_gaussian
from diffem_jax.gaussians.gaussians import Mixture, sample_gaussian
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.samplers.schedules import SCHEDULES, VarianceExploding, time_at
from diffem_jax.types import Observation

SIGMAS = (0.02, 0.3, 1.0, 20.0)
CASES = {
    "pixel_mask": PixelMask(shape=(4, 4, 1), rate=0.5, noise_std=0.2),
    "projection": Projection(shape=(5,), measurements=2, noise_std=0.2),
    "varying_noise": VaryingNoise(shape=(6,), noise_std=0.1, noise_std_max=0.5),
}


def schedule_of(name):
    return SCHEDULES[name](sigma_min=0.01, sigma_max=30.0)


def gaussian(shape, rank=2, seed=0):
    rng = np.random.default_rng(seed)
    mean, variance, factor = rng.normal(size=shape), rng.uniform(0.3, 1.0), 0.7 * rng.normal(size=(rank, *shape))
    return Gaussian(*(jnp.asarray(leaf, jnp.float32) for leaf in (mean, variance, factor)))


def isotropic(shape, variance=1.0):
    return Gaussian(jnp.full(shape, 0.3), jnp.full(shape, variance), jnp.zeros((0, *shape)))


def observe(corruption, law, seed=1):
    def draw(key):
        x_key, y_key = jax.random.split(key)
        x = sample_gaussian(x_key, law)
        return corruption.sample(y_key, x), x

    return jax.jit(draw)(jax.random.key(seed))


def noisy(schedule, x, sigma, seed=2):
    t = time_at(schedule, jnp.float32(sigma))
    alpha, sigma = schedule(t)
    return alpha * x + sigma * np.random.default_rng(seed).standard_normal(x.shape).astype(np.float32), t


def at_all_levels(schedule, x, *denoisers):
    """What each denoiser makes of one x_t for each of SIGMAS, [S, *X]."""
    points = [np.stack(leaves) for leaves in zip(*(noisy(schedule, x, sigma) for sigma in SIGMAS), strict=True)]
    return jax.jit(jax.vmap(lambda *point: tuple(denoise(*point) for denoise in denoisers)))(*points)


def setting(schedule, case):
    schedule, corruption = schedule_of(schedule), CASES[case]
    law = gaussian(corruption.shape)
    return schedule, corruption, law, *observe(corruption, law), gaussian_denoiser(schedule, law)


SETTINGS = [("ve", "pixel_mask"), ("vp", "projection"), ("rectified_flow", "varying_noise")]
"""Every schedule and every case."""


@pytest.mark.parametrize(
    ("schedule", "case", "known"), [*((*setting, False) for setting in SETTINGS), ("vp", "pixel_mask", True)]
)
def test_mmps_is_exact_for_gaussians(schedule, case, known):
    schedule, corruption, law, observation, x, prior = setting(schedule, case)
    approximate = mmps(prior, schedule, corruption, observation, iterations=8, moments=law if known else None)
    exact = gaussian_denoiser(schedule, law, corruption, observation)
    approximation, truth, free = at_all_levels(schedule, x, approximate, exact, prior)
    np.testing.assert_allclose(approximation, truth, rtol=1e-5, atol=1e-5)
    # The test could fail: the observation does make a difference.
    assert jnp.abs(free - truth).max() > 0.1


def test_as_many_iterations_as_distinct_eigenvalues_are_exact():
    """The prior covariance, isotropic plus rank 2, has three distinct eigenvalues, also behind a mask."""
    schedule, corruption, law, observation, x, prior = setting("ve", "pixel_mask")
    point = noisy(schedule, x, 3.0)
    exact = gaussian_denoiser(schedule, law, corruption, observation)
    better = [mmps(prior, schedule, corruption, observation, iterations=n) for n in (1, 2, 3)]
    truth, *others = jax.jit(lambda *point: [denoise(*point) for denoise in (exact, prior, *better)])(*point)
    errors = [float(jnp.linalg.norm(other - truth)) for other in others]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2] > 1e-2 and errors[3] < 1e-4


@pytest.mark.parametrize("known", [True, False])
def test_many_iterations_stay_finite(known):
    schedule, corruption, law, observation, x, prior = setting("ve", "pixel_mask")
    options = {"moments": law if known else None}
    few, many = (mmps(prior, schedule, corruption, observation, iterations=n, **options) for n in (8, 64))
    converged, after = at_all_levels(schedule, x, few, many)
    assert np.isfinite(after).all()
    np.testing.assert_allclose(after, converged, atol=1e-3)


def test_the_network_is_linearised_once():
    schedule, corruption, _, observation, x, prior = setting("ve", "projection")
    calls = []

    def counted(x_t, t):
        jax.debug.callback(lambda: calls.append(0))
        return prior(x_t, t)

    jax.jit(mmps(counted, schedule, corruption, observation, iterations=5))(*noisy(schedule, x, 1.0))
    jax.effects_barrier()
    assert len(calls) == 1


@pytest.mark.parametrize("known", [True, False])
def test_either_covariance_solves_its_own_system(known):
    """For scalar x and y = x + n the shift is score times V_x, which reveals the V that was used."""
    schedule, corruption = schedule_of("vp"), dataclasses.replace(CASES["projection"], shape=(1,), measurements=1)
    law = Gaussian(jnp.zeros(1), jnp.full(1, 0.8), jnp.zeros((0, 1)))
    observation = Observation(jnp.array([1.5]), jnp.ones((1, 1)))
    x_t, t = noisy(schedule, jnp.zeros(1), 2.0)
    prior = gaussian_denoiser(schedule, law)
    moments = Gaussian(jnp.zeros(1), jnp.float32(0.3), jnp.full((1, 1), 0.4))
    transformed = mmps(prior, schedule, corruption, observation, moments=moments if known else None)
    x_hat, free = jax.jit(lambda *point: (transformed(*point), prior(*point)))(x_t, t)
    shift = x_hat - free
    true = 0.8 * 4 / (0.8 + 4)
    implied = true * (1.5 - free) / shift - corruption.noise_std**2
    total = 0.3 + 0.4**2
    np.testing.assert_allclose(implied, [total * 4 / (total + 4) if known else true], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("schedule", "case"), SETTINGS)
def test_pigdm_is_exact_for_isotropic_gaussians(schedule, case):
    schedule, corruption = schedule_of(schedule), CASES[case]
    for data_std, options in ((1.0, {}), (0.6, {"data_std": 0.6})):
        law = isotropic(corruption.shape, data_std**2)
        observation, x = observe(corruption, law)
        prior = gaussian_denoiser(schedule, law)
        exact = gaussian_denoiser(schedule, law, corruption, observation)
        right = pigdm(prior, schedule, corruption, observation, **options)
        wrong = pigdm(prior, schedule, corruption, observation, data_std=2.0)
        approximation, truth, other = at_all_levels(schedule, x, right, exact, wrong)
        np.testing.assert_allclose(approximation, truth, rtol=1e-5, atol=1e-5)
        assert jnp.abs(other - truth).max() > 1e-3


@pytest.mark.parametrize("name", POSTERIORS)
def test_examples_do_not_influence_each_other(name):
    schedule, corruption, law, _, _, prior = setting("ve", "projection")
    xs = jax.jit(jax.vmap(sample_gaussian, (0, None)))(jax.random.split(jax.random.key(3), 4), law)
    observations = jax.jit(jax.vmap(corruption.sample))(jax.random.split(jax.random.key(4), 4), xs)
    _, t = noisy(schedule, xs, 1.0)

    def run(x_t, observation):
        return POSTERIORS[name](prior, schedule, corruption, observation)(x_t, t)

    # The same program with the other examples a thousand times larger: a step size shared by the batch would differ.
    batched = jax.jit(jax.vmap(run))
    others = np.array([[1.0], [1e3], [1e3], [1e3]], np.float32)
    loud = observations._replace(y=observations.y * others)
    np.testing.assert_array_equal(batched(xs * others, loud)[0], batched(xs, observations)[0])


def test_dps_reduces_the_misfit_of_a_nonlinear_corruption():
    schedule, corruption = schedule_of("ve"), Clipping(shape=(6,), low=-1.0, high=1.0)
    law = gaussian(corruption.shape)
    observation, x = observe(corruption, law)
    prior = gaussian_denoiser(schedule, law)
    transformed = [dps(prior, schedule, corruption, observation, step=step) for step in (0, 0.05, 0.1)]
    misfits = [observation.y[None] - corruption.forward(x, ()) for x in at_all_levels(schedule, x, *transformed)]
    before, small, large = (jnp.linalg.norm(misfit, axis=1)[1:] for misfit in misfits)
    assert (before > small).all() and (small > large).all()
    # Where the observation is met, there is no direction to go.
    still = dps(lambda x_t, t: x_t, schedule, corruption, Observation(jnp.zeros(6), ()))(jnp.zeros(6), jnp.float32(0.5))
    np.testing.assert_array_equal(still, np.zeros(6))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_dps_moves_by_the_closed_form_for_gaussians(schedule):
    """x-hat moves by step Cov[x | x_t] A^T r / |r|, with the covariance of a dense Gaussian."""
    schedule, corruption, law, observation, x, prior = setting(schedule, "projection")
    moved, free = at_all_levels(schedule, x, dps(prior, schedule, corruption, observation, step=0.7), prior)
    a, y = np.asarray(observation.operator, np.float64), np.asarray(observation.y, np.float64)
    cov = float(law.variance) * np.eye(5) + np.asarray(law.factor.T @ law.factor, np.float64)
    for sigma, after, before in zip(SIGMAS, moved, np.asarray(free, np.float64), strict=True):
        r = y - a @ before
        given = np.linalg.inv(np.linalg.inv(cov) + np.eye(5) / sigma**2)
        np.testing.assert_allclose(after - before, 0.7 * given @ a.T @ r / np.linalg.norm(r), rtol=2e-3, atol=2e-5)


def test_single_gaussian_has_the_mixtures_moments():
    shape, log_weights = (3,), jnp.log(jnp.array([0.3, 0.7]))
    parts = [gaussian(shape, seed=seed) for seed in (0, 1)]
    mixture = Mixture(log_weights, jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts))
    one = single_gaussian(mixture)
    mean = 0.3 * parts[0].mean + 0.7 * parts[1].mean
    second = [p.variance * np.eye(3) + p.factor.T @ p.factor + np.outer(p.mean, p.mean) for p in parts]
    np.testing.assert_allclose(one.mean, mean, rtol=1e-5)
    cov = 0.3 * second[0] + 0.7 * second[1] - np.outer(mean, mean)
    np.testing.assert_allclose(one.variance * np.eye(3) + one.factor.T @ one.factor, cov, atol=1e-4)
    alone = single_gaussian(Mixture(jnp.zeros(1), jax.tree.map(lambda leaf: leaf[None], parts[0])))
    for leaf, own in zip(alone, parts[0], strict=True):
        np.testing.assert_allclose(leaf, own, rtol=1e-6)


def test_consistent_estimates_agree_with_y_to_within_the_noise_and_no_further():
    corruption = CORRUPTIONS["phase"](shape=(8, 8, 1), noise_std=0.05, offset=2.0)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jnp.clip(jax.random.normal(keys[0], corruption.shape), -2, 2)
    observation = corruption.sample(keys[1], x)
    off = x + 0.6 * jax.random.normal(keys[2], x.shape)

    def misfit(estimate):
        return float(jnp.sqrt(jnp.mean((observation.y - corruption.forward(estimate, ())) ** 2)))

    def moved(estimate):
        transform = consistent(lambda x_t, t: x_t, VarianceExploding(), corruption, observation, iterations=30)
        return jax.jit(transform)(estimate, jnp.asarray(0.5))

    assert 0.03 < misfit(moved(off)) < min(0.075, 0.5 * misfit(off))
    close = moved(off)
    np.testing.assert_allclose(moved(close), close, atol=0.05)


def test_consistent_estimates_end_where_the_misfit_is_that_of_photon_counts():
    """The noise of each entry depends on x-hat: the total expected is what is left."""
    corruption = CORRUPTIONS["poisson"](shape=(16, 16, 1), peak=20.0)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jnp.clip(jax.random.normal(keys[0], corruption.shape), -1.9, 2)
    observation = corruption.sample(keys[1], x)
    transform = consistent(lambda x_t, t: x_t, VarianceExploding(), corruption, observation, iterations=30)
    moved = jax.jit(transform)(x + 1.5 * jax.random.normal(keys[2], x.shape), jnp.asarray(0.5))
    left = float(jnp.mean((observation.y - corruption.forward(moved, ())) ** 2))
    expected = float(jnp.mean(corruption.noise_variance(moved, ())))
    # The last step before the weight is 0 may go some way past it.
    assert 0.3 * expected < left <= expected


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_jacobian_that_is_no_covariance_does_not_run_away(iterations):
    """Where A V A^T + noise^2 I is nearly singular, the step stays within twice the residual."""
    schedule, corruption = VarianceExploding(1e-3, 10.0), Projection(shape=(5,), measurements=2, noise_std=0.01)
    observation, x = observe(corruption, isotropic((5,)))
    x_t, t = noisy(schedule, x, 1.0)
    # A V A^T has the eigenvalues -0.9 noise^2: the step would be nine times the residual.
    inverse = jnp.linalg.pinv(observation.operator)
    jacobian = -0.9 * 0.01**2 * inverse @ inverse.T
    x_hat = jacobian @ x_t
    transform = mmps(lambda x_t, t: jacobian @ x_t, schedule, corruption, observation, iterations=iterations)
    moved = transform(x_t, t) - x_hat
    residual = jnp.linalg.norm(observation.y - corruption.forward(x_hat, observation.operator))
    reached = jnp.linalg.norm(corruption.forward(moved, observation.operator))
    assert 0.1 * residual < reached <= 2.0001 * residual


def test_the_condition_of_a_short_projection_forgets_how_its_rows_are_mixed():
    corruption = Projection(shape=(5,), measurements=2, noise_std=1e-4)
    observation, _ = observe(corruption, isotropic((5,)))
    mix = jnp.asarray([[0.8, 0.6], [-0.3, 1.1]])
    mixed = Observation(mix @ observation.y, mix @ observation.operator)
    np.testing.assert_allclose(corruption.condition(mixed), corruption.condition(observation), atol=1e-4)
