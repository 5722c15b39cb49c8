"""Linear algebra for one example, in full float32 on any backend (``full_precision``): solves, low-rank Gaussians."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Function = TypeVar("Function", bound=Callable[..., Any])
MatVec = Callable[[Array], Array]
Carry = tuple[Array, Array, Array, Array, Array]

# Up to this size a Cholesky factor is written out entry by entry: under vmap a batch of LAPACK calls costs a microsecond a matrix.
UNROLL = 8


def full_precision(function: Function) -> Function:
    """The same function with its matrix products in full float32, where accelerators by default round factors to bfloat16 or TF32.

    Networks do not mind; a closed form at noise 1e-3 does: its draws then miss y by seven times the noise.
    """

    @functools.wraps(function)
    def precise(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return precise  # type: ignore[return-value]


def _dot(a: Array, b: Array) -> Array:
    return jnp.vdot(a, b, precision=jax.lax.Precision.HIGHEST)


def conjugate_gradient(
    matvec: MatVec, b: Array, iterations: int = 1024, precondition: MatVec = lambda r: r, tolerance: float = 1e-14
) -> Array:
    """Solves A x = b for a symmetric positive definite A by preconditioned conjugate gradients.

    ``matvec`` is x -> A x for arrays of b's shape, which may be any; ``precondition`` is r -> M r with a symmetric positive
    definite M near A^-1. Iterations end where r^T M r <= tolerance b^T M b with r = b - A x, by default at about float32's
    precision, or at the given number; under ``vmap`` an example that has converged stays where it is. The derivative is that of
    the solution, A dx = db - dA x, by one more solve: that of the iterations is not finite once they have converged.

    Source: Hestenes and Stiefel 1952; Concus, Golub and O'Leary 1976 for the preconditioned form.
    """

    def solve(matvec: MatVec, b: Array) -> Array:
        z = precondition(b)
        size = _dot(b, z)

        def goes_on(carry: Carry) -> Array:
            step, _, _, _, rz = carry
            return (step < iterations) & (rz > tolerance * size)

        def iterate(carry: Carry) -> Carry:
            step, x, r, p, rz = carry
            ap = matvec(p)
            curvature = _dot(p, ap)
            # Round-off may leave a direction without curvature; there is nothing left to gain then.
            sound = curvature > 0
            length = jnp.where(sound, rz / jnp.where(sound, curvature, 1.0), 0.0)
            x, r = x + length * p, r - length * ap
            z = precondition(r)
            rz_next = jnp.where(sound, _dot(r, z), 0.0)
            return step + 1, x, r, z + (rz_next / rz) * p, rz_next

        return jax.lax.while_loop(goes_on, iterate, (jnp.zeros((), jnp.int32), jnp.zeros_like(b), b, z, size))[1]

    return jax.lax.custom_linear_solve(matvec, b, solve, symmetric=True)


@full_precision
def quadratic_log(matvec: MatVec, z: Array, steps: int) -> Array:
    """z^T log(A) z for a symmetric positive definite A, by Gauss quadrature of so many Lanczos steps from z.

    For a z of random signs its mean is log det A. ``matvec`` is x -> A x for arrays of z's shape; at most z.size steps.

    Source: Golub and Meurant 1994; Ubaru, Chen and Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature".
    """
    square = jnp.vdot(z, z)
    first = (z / jnp.sqrt(jnp.maximum(square, 1e-30))).reshape(-1)

    def step(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        basis, q = carry
        basis = basis.at[i].set(q)
        image = matvec(q.reshape(z.shape)).reshape(-1)
        diagonal = jnp.vdot(q, image)
        for _ in range(2):
            # Against all earlier vectors: the recurrence of three terms alone loses their orthogonality.
            image = image - basis.T @ (basis @ image)
        beside = jnp.linalg.norm(image)
        # A basis that is complete goes on with zeros, which the quadrature gives no weight.
        found = beside > 1e-5 * jnp.abs(diagonal)
        image = jnp.where(found, image / jnp.where(found, beside, 1.0), 0.0)
        return (basis, image), (diagonal, jnp.where(found, beside, 0.0))

    _, (diagonal, beside) = jax.lax.scan(step, (jnp.zeros((steps, z.size)), first), jnp.arange(steps))
    tridiagonal = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    values, vectors = jnp.linalg.eigh(tridiagonal)
    return square * jnp.sum(vectors[0] ** 2 * jnp.log(jnp.where(values > 0, values, 1.0)))


@full_precision
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


@full_precision
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


@full_precision
def solve_psd(a: Array, b: Array) -> Array:
    """a^-1 b for a symmetric positive definite a [n, n] and b [n] or [n, m]."""
    return solve_psd_factored(cholesky(a), b)


@full_precision
def solve_psd_factored(factor: Array, b: Array) -> Array:
    """(L L^T)^-1 b for a lower Cholesky factor L [n, n] and b [n] or [n, m]."""
    return solve_lower(factor, solve_lower(factor, b), transpose=True)


@functools.lru_cache(maxsize=32)
def cosines(n: int) -> np.ndarray:
    """The orthonormal cosine transform (type II) [n, n]: rows are places, columns frequencies."""
    basis = np.cos(np.pi * (np.arange(n)[:, None] + 0.5) * np.arange(n) / n) * math.sqrt(2 / n)
    basis[:, 0] = 1 / math.sqrt(n)
    return basis.astype(np.float32)


class Gaussian(NamedTuple):
    """N(mean, diag(variance) + factor^T factor) over arrays of shape [*X]."""

    mean: Array  # [*X]
    variance: Array  # [*X], positive, or a scalar
    factor: Array  # [R, *X], the transpose of the usual loading matrix; R = 0 leaves a diagonal covariance


@full_precision
def contract(factor: Array, x: Array) -> Array:
    """Factor x: [R, *X] and [*X] -> [R]."""
    return factor.reshape(factor.shape[0], -1) @ x.reshape(-1)


@full_precision
def expand(z: Array, factor: Array) -> Array:
    """factor^T z: [R] and [R, *X] -> [*X]."""
    return jnp.tensordot(z, factor, 1)


@full_precision
def condition_on_noisy(prior: Gaussian, x_t: Array, alpha: Array, sigma: Array) -> tuple[Gaussian, Array]:
    """The distribution of x given x_t = alpha x + sigma e for a Gaussian prior, which is again diagonal plus low rank.

    With x = mean + factor^T z + e', z ~ N(0, I), the coordinates are independent given z, and z has the precision
    I + factor (variance + (sigma / alpha)^2)^-1 factor^T given x_t. ``alpha`` >= 0 (0 leaves the prior) and ``sigma`` > 0 are
    scalars; the second result is log N(x_t; alpha mean, alpha^2 cov + sigma^2 I) up to a constant.
    """
    total = alpha**2 * prior.variance + sigma**2
    residual = x_t - alpha * prior.mean
    variance = prior.variance * sigma**2 / total
    mean = prior.mean + (alpha * prior.variance / total) * residual
    log_det = jnp.sum(jnp.log(jnp.broadcast_to(total, x_t.shape)))
    rank = prior.factor.shape[0]
    if rank == 0:
        return Gaussian(mean, variance, prior.factor), -0.5 * (log_det + jnp.sum(residual**2 / total))
    spread = jnp.broadcast_to(total, x_t.shape)[None]
    scaled = prior.factor / spread
    root = cholesky(jnp.eye(rank) + alpha**2 * (scaled.reshape(rank, -1) @ prior.factor.reshape(rank, -1).T))
    z = solve_psd_factored(root, alpha * contract(scaled, residual))
    left = prior.factor * (sigma**2 / spread)
    factor = solve_lower(root, left.reshape(rank, -1)).reshape(left.shape)
    log_det = log_det + 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
    # r^T C^-1 r as the least value over z of a sum of squares: a difference of large terms would not survive float32.
    rest = residual - alpha * expand(z, prior.factor)
    log_prob = -0.5 * (log_det + jnp.sum(rest**2 / total) + jnp.sum(z**2))
    return Gaussian(mean + expand(z, left), variance, factor), log_prob
