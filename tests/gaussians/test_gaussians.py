"""Solves, and exact conditioning of Gaussians and mixtures, against dense linear algebra in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.corruptions import Denoising, PixelMask, Projection, VaryingNoise
from diffem_jax.gaussians import Mixture, linalg, mixture_posterior_mean, sample_posterior
from diffem_jax.gaussians.gaussians import condition_on_observation, overall_moments
from diffem_jax.gaussians.linalg import Gaussian, condition_on_noisy, conjugate_gradient, solve_lower
from diffem_jax.types import Observation


def spd(n, seed=0):
    root = np.random.default_rng(seed).normal(size=(n, n))
    return (root @ root.T + n * np.eye(n)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 3, 8, 9])
def test_cholesky_and_solves(n):
    a, b = spd(n), np.random.default_rng(1).normal(size=(n, 2)).astype(np.float32)
    factor = linalg.cholesky(a)
    np.testing.assert_allclose(factor, np.linalg.cholesky(a.astype(np.float64)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(factor) @ solve_lower(factor, b), b, atol=1e-4)
    np.testing.assert_allclose(np.asarray(factor).T @ solve_lower(factor, b[:, 0], transpose=True), b[:, 0], atol=1e-4)
    solved = jax.vmap(linalg.solve_psd)(a[None], b[None])[0]
    np.testing.assert_allclose(solved, np.linalg.solve(a, b), rtol=1e-3, atol=1e-5)


def test_conjugate_gradient_is_exact_after_n_iterations_and_then_stays():
    a, b = spd(5), np.random.default_rng(1).normal(size=5).astype(np.float32)
    truth = np.linalg.solve(a, b)
    np.testing.assert_allclose(conjugate_gradient(lambda x: a @ x, b, 5), truth, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(conjugate_gradient(lambda x: a @ x, b, 200), truth, rtol=1e-4, atol=1e-6)
    assert np.abs(conjugate_gradient(lambda x: a @ x, b, 1) - truth).max() > 1e-3


@pytest.mark.parametrize(("n", "condition"), [(3, 1.5), (8, 1e3), (32, 1e3), (128, 10.0)])
def test_conjugate_gradient_stays_once_it_has_converged(n, condition):
    """Iterations after convergence divide round-off by round-off: examples, right sides of all sizes, none may drift."""
    rng = np.random.default_rng(n)
    bases = np.linalg.qr(rng.normal(size=(20, n, n)))[0]
    values = np.exp(rng.uniform(-np.log(condition), 0, (20, 1, n)))
    matrices = (bases * values) @ np.swapaxes(bases, 1, 2)
    b = rng.normal(size=(20, n)) * 10 ** rng.uniform(-3, 1, (20, 1))
    run = jax.jit(jax.vmap(lambda a, b: conjugate_gradient(lambda x: a @ x, b)))
    found, right = run(jnp.float32(matrices), jnp.float32(b)), np.linalg.solve(matrices, b[..., None])[..., 0]
    assert (np.linalg.norm(found - right, axis=1) < 1e-2 * np.linalg.norm(right, axis=1)).all()


def test_conjugate_gradient_has_the_derivative_of_the_solution():
    a, w = spd(5), jax.random.normal(jax.random.key(0), (5,))
    b = jnp.stack([jax.random.normal(jax.random.key(1), (5,)), jnp.zeros(5)])

    def value(scale, b):
        return jnp.vdot(w, conjugate_gradient(lambda x: scale * (a @ x), b))

    by_scale, by_b = jax.jit(jax.vmap(jax.grad(value, (0, 1)), (None, 0)))(2.0, b)
    dual, solution = np.linalg.solve(2.0 * a, w), np.linalg.solve(2.0 * a, b[0])
    np.testing.assert_allclose(by_b, np.stack([dual, dual]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(by_scale, [-dual @ a @ solution, 0.0], rtol=1e-3, atol=1e-6)


def test_evidence_survives_low_noise():
    """Its terms are a million times larger than their difference."""
    rng = np.random.default_rng(0)
    u, z = rng.normal(size=(1, 64)), 2.0
    law = Gaussian(jnp.zeros(64), jnp.float32(1e-6), jnp.float32(u))
    x_t = jnp.float32(z * u[0] + 1e-3 * rng.normal(size=64))
    _, log_prob = condition_on_noisy(law, x_t, jnp.ones(()), jnp.float32(1e-3))
    total = 2e-6 * np.eye(64) + u.T @ u
    r = np.asarray(x_t, np.float64)
    truth = -0.5 * (r @ np.linalg.solve(total, r) + np.linalg.slogdet(total)[1])
    np.testing.assert_allclose(log_prob, truth, atol=0.05)


D = 4
CORRUPTIONS = {
    "mask": PixelMask(shape=(D,), rate=0.5, noise_std=0.3),
    "projection": Projection(shape=(D,), measurements=2, noise_std=0.3),
    "denoising": Denoising(shape=(D,), noise_std=0.3),
    "varying_noise": VaryingNoise(shape=(D,), noise_std=0.1, noise_std_max=0.8),
}


def mixture(components, rank, scalar, seed=0):
    rng = np.random.default_rng(seed)
    variance = rng.uniform(0.2, 1.0, (components, *(() if scalar else (D,))))
    weights = rng.uniform(0.5, 1.5, components)
    parts = Gaussian(rng.normal(size=(components, D)), variance, rng.normal(size=(components, rank, D)))
    law = Mixture(np.log(weights / weights.sum()), parts)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), law)


def observe(corruption, seed=3):
    """An observation whose mask shows some entries and hides others."""
    keys = jax.random.split(jax.random.key(seed), 2)
    observation = corruption.sample(keys[0], jax.random.normal(keys[1], (D,)))
    if isinstance(corruption, PixelMask):
        mask = jnp.array([1.0, 0.0, 1.0, 0.0])
        observation = Observation(jnp.array([0.7, 0.0, -1.1, 0.0]), mask)
    return observation


def dense_posterior(corruption, law, looks):
    """(weights, means, covariances, log evidences) of a mixture given several looks (y, A, noise variance)."""
    a = np.concatenate([a for _, a, _ in looks])
    y = np.concatenate([y for y, _, _ in looks])
    noise = np.concatenate([np.full(len(y), v) for y, _, v in looks])
    parts = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), law)
    means, covs, evidences = [], [], []
    for k in range(len(parts.log_weights)):
        mean, variance, u = (leaf[k] for leaf in parts.components)
        prior = np.diag(np.broadcast_to(variance, (D,))) + u.T @ u
        total = a @ prior @ a.T + np.diag(noise)
        gain = prior @ a.T @ np.linalg.inv(total)
        r = y - a @ mean
        means.append(mean + gain @ r)
        covs.append(prior - gain @ a @ prior)
        evidences.append(-0.5 * (r @ np.linalg.solve(total, r) + np.linalg.slogdet(total)[1]))
    joint = parts.log_weights + evidences
    weights = np.exp(joint - joint.max())
    return weights / weights.sum(), np.array(means), np.array(covs), np.array(evidences)


def look(corruption, observation):
    y, operator = observation
    a = np.asarray(jax.vmap(corruption.forward, (0, None))(jnp.eye(D), operator), np.float64).T
    seen = np.broadcast_to(np.asarray(corruption.observed(operator)), y.shape)
    return np.asarray(y, np.float64)[seen], a[seen], float(corruption.noise_level(operator)) ** 2


@pytest.mark.parametrize(("scalar", "rank"), [(True, 0), (False, 2)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_condition_on_observation(name, scalar, rank):
    corruption = CORRUPTIONS[name]
    law, observation = mixture(3, rank, scalar), observe(corruption)
    post = jax.jit(jax.vmap(lambda c: condition_on_observation(corruption, c, observation)))(law.components)
    _, means, _, evidences = dense_posterior(corruption, law, [look(corruption, observation)])
    np.testing.assert_allclose(post.mean, means, atol=2e-4)
    # The evidence is known up to a constant of the operator.
    np.testing.assert_allclose(np.diff(post.log_prob), np.diff(evidences), atol=2e-3)
    rebuilt = law.components.mean + jnp.einsum("kr,krd->kd", post.z, law.components.factor) + post.residual
    np.testing.assert_allclose(post.mean, rebuilt, atol=1e-5)


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_mixture_posterior_mean(name, components):
    corruption, alpha, sigma = CORRUPTIONS[name], 0.8, 0.5
    law, observation = mixture(components, 2, True), observe(corruption)
    x_t = jax.random.normal(jax.random.key(8), (D,))
    noisy = (np.asarray(x_t, np.float64), alpha * np.eye(D), sigma**2)
    for seen, looks in ((None, [noisy]), (observation, [noisy, look(corruption, observation)])):
        run = jax.jit(lambda x_t, seen=seen: mixture_posterior_mean(corruption, law, x_t, alpha, sigma, seen))
        weights, means, _, _ = dense_posterior(corruption, law, looks)
        np.testing.assert_allclose(run(x_t), weights @ means, atol=5e-4)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_posterior_draws(name):
    corruption, count = CORRUPTIONS[name], 8192
    law, observation = mixture(2, 1, False), observe(corruption)
    run = jax.jit(jax.vmap(lambda key: sample_posterior(key, corruption, law, observation)))
    draws = np.asarray(run(jax.random.split(jax.random.key(0), count)), np.float64)
    weights, means, covs, _ = dense_posterior(corruption, law, [look(corruption, observation)])
    mean = weights @ means
    off = means - mean
    cov = np.einsum("k,kij->ij", weights, covs + off[:, :, None] * off[:, None, :])
    assert (np.abs(draws.mean(0) - mean) < 5 * draws.std(0) / np.sqrt(count)).all()
    products = (draws - mean)[:, :, None] * (draws - mean)[:, None, :]
    assert (np.abs(products.mean(0) - cov) < 5 * products.std(0) / np.sqrt(count)).all()


@pytest.mark.parametrize("rank", [0, 1])
def test_hidden_entries_may_hold_anything(rank):
    corruption, law = CORRUPTIONS["mask"], mixture(2, rank, False)
    observation = observe(corruption)
    spoiled = observation._replace(y=jnp.where(observation.operator > 0, observation.y, jnp.nan))

    @jax.jit
    def run(observation):
        post = condition_on_observation(corruption, jax.tree.map(lambda a: a[0], law.components), observation)
        one = jnp.ones(())
        mean = mixture_posterior_mean(corruption, law, jnp.zeros(D), one, one, observation)
        return post, mean, sample_posterior(jax.random.key(0), corruption, law, observation)

    for a, b in zip(jax.tree.leaves(run(observation)), jax.tree.leaves(run(spoiled)), strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("scalar", [True, False])
def test_overall_moments_are_those_of_draws(scalar):
    law = mixture(3, 2, scalar)
    weights, means, covs, _ = dense_posterior(None, law, [(np.zeros(0), np.zeros((0, D)), 1.0)])
    mean, variance = overall_moments(law)
    off = means - weights @ means
    np.testing.assert_allclose(mean, weights @ means, atol=1e-5)
    spread = weights @ (np.trace(covs, axis1=1, axis2=2) + (off**2).sum(1))
    np.testing.assert_allclose(variance, spread / D, rtol=1e-4)
