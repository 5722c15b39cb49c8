"""Denoisers whose base is a fitted prior's exact posterior, for linear corruptions; the network adds what that leaves open.

With a prior N(mu, s^2 I) and y = A x + n, n ~ N(0, noise_std^2 I):

    v     = 1 / (1/s^2 + 1/sigma^2)
    m0    = v (mu/s^2 + x_t/sigma^2)                                      E[x | x_t]
    m     = m0 + v A^T (v A A^T + noise_std^2 I)^-1 (y - A m0)            E[x | x_t, y]
    x-hat = m + sqrt(v) P F(c_in x_t, m, log sigma, condition)
    P r   = r - v A^T (v A A^T + noise_std^2 I)^-1 A r                    what y leaves open of r

``posterior_denoiser`` has this for any mixture of Gaussians as the prior, with a solve at every sampler step;
``moments_denoiser`` solves once per draw, and goes on with the mean and the variances of x given y; ``start_denoiser`` is
the prior's: no y, and E[x | x_t] of the fitted start as m. The network's last layer begins at zero, so that each first
denoiser is the start's own. For a schedule with alpha_t read x_t / alpha_t and sigma_t / alpha_t.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.denoisers.denoiser import Base, Denoiser, attach, blank_condition, combined, precondition
from diffem_jax.gaussians import gaussians
from diffem_jax.gaussians.gaussians import Mixture, Start, mixture_posterior_mean, overall_moments
from diffem_jax.gaussians.linalg import Gaussian, full_precision
from diffem_jax.gaussians.stationary import Stationary
from diffem_jax.types import LinearCorruption, Observation, PyTree, Schedule


class Moments(NamedTuple):
    """What is computed once per draw: the condition array, and the prior's mean and variance of x given y."""

    observation: Observation
    condition: Array
    mean: Array  # E[x | y], [*X]
    variance: Array  # Var[x | y], [*X], or its average [] where the corruption has closed forms for that alone


def observation_moments(corruption: LinearCorruption, prior: Start, observation: Observation) -> Moments:
    """The moments of x given y under a prior."""
    mean, variance = gaussians.posterior_moments(corruption, prior, observation)
    variance = variance if gaussians.has_exact_diagonal(corruption) else jnp.mean(variance)
    return Moments(observation, corruption.condition(observation), mean, variance)


def posterior_denoiser(
    network: nn.Module, schedule: Schedule, corruption: LinearCorruption, shape: tuple[int, ...], base: Start
) -> Denoiser:
    """The equations above with the prior ``base``: its exact E[x | x_t, y]; the network sees m as well."""
    blank = blank_condition(corruption, shape)
    _, spread = overall_moments(base)

    def at(m: Array, x: Array, ratio: Array, condition: Array) -> Base:
        std = jnp.sqrt(combined(spread, ratio))
        return Base(m, std, x * jax.lax.rsqrt(spread + ratio**2), attach(m, condition))

    def prior(x: Array, ratio: Array) -> Base:
        return at(mean_given_noisy(base, x, ratio), x, ratio, blank)

    def posterior(context: Moments, x: Array, ratio: Array) -> Base:
        m = mixture_posterior_mean(corruption, base, x, jnp.ones(()), ratio, context.observation)
        return at(m, x, ratio, context.condition)

    def project(context: Moments, ratio: Array, out: Array) -> Array:
        return open_part(corruption, context.observation.operator, combined(spread, ratio), out)

    given = network, schedule, shape, attach(jnp.zeros(shape), blank), prior, posterior
    return precondition(*given, left_by_context(base), partial(observation_moments, corruption, base), project)


