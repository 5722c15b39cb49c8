"""Solves for one example, and Gaussians given a noisy point, against dense double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.gaussians.linalg import (
    Gaussian,
    cholesky,
    condition_on_noisy,
    conjugate_gradient,
    contract,
    expand,
    quadratic_log,
    solve_lower,
    solve_psd,
)


def spd(n, seed=0):
    root = np.random.default_rng(seed).normal(size=(n, n))
    return (root @ root.T + n * np.eye(n)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 3, 8, 9])
def test_cholesky_and_solves(n):
    a, b = spd(n), np.random.default_rng(1).normal(size=(n, 2)).astype(np.float32)
    factor = cholesky(a)
    np.testing.assert_allclose(factor, np.linalg.cholesky(a.astype(np.float64)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(factor) @ solve_lower(factor, b), b, atol=1e-4)
    np.testing.assert_allclose(np.asarray(factor).T @ solve_lower(factor, b[:, 0], transpose=True), b[:, 0], atol=1e-4)
    np.testing.assert_allclose(jax.vmap(solve_psd)(a[None], b[None])[0], np.linalg.solve(a, b), rtol=1e-3, atol=1e-5)


def test_conjugate_gradient_is_exact_after_n_iterations_and_then_stays():
    a, b = spd(5), np.random.default_rng(1).normal(size=5).astype(np.float32)
    truth = np.linalg.solve(a, b)
    np.testing.assert_allclose(conjugate_gradient(lambda x: a @ x, b, 5), truth, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(conjugate_gradient(lambda x: a @ x, b, 200), truth, rtol=1e-4, atol=1e-6)
    assert np.abs(conjugate_gradient(lambda x: a @ x, b, 1) - truth).max() > 1e-3


def test_conjugate_gradient_keeps_examples_apart():
    """An example's solution depends neither on a huge neighbour nor on one that is zero."""
    matrices = jnp.stack([spd(4, seed) for seed in range(3)])
    b = jax.random.normal(jax.random.key(0), (3, 4)) * jnp.array([[1.0], [1e6], [0.0]])
    solve = jax.vmap(lambda a, b: conjugate_gradient(lambda x: a @ x, b, 3))
    apart = jnp.stack([solve(matrices[i : i + 1], b[i : i + 1])[0] for i in range(3)])
    np.testing.assert_allclose(solve(matrices, b), apart, rtol=1e-5)
    assert not np.asarray(apart[2]).any()


@pytest.mark.parametrize(("n", "condition"), [(3, 1.5), (8, 1e3), (32, 1e3), (128, 10.0)])
def test_conjugate_gradient_stays_once_it_has_converged(n, condition):
    """Iterations after convergence divide round-off by round-off: examples, right sides of all sizes, none may drift."""
    rng = np.random.default_rng(n)
    bases = np.linalg.qr(rng.normal(size=(20, n, n)))[0]
    values = np.exp(rng.uniform(-np.log(condition), 0, (20, 1, n)))
    matrices, b = (
        (bases * values) @ np.swapaxes(bases, 1, 2),
        rng.normal(size=(20, n)) * 10 ** rng.uniform(-3, 1, (20, 1)),
    )
    run = jax.jit(jax.vmap(lambda a, b: conjugate_gradient(lambda x: a @ x, b)))
    found, right = run(jnp.float32(matrices), jnp.float32(b)), np.linalg.solve(matrices, b[..., None])[..., 0]
    assert (np.linalg.norm(found - right, axis=1) < 1e-2 * np.linalg.norm(right, axis=1)).all()


