"""Linear algebra for one example: conjugate gradients, small solves, Gaussians with diagonal plus low-rank covariance."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

# Up to this size a Cholesky factor is written out entry by entry: under vmap that is elementwise arithmetic, where
# a batch of LAPACK calls costs about a microsecond a matrix.
UNROLL = 8


def conjugate_gradient(matvec: Callable[[Array], Array], b: Array, iterations: int) -> Array:
    """Solves A x = b for a symmetric positive definite A by a fixed number of conjugate-gradient iterations.

    The step sizes belong to this one example, so that under ``vmap`` the examples do not influence each other (a
    batched right-hand side given to ``jax.scipy.sparse.linalg.cg`` is one large vector). Once the residual has
    vanished the iterate stays where it is.

    Args:
        matvec: x -> A x, for arrays of b's shape.
        b: the right-hand side, any shape.
        iterations: how many iterations, at least 1.

    Returns:
        x of b's shape.

    Source: Hestenes and Stiefel 1952.
    """

    def body(carry: tuple, _: None) -> tuple[tuple, None]:
        x, r, p, rr = carry
        ap = matvec(p)
        curvature = jnp.vdot(p, ap)
        alive = (rr > 0) & (curvature > 0)
        step = jnp.where(alive, rr / jnp.where(alive, curvature, 1.0), 0.0)
        x = x + step * p
        r = r - step * ap
        rr_next = jnp.vdot(r, r)
        beta = jnp.where(alive, rr_next / jnp.where(alive, rr, 1.0), 0.0)
        return (x, r, r + beta * p, rr_next), None

    start = (jnp.zeros_like(b), b, b, jnp.vdot(b, b))
    (x, *_), _ = jax.lax.scan(body, start, None, length=iterations)
    return x


def cholesky(a: Array) -> Array:
    """The lower Cholesky factor of one symmetric positive definite matrix [n, n]; written out for n <= 8."""
    n = a.shape[-1]
    if n > UNROLL:
        return jnp.linalg.cholesky(a)
    rows: list[list[Array]] = []
    for i in range(n):
        row: list[Array] = []
        for j in range(i + 1):
            rest = a[i, j] - sum((row[k] * rows[j][k] if j < i else row[k] ** 2) for k in range(j))
            row.append(jnp.sqrt(rest) if i == j else rest / rows[j][j])
        rows.append(row)
    zero = jnp.zeros((), a.dtype)
    return jnp.stack([jnp.stack(row + [zero] * (n - len(row))) for row in rows])


def solve_lower(factor: Array, b: Array, *, transpose: bool = False) -> Array:
    """L^-1 b, or L^-T b, for a lower-triangular L [n, n] and b [n] or [n, m]; written out for n <= 8."""
    n = factor.shape[-1]
    if n > UNROLL:
        return jax.scipy.linalg.solve_triangular(factor, b, lower=True, trans="T" if transpose else 0)
    out: list[Array] = [jnp.zeros((), b.dtype)] * n
    order = range(n - 1, -1, -1) if transpose else range(n)
    for i in order:
        done = range(i + 1, n) if transpose else range(i)
        rest = b[i] - sum((factor[k, i] if transpose else factor[i, k]) * out[k] for k in done)
        out[i] = rest / factor[i, i]
    return jnp.stack(out)


def solve_psd(a: Array, b: Array) -> Array:
    """a^-1 b for a symmetric positive definite a [n, n] and b [n] or [n, m]."""
    return solve_psd_factored(cholesky(a), b)


def solve_psd_factored(factor: Array, b: Array) -> Array:
    """(L L^T)^-1 b for a lower Cholesky factor L [n, n] and b [n] or [n, m]."""
    return solve_lower(factor, solve_lower(factor, b), transpose=True)


class Gaussian(NamedTuple):
    """N(mean, diag(variance) + factor factor^T) over arrays of shape [*X].

    Attributes:
        mean: [*X].
        variance: [*X], positive, or a scalar.
        factor: [R, *X], the transpose of the usual loading matrix; R = 0 leaves a diagonal covariance.
    """

    mean: Array
    variance: Array
    factor: Array


def contract(factor: Array, x: Array) -> Array:
    """Factor x: [R, *X] and [*X] -> [R]."""
    return factor.reshape(factor.shape[0], -1) @ x.reshape(-1)


def expand(z: Array, factor: Array) -> Array:
    """factor^T z: [R] and [R, *X] -> [*X]."""
    return jnp.tensordot(z, factor, 1)


def condition_on_noisy(prior: Gaussian, x_t: Array, alpha: Array, sigma: Array) -> tuple[Gaussian, Array]:
    """The law of x given x_t = alpha x + sigma e for a Gaussian prior, which is again diagonal plus low rank.

    With x = mean + factor^T z + e', z ~ N(0, I): given z the coordinates are independent, and z itself has the
    precision I + factor (variance + (sigma / alpha)^2)^-1 factor^T given x_t.

    Args:
        prior: the law of x.
        x_t: the noisy point [*X].
        alpha: its signal level, a scalar >= 0 (0 leaves the prior).
        sigma: its noise level, a scalar > 0.

    Returns:
        the conditional Gaussian, and log N(x_t; alpha mean, alpha^2 cov + sigma^2 I) up to a constant.
    """
    total = alpha**2 * prior.variance + sigma**2
    residual = x_t - alpha * prior.mean
    variance = prior.variance * sigma**2 / total
    gain = alpha * prior.variance / total
    mean = prior.mean + gain * residual
    log_det = jnp.sum(jnp.log(jnp.broadcast_to(total, x_t.shape)))
    rank = prior.factor.shape[0]
    if rank == 0:
        return Gaussian(mean, variance, prior.factor), -0.5 * (log_det + jnp.sum(residual**2 / total))
    spread = jnp.broadcast_to(total, x_t.shape)[None]
    scaled = prior.factor / spread
    precision = jnp.eye(rank) + alpha**2 * (scaled.reshape(rank, -1) @ prior.factor.reshape(rank, -1).T)
    root = cholesky(precision)
    z = solve_psd_factored(root, alpha * contract(scaled, residual))
    left = prior.factor * (sigma**2 / spread)
    factor = solve_lower(root, left.reshape(rank, -1)).reshape(left.shape)
    log_det = log_det + 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
    # r^T C^-1 r as the least value over z of a sum of squares: a difference of large terms would not survive float32.
    rest = residual - alpha * expand(z, prior.factor)
    log_prob = -0.5 * (log_det + jnp.sum(rest**2 / total) + jnp.sum(z**2))
    return Gaussian(mean + expand(z, left), variance, factor), log_prob
