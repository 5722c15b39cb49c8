"""The stationary Gaussian: conditioning against dense matrices in double precision, and what a fit recovers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.corruptions import BoxDownsampling, BoxMask, FourierMask, GaussianBlur, PixelMask, Projection
from diffem_jax.denoisers import bind, moments_denoiser, posterior_denoiser
from diffem_jax.gaussians import STARTS, stationary
from diffem_jax.gaussians.starts import start_arrays, start_of_arrays
from diffem_jax.networks import MLP
from diffem_jax.run.start import load_start
from diffem_jax.samplers import VarianceExploding
from diffem_jax.storage import checkpoints
from diffem_jax.storage.workdir import Workdir

SHAPES = {"series": (24, 2), "image": (8, 6, 3), "volume": (4, 4, 4, 1), "vector": (12,)}


def make_model(shape, seed=0):
    """A spectrum that falls with the frequency, with other correlations between channels at each."""
    rng = np.random.default_rng(seed)
    mean = jnp.asarray(rng.normal(size=shape), jnp.float32)
    guess = stationary.first_guess(mean, 1.0)
    mixing = rng.normal(size=(*guess.power.shape[1:], *guess.basis.shape[:2]))
    basis = np.moveaxis(np.linalg.qr(mixing)[0], (-2, -1), (0, 1))
    tilt = np.linspace(0.4, 1.6, len(basis)).reshape(-1, *(1,) * (guess.power.ndim - 1))
    power = guess.power * jnp.asarray(tilt, jnp.float32)
    return guess._replace(mean=mean, basis=jnp.asarray(basis, jnp.float32), power=power)


def as_matrix(function, shape):
    size = int(np.prod(shape))
    columns = jax.jit(jax.vmap(function))(jnp.eye(size).reshape(size, *shape))
    return np.asarray(columns, np.float64).reshape(size, -1).T


def covariance(model):
    return as_matrix(lambda x: stationary.scale(model, model.power, x), model.mean.shape)


def dense_answer(corruption, model, observation):
    """E[x | y], Cov[x | y] and log p(y)."""
    y, operator = observation
    forward, s = as_matrix(lambda x: corruption.forward(x, operator), corruption.shape), covariance(model)
    kept = np.broadcast_to(np.asarray(corruption.observed(operator)), y.shape).reshape(-1)
    a, r = forward[kept], np.asarray(y, np.float64).reshape(-1)[kept]
    r = r - a @ np.asarray(model.mean, np.float64).reshape(-1)
    gram = a @ s @ a.T + float(corruption.noise_level(operator)) ** 2 * np.eye(len(a))
    gain = np.linalg.solve(gram, a @ s).T
    log_prob = -0.5 * (r @ np.linalg.solve(gram, r) + np.linalg.slogdet(gram)[1])
    return (gain @ r).reshape(corruption.shape) + np.asarray(model.mean), s - gain @ a @ s, log_prob


def observe(corruption, model, seed=0):
    return corruption.sample(jax.random.key(seed + 1), stationary.sample(jax.random.key(seed), model))


@pytest.mark.parametrize("kind", SHAPES)
def test_power_is_the_variance_of_orthonormal_components(kind):
    model = make_model(SHAPES[kind])
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance(model)), np.sort(np.ravel(model.power)), rtol=1e-3)
    x = jax.random.normal(jax.random.key(0), SHAPES[kind])
    z = stationary.components(model, x)
    np.testing.assert_allclose(stationary.from_components(model, z), x, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(z**2), jnp.sum(x**2), rtol=1e-5)


MAKERS = {
    "mask": partial(PixelMask, rate=0.6, noise_std=0.01),
    "noisy_mask": partial(PixelMask, rate=0.5, noise_std=0.5),
    "box": partial(BoxMask, noise_std=0.01),
    "blur": partial(GaussianBlur, std=1.0, noise_std=0.05),
    "fourier": partial(FourierMask, acceleration=2.0, noise_std=0.05, complex_image=False),
    "downsampling": partial(BoxDownsampling, noise_std=0.05),
    "projection": partial(Projection, measurements=20, noise_std=0.05),
}


@pytest.mark.parametrize(
    ("name", "kind"), [*(("mask", kind) for kind in SHAPES), *((name, "image") for name in MAKERS if name != "mask")]
)
def test_posterior_mean_is_the_dense_one(name, kind):
    corruption, model = MAKERS[name](shape=SHAPES[kind]), make_model(SHAPES[kind])
    observation = observe(corruption, model)
    mean, cov, _ = dense_answer(corruption, model, observation)
    found = jax.jit(lambda o: stationary.posterior_mean(corruption, model, o))(observation)
    # Solves end at about a hundredth of what is open.
    assert np.sqrt(np.mean((found - mean) ** 2)) < 0.03 * np.sqrt(np.mean(np.diag(cov)))


def test_draws_have_the_mean_and_covariance_given_y():
    shape = (4, 4, 1)
    corruption, model = PixelMask(shape=shape, rate=0.5, noise_std=0.3), make_model(shape)
    observation = observe(corruption, model)
    mean, cov, _ = dense_answer(corruption, model, observation)
    keys = jax.random.split(jax.random.key(2), 20_000)
    draws = jax.jit(jax.vmap(lambda k: stationary.draw(k, corruption, model, observation)))(keys)
    flat, scale = np.asarray(draws, np.float64).reshape(len(keys), -1), np.sqrt(np.diag(cov))
    np.testing.assert_allclose((flat.mean(0) - mean.reshape(-1)) / scale, 0.0, atol=0.04)
    np.testing.assert_allclose(np.cov(flat.T) / np.outer(scale, scale), cov / np.outer(scale, scale), atol=0.06)


def test_noisy_x_leaves_a_stationary_gaussian():
    model, x = make_model((4, 3, 2)), jax.random.normal(jax.random.key(5), (4, 3, 2))
    left, s, mean = stationary.given_noisy(model, x, jnp.float32(0.7)), covariance(model), np.ravel(model.mean)
    gain = s @ np.linalg.inv(s + 0.49 * np.eye(len(s)))
    np.testing.assert_allclose(np.ravel(left.mean), mean + gain @ (np.ravel(x) - mean), atol=1e-4)
    np.testing.assert_allclose(covariance(left), s - gain @ s, atol=1e-4)


@pytest.fixture(scope="module")
def fitted():
    """The truth, what it was observed as with half of the pixels hidden, and a fit."""
    shape = (8, 8, 2)
    truth = make_model(shape)._replace(mean=jnp.zeros(shape).at[2:6, 2:6].set(1.0))
    corruption = PixelMask(shape=shape, rate=0.5, noise_std=0.05)
    x = jax.vmap(lambda k: stationary.sample(k, truth))(jax.random.split(jax.random.key(0), 512))
    observations = jax.jit(jax.vmap(corruption.sample))(jax.random.split(jax.random.key(1), len(x)), x)
    fit = STARTS["stationary"](jax.random.key(2), corruption, observations, iterations=6)
    return corruption, truth, x, observations, fit


def test_fit_recovers_mean_image_and_covariance(fitted):
    corruption, truth, _, observations, fit = fitted
    assert np.sqrt(np.mean((fit.mean - truth.mean) ** 2)) < 0.1
    difference = covariance(fit) - covariance(truth)
    assert np.linalg.norm(difference) < 0.1 * np.linalg.norm(covariance(truth))
    few = [jax.tree.map(lambda a, i=i: a[i], observations) for i in range(16)]
    values = [np.mean([dense_answer(corruption, model, one)[2] for one in few]) for model in (truth, fit)]
    assert values[0] - 3 < values[1] < values[0] + 6  # of 64 measurements each; the fit has seen them


def test_tabulated_variances_are_those_of_the_errors(fitted):
    corruption, _, x, observations, fit = fitted
    mean, variance = jax.jit(jax.vmap(lambda o: stationary.moments(corruption, fit, o)))(observations)
    error, hidden = (mean - x) ** 2, np.broadcast_to(observations.operator == 0, x.shape)
    variance = np.asarray(variance)
    for where in (~hidden, hidden, hidden & (variance > np.median(variance[hidden]))):
        assert 0.9 < np.mean(error[where]) / np.mean(variance[where]) < 1.1


def test_spread_follows_the_amplitude_of_what_is_seen_nearby(fitted):
    """Of images that are five times as strong as others; those of a Gaussian all have the model's variances."""
    corruption, truth, x, _, gaussian = fitted
    strong = np.arange(len(x)) % 2 == 0
    x = truth.mean[None] + (x - truth.mean[None]) * jnp.where(strong, 1.5, 0.3)[:, None, None, None]
    observations = jax.jit(jax.vmap(corruption.sample))(jax.random.split(jax.random.key(3), len(x)), x)
    fit = STARTS["stationary"](jax.random.key(2), corruption, observations, iterations=6)
    assert fit.steady < 0.1 < gaussian.steady
    hidden = np.broadcast_to(observations.operator == 0, x.shape)

    def ratios(model):
        """Squared errors over variances, and over those of draws, of hidden pixels of strong images and of weak ones."""
        mean, variance = jax.jit(jax.vmap(lambda o: stationary.moments(corruption, model, o)))(observations)
        keys = jax.random.split(jax.random.key(4), len(x))
        draws = jax.jit(jax.vmap(lambda k, o: stationary.draw(k, corruption, model, o)))(keys, observations)
        parts = [hidden & part[:, None, None, None] for part in (strong, ~strong)]
        return [np.mean((mean - x)[p] ** 2) / np.mean(v[p]) for v in (variance, (draws - mean) ** 2) for p in parts]

    by_amplitude, plain = ratios(fit), ratios(fit._replace(steady=jnp.float32(1e4)))
    assert all(0.5 < ratio < 1.5 for ratio in by_amplitude), by_amplitude
    assert max(plain[1::2]) < 0.2, plain


