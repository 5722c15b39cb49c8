"""Posterior transforms: an unconditional denoiser E[x | x_t] becomes an approximation of E[x | x_t, y].

Every transform adds to x-hat the score of an approximate likelihood q(y | x_t),

    E[x | x_t, y] = x-hat + (sigma_t^2 / alpha_t) grad log q(y | x_t),

as x-hat = (x_t + sigma_t^2 score) / alpha_t (Tweedie's formula). With q = N(A x-hat, C) and C held fixed

    (sigma_t^2 / alpha_t) grad log q(y | x_t) = (sigma_t^2 / alpha_t) J^T A^T C^-1 (y - A x-hat),   J = d x-hat / d x_t.

Each is called with ``denoise`` (x_t, t) -> E[x | x_t], its noise ``schedule``, the ``corruption`` and the ``observation``, y
and its operator, and returns (x_t, t) -> an estimate of E[x | x_t, y]; so is one of your own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.gaussians.gaussians import Mixture
from diffem_jax.gaussians.linalg import Gaussian, MatVec, condition_on_noisy, conjugate_gradient, contract, expand
from diffem_jax.types import Corruption, DenoiseFn, LinearCorruption, Observation, Schedule


def mmps(
    denoise: DenoiseFn,
    schedule: Schedule,
    corruption: LinearCorruption,
    observation: Observation,
    *,
    iterations: int = 1,
    moments: Gaussian | None = None,
) -> DenoiseFn:
    """Moment matching: q(y | x_t) = N(A x-hat, A V A^T + noise_std^2 I) with V = Cov[x | x_t] = (sigma^2 / alpha) J^T.

    The denoiser is evaluated and linearised once per call; conjugate gradients solve the linear system of this one example
    with one vector-Jacobian product per iteration, and one more carries the solution back to x_t. For an exact denoiser the
    result is x-hat + V A^T (A V A^T + noise_std^2 I)^-1 (y - A x-hat), exact where x is Gaussian. A network's Jacobian is
    only nearly a covariance: a step that takes A x-hat further than 2 |y - A x-hat| is shortened to that.

    ``iterations`` of conjugate gradients are done at most, at least 1 (published: 1 to 5). With the ``moments`` of the data
    the system has V = (Cov[x]^-1 + (alpha / sigma)^2 I)^-1 instead, as if x were Gaussian, and no step is shortened.

    Source: Rozet et al. 2024, arXiv 2405.13712, section 4.2.
    """
    operator = observation.operator
    noise = corruption.noise_level(operator) ** 2

    def solve(r: Array, pull: MatVec, alpha: Array, sigma: Array) -> Array:
        covariance = pull if moments is None else gaussian_covariance(moments, alpha, sigma)

        def matvec(u: Array) -> Array:
            return corruption.forward(covariance(corruption.adjoint(u, operator)), operator) + noise * u

        return conjugate_gradient(matvec, r, iterations)

    return _gaussian_likelihood(denoise, schedule, corruption, observation, solve, bounded=moments is None)


def gaussian_covariance(moments: Gaussian, alpha: Array, sigma: Array) -> MatVec:
    """The product u -> (Cov[x]^-1 + (alpha / sigma)^2 I)^-1 u, with Cov[x | x_t] where x is Gaussian."""
    given_x_t, _ = condition_on_noisy(moments, jnp.zeros_like(moments.mean), alpha, sigma)
    return lambda u: given_x_t.variance * u + expand(contract(given_x_t.factor, u), given_x_t.factor)


def pigdm(
    denoise: DenoiseFn,
    schedule: Schedule,
    corruption: LinearCorruption,
    observation: Observation,
    *,
    data_std: float = 1.0,
) -> DenoiseFn:
    """Pseudo-inverse guidance: q(y | x_t) = N(A x-hat, v A A^T + noise_std^2 I), 1 / v = 1 / data_std^2 + (alpha / sigma)^2.

    For data_std = 1 and alpha = 1 that is the published v = sigma^2 / (1 + sigma^2). The corruption's own ``solve_gram`` solves
    the system. Exact where x ~ N(mu, data_std^2 I), data_std > 0.

    Source: Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems" (ICLR), section 3.
    """

    def solve(r: Array, pull: MatVec, alpha: Array, sigma: Array) -> Array:
        return corruption.solve_gram(r, observation.operator, 1 / (1 / data_std**2 + (alpha / sigma) ** 2))

    return _gaussian_likelihood(denoise, schedule, corruption, observation, solve)


def dps(
    denoise: DenoiseFn, schedule: Schedule, corruption: Corruption, observation: Observation, *, step: float = 1.0
) -> DenoiseFn:
    """Diffusion posterior sampling: grad log q(y | x_t) = -step grad |y - A(x-hat)|, step >= 0, for any differentiable A.

    The published algorithm moves x by that after every sampling step; here it enters as a score, so that any sampler can be
    used, and published steps do not carry over. For a linear A x-hat moves by step Cov[x | x_t] A^T r / |r|, r = y - A x-hat.

    Source: Chung et al. 2023, arXiv 2209.14687, algorithm 1.
    """

    def posterior(x_t: Array, t: Array) -> Array:
        alpha, sigma = schedule(t)

        def residual(x: Array) -> tuple[Array, Array]:
            x_hat = denoise(x, t)
            return misfit(corruption, observation, x_hat), x_hat

        r, vjp, x_hat = jax.vjp(residual, x_t, has_aux=True)
        # The norm's gradient by hand: it is 0 / 0 where the observation is met exactly.
        norm = jnp.sqrt(jnp.sum(r**2))
        (gradient,) = vjp(jnp.where(norm > 0, r / jnp.where(norm > 0, norm, 1.0), 0.0))
        return x_hat - step * (sigma**2 / alpha) * gradient

    return posterior


def consistent(
    denoise: DenoiseFn, schedule: Schedule, corruption: Corruption, observation: Observation, *, iterations: int = 4
) -> DenoiseFn:
    """x-hat moved until it agrees with y to within the noise: x-hat + w J^T r, r = y - A(x-hat), J = dA / dx, repeatedly.

    The weight w = max(0, 1 - sum_i v_i / |r|^2), with v_i the noise's variance of each measured entry given x-hat, lets the
    steps end where the misfit is the noise's. It is made for a denoiser that has seen y already, and for an A that has a
    derivative where x-hat is and does not stretch, as phase retrieval; not for clipping or JPEG.

    Source: the error-reduction steps of Fienup 1982; the weight is that of James and Stein 1961.
    """
    operator = observation.operator
    measured = corruption.observed(operator)

    def posterior(x_t: Array, t: Array) -> Array:
        def step(_: int, x_hat: Array) -> Array:
            r, pull = jax.vjp(lambda x: misfit(corruption, observation, x), x_hat)
            noise = jnp.broadcast_to(corruption.noise_variance(x_hat, operator), r.shape)
            square, expected = jnp.sum(r**2), jnp.sum(jnp.where(measured, noise, 0.0))
            weight = jnp.maximum(0.0, 1.0 - expected / jnp.where(square > 0, square, 1.0))
            # The residual is y - A(x), so its derivative points the other way.
            return x_hat - pull(jnp.where(square > 0, weight, 0.0) * r)[0]

        return jax.lax.fori_loop(0, iterations, step, denoise(x_t, t))

    return posterior


POSTERIORS: dict[str, Callable[..., DenoiseFn]] = {"mmps": mmps, "dps": dps, "pigdm": pigdm}


def single_gaussian(mixture: Mixture) -> Gaussian:
    """The one Gaussian with the mixture's mean and covariance, diagonal plus low rank: ``moments`` for ``mmps``.

    The rank is K (R + 1) for K > 1 components of rank R: their own factors and the spread of their means.
    """
    weights = jnp.exp(mixture.log_weights)
    mean, variance = expand(weights, mixture.components.mean), expand(weights, mixture.components.variance)
    scale = jax.vmap(lambda weight, factor: jnp.sqrt(weight) * factor)
    factor = scale(weights, mixture.components.factor).reshape(-1, *mean.shape)
    if len(weights) > 1:
        factor = jnp.concatenate([factor, scale(weights, mixture.components.mean - mean[None])])
    return Gaussian(mean, variance, factor)


def _gaussian_likelihood(
    denoise: DenoiseFn,
    schedule: Schedule,
    corruption: LinearCorruption,
    observation: Observation,
    solve: Callable[[Array, MatVec, Array, Array], Array],
    bounded: bool = False,
) -> DenoiseFn:
    """x-hat + (sigma^2 / alpha) J^T A^T w, w = solve(y - A x-hat, pull, alpha, sigma); ``bounded`` to twice the residual."""

    def posterior(x_t: Array, t: Array) -> Array:
        alpha, sigma = schedule(t)
        x_hat, vjp = jax.vjp(lambda x: denoise(x, t), x_t)

        def pull(u: Array) -> Array:
            return (sigma**2 / alpha) * vjp(u)[0]

        residual = misfit(corruption, observation, x_hat)
        step = pull(corruption.adjoint(solve(residual, pull, alpha, sigma), observation.operator))
        if not bounded:
            return x_hat + step
        # V A^T M^-1 r with a covariance V never takes A x-hat past y. A network's Jacobian is only nearly a covariance: where
        # it is not, steps have no bound, and a few draws run away and spoil the next round.
        reach = jnp.sum(corruption.forward(step, observation.operator) ** 2)
        allowed = 4 * jnp.sum(residual**2)
        return x_hat + jnp.where(reach > allowed, jnp.sqrt(allowed / jnp.where(reach > 0, reach, 1.0)), 1.0) * step

    return posterior


def misfit(corruption: Corruption, observation: Observation, x_hat: Array) -> Array:
    """The residual y - A(x-hat), exactly 0 where nothing is observed, whatever y holds there."""
    y, operator = observation
    return corruption.keep_observed(y - corruption.forward(x_hat, operator), operator)