def moments_denoiser(
    network: nn.Module, schedule: Schedule, corruption: LinearCorruption, shape: tuple[int, ...], start: Start
) -> Denoiser:
    """A preconditioning that solves with the fitted start once per draw, not at every sampler step.

    With the mean m_y and the variances d (``Moments``) of the start's exact posterior given y, and v = 1 / (1/d + 1/sigma^2),

        m = v (m_y / d + x_t / sigma^2),  x-hat = m + sqrt(v) F(c_in x_t, m, m_y, log sigma, condition)

    At large noise the network corrects the start's posterior mean, at small noise x_t itself. Where A A^T is not diagonal
    (blurs, projections) the d of single coordinates do not say which directions are seen; there m takes in y once more and
    the network's output is projected by P. Without an observation m is the start's own E[x | x_t].
    """
    blank = blank_condition(corruption, shape)
    prior_mean, spread = overall_moments(start)
    left = left_open(start)
    separate = corruption.has_diagonal_gram

    def prepare(observation: Observation) -> Moments:
        moments = observation_moments(corruption, start, observation)
        filled = None if isinstance(start, Stationary) else corruption.fill(observation)
        return moments if filled is None else moments._replace(mean=filled)

    def at(m: Array, v: Array, x: Array, ratio: Array, mean: Array, condition: Array) -> Base:
        return Base(m, jnp.sqrt(v), x * jax.lax.rsqrt(spread + ratio**2), attach(m, mean, condition))

    def prior(x: Array, ratio: Array) -> Base:
        return at(mean_given_noisy(start, x, ratio), left(ratio), x, ratio, prior_mean, blank)

    def posterior(context: Moments, x: Array, ratio: Array) -> Base:
        v = combined(context.variance, ratio)
        m = context.mean + (context.variance / (context.variance + ratio**2)) * (x - context.mean)
        if not separate:
            y, operator = context.observation
            solved = corruption.solve_gram(y - corruption.forward(m, operator), operator, v)
            m = m + v * corruption.adjoint(solved, operator)
        return at(m, v, x, ratio, context.mean, context.condition)

    def project(context: Moments, ratio: Array, out: Array) -> Array:
        if separate:
            return out
        return open_part(corruption, context.observation.operator, combined(context.variance, ratio), out)

    given = network, schedule, shape, attach(jnp.zeros(shape), jnp.zeros(shape), blank)
    return precondition(*given, prior, posterior, left_by_context(start), prepare, project)


def start_denoiser(network: nn.Module, schedule: Schedule, shape: tuple[int, ...], start: Start) -> Denoiser:
    """The prior's denoiser that begins as the fitted start, x-hat = m + sqrt(v) F(c_in x_t, m, log sigma).

    m is the start's exact E[x | x_t] and v what it leaves open on average (``left_open``). It looks at no observation.
    """
    _, spread = overall_moments(start)
    left = left_open(start)

    def prior(x: Array, ratio: Array) -> Base:
        m = mean_given_noisy(start, x, ratio)
        return Base(m, jnp.sqrt(left(ratio)), x * jax.lax.rsqrt(spread + ratio**2), m)

    given = network, schedule, shape, jnp.zeros(shape), prior
    return precondition(*given, lambda _, x, ratio: prior(x, ratio), lambda ratio, _: left(ratio))


def mean_given_noisy(prior: Start, x: Array, ratio: Array) -> Array:
    """E[x | x + ratio e] under a mixture."""
    return mixture_posterior_mean(None, prior, x, jnp.ones(()), ratio, None)


def open_part(corruption: LinearCorruption, operator: PyTree, v: Array, r: Array) -> Array:
    """P r = r - v A^T (v A A^T + noise_std^2 I)^-1 A r: what an observation leaves open of r."""
    return r - v * corruption.adjoint(corruption.solve_gram(corruption.forward(r, operator), operator, v), operator)


def left_by_context(start: Start) -> Callable[[Array, Moments | None], Array]:
    """(sigma / alpha, moments of x given y, or None) -> the variance that x_t, and y where it is given, leave open of x."""

    def variance(ratio: Array, context: Moments | None) -> Array:
        return left_open(start)(ratio) if context is None else combined(context.variance, ratio)

    return variance


def isotropic_base(mixture: Start) -> Mixture:
    """N(mu, s^2 I) with the mixture's mean and average variance: the plain prior of ``posterior_denoiser``."""
    mean, variance = overall_moments(mixture)
    # A scalar variance: corruptions have their closed forms for that.
    return Mixture(jnp.zeros((1,)), Gaussian(mean[None], variance[None], jnp.zeros((1, 0, *mean.shape))))


@full_precision
def left_open(start: Start) -> Callable[[Array], Array]:
    """Noise level sigma -> the average variance of x that x + sigma e leaves open under the fitted start, [].

    The average of l sigma^2 / (l + sigma^2) over the eigenvalues l of a component's covariance, its diagonal taken as
    its mean, and the same of the variance between the components' means, which noise of their distance hides.
    """
    if isinstance(start, Stationary):
        return lambda ratio: jnp.mean(combined(start.power, ratio))
    parts, weights = start.components, jnp.exp(start.log_weights)
    count, rank = parts.factor.shape[:2]
    size = parts.mean[0].size
    factor = parts.factor.reshape(count, rank, size)
    own = jnp.mean(parts.variance.reshape(count, -1), axis=1)
    shared = jnp.linalg.eigvalsh(factor @ jnp.swapaxes(factor, 1, 2)) + own[:, None]
    within = own + jnp.sum(factor**2, axis=(1, 2)) / size
    between = jnp.maximum(overall_moments(start)[1] - weights @ within, 0.0)

    @full_precision
    def average(ratio: Array) -> Array:
        inside = jnp.sum(combined(shared, ratio), axis=1) + (size - rank) * combined(own, ratio)
        # x_t itself is off by sigma, so that nothing leaves more open.
        return jnp.minimum(weights @ inside / size + combined(between, ratio), ratio**2)

    return average