@pytest.mark.parametrize("make", [moments_denoiser, posterior_denoiser])
def test_denoiser_without_a_network_is_the_starts_answer(make):
    """E[x | x_t], and E[x | x_t, y]: by one posterior mean for all noise levels at large noise alone, else at every one."""
    shape, schedule = (4, 3, 2), VarianceExploding()
    corruption, model = PixelMask(shape=shape, rate=0.5, noise_std=0.1), make_model(shape)
    observation, x_t = observe(corruption, model), jax.random.normal(jax.random.key(7), shape)
    denoiser = make(MLP(features=(8,), embedding=4), schedule, corruption, shape, model)
    params = denoiser.init(jax.random.key(0))
    denoise = jax.jit(bind(denoiser, params, observation))
    for t in map(jnp.float32, (0.55, 1.0)):
        left = stationary.given_noisy(model, x_t, schedule(t)[1])
        np.testing.assert_allclose(bind(denoiser, params)(x_t, t), left.mean, atol=1e-4)
        if make is posterior_denoiser or t == 1:
            expected = dense_answer(corruption, left, observation)[0]
            np.testing.assert_allclose(denoise(x_t, t), expected, atol=0.03)


def test_start_survives_its_file(tmp_path):
    model, folder = make_model((4, 3, 2)), Workdir(tmp_path)
    checkpoints.save(folder.start / "fit", start_arrays(model), {})
    jax.tree.map(np.testing.assert_array_equal, load_start(folder), model)
    # One of before amplitudes has none.
    older = {name: array for name, array in start_arrays(model).items() if name not in ("score", "steady")}
    assert start_of_arrays(older).steady == stationary.STEADY[-1]