def test_conjugate_gradient_has_the_derivative_of_the_solution():
    """Long after convergence, for a right side of 0 and under vmap."""
    a, w = spd(5), jax.random.normal(jax.random.key(0), (5,))
    b = jnp.stack([jax.random.normal(jax.random.key(1), (5,)), jnp.zeros(5)])

    def value(scale, b):
        return jnp.vdot(w, conjugate_gradient(lambda x: scale * (a @ x), b))

    by_scale, by_b = jax.jit(jax.vmap(jax.grad(value, (0, 1)), (None, 0)))(2.0, b)
    dual, solution = np.linalg.solve(2.0 * a, w), np.linalg.solve(2.0 * a, b[0])
    np.testing.assert_allclose(by_b, np.stack([dual, dual]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(by_scale, [-dual @ a @ solution, 0.0], rtol=1e-3, atol=1e-6)


def test_a_preconditioner_saves_iterations():
    scales = jnp.logspace(0, 4, 64)
    a = jnp.diag(scales) + 0.1 * spd(64) / 64
    b = jax.random.normal(jax.random.key(0), (64,))
    truth = np.linalg.solve(np.asarray(a, float), b)
    plain, helped = (
        np.linalg.norm(conjugate_gradient(lambda x: a @ x, b, 8, p) - truth)
        for p in (lambda r: r, lambda r: r / scales)
    )
    assert helped < 1e-3 * np.linalg.norm(truth) < 0.1 * plain


def test_quadratic_log_is_exact_after_n_steps():
    a, z = spd(6), jax.random.normal(jax.random.key(0), (2, 3))
    values, vectors = np.linalg.eigh(a.astype(float))
    truth = np.sum(np.log(values) * (vectors.T @ np.asarray(z, float).reshape(-1)) ** 2)
    np.testing.assert_allclose(quadratic_log(lambda x: (a @ x.reshape(-1)).reshape(2, 3), z, 6), truth, rtol=1e-4)
    # A basis that ends early: both directions of an identity are found in one step.
    np.testing.assert_allclose(quadratic_log(lambda x: 3.0 * x, z, 4), np.log(3.0) * jnp.vdot(z, z), rtol=1e-5)


def test_contract_and_expand_are_transposes():
    factor = jax.random.normal(jax.random.key(0), (2, 3, 4))
    x, z = jnp.arange(12.0).reshape(3, 4), jnp.array([1.0, -2.0])
    np.testing.assert_allclose(jnp.vdot(z, contract(factor, x)), jnp.vdot(expand(z, factor), x), rtol=1e-5)


@pytest.mark.parametrize("scalar", [True, False])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_condition_on_noisy(scalar, rank, alpha):
    shape, sigma, rng = (2, 3), 0.4, np.random.default_rng(0)
    variance = 0.5 if scalar else rng.uniform(0.2, 1.0, shape)
    law = Gaussian(rng.normal(size=shape), variance, rng.normal(size=(rank, *shape)))
    points = rng.normal(size=(2, *shape))

    def dense(x_t):
        u = law.factor.reshape(rank, 6)
        cov = np.diag(np.broadcast_to(law.variance, shape).reshape(-1)) + u.T @ u
        total = alpha**2 * cov + sigma**2 * np.eye(6)
        gain = alpha * np.linalg.solve(total, cov).T
        r = (x_t - alpha * law.mean).reshape(-1)
        log_prob = -0.5 * (r @ np.linalg.solve(total, r) + np.linalg.slogdet(total)[1])
        return law.mean + (gain @ r).reshape(shape), cov - alpha * gain @ cov, log_prob

    single = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), law)
    run = jax.jit(lambda x_t: condition_on_noisy(single, x_t, jnp.float32(alpha), jnp.float32(sigma)))
    for point in points:
        (got, log_prob), (mean, cov, evidence) = run(jnp.float32(point)), dense(point)
        u = np.asarray(got.factor).reshape(rank, 6)
        np.testing.assert_allclose(got.mean, mean, atol=1e-4)
        own = np.diag(np.broadcast_to(got.variance, shape).reshape(-1))
        np.testing.assert_allclose(own + u.T @ u, cov, atol=1e-4)
        assert np.shape(got.variance) == np.shape(variance)
        np.testing.assert_allclose(log_prob, evidence, atol=1e-3)


def test_evidence_survives_low_noise():
    """At sigma = 1e-3 the terms of the evidence are a million times larger than their difference."""
    rng = np.random.default_rng(0)
    u, z = rng.normal(size=(1, 64)), 2.0
    law = Gaussian(jnp.zeros(64), jnp.float32(1e-6), jnp.float32(u))
    x_t = jnp.float32(z * u[0] + 1e-3 * rng.normal(size=64))
    _, log_prob = condition_on_noisy(law, x_t, jnp.ones(()), jnp.float32(1e-3))
    total = 2e-6 * np.eye(64) + u.T @ u
    r = np.asarray(x_t, np.float64)
    truth = -0.5 * (r @ np.linalg.solve(total, r) + np.linalg.slogdet(total)[1])
    np.testing.assert_allclose(log_prob, truth, atol=0.05)
