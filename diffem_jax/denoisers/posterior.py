"""Denoisers that begin as the fitted start: its posterior given y, or the start itself where nothing is observed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.denoisers.edm import (
    Denoiser,
    attach,
    attached_shape,
    blank_condition,
    initializer,
    network_call,
    seen_condition,
)
from diffem_jax.gaussians.gaussians import (
    Mixture,
    has_exact_diagonal,
    mixture_posterior_mean,
    overall_moments,
    posterior_moments,
)
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.types import Key, LinearCorruption, Observation, PyTree, Schedule


def isotropic_base(mixture: Mixture) -> Mixture:
    """N(mu, s^2 I) with the mixture's mean and average variance: the plain base of 'posterior' preconditioning."""
    mean, variance = overall_moments(mixture)
    # A scalar variance: corruptions have their closed forms for that.
    component = Gaussian(mean[None], variance[None], jnp.zeros((1, 0, *mean.shape)))
    return Mixture(jnp.zeros((1,)), component)


def left_open(start: Mixture) -> Callable[[Array], Array]:
    """Noise level sigma -> the average variance of x that x + sigma e leaves open under the fitted start, [].

    The average of l sigma^2 / (l + sigma^2) over the eigenvalues l of a component's covariance, its diagonal taken as
    its mean, and the same of the variance between the components' means, which noise of their distance hides.
    """
    law, weights = start.components, jnp.exp(start.log_weights)
    count, rank = law.factor.shape[:2]
    size = law.mean[0].size
    factor = law.factor.reshape(count, rank, size)
    own = jnp.mean(law.variance.reshape(count, -1), axis=1)
    shared = jnp.linalg.eigvalsh(factor @ jnp.swapaxes(factor, 1, 2)) + own[:, None]
    within = own + jnp.sum(factor**2, axis=(1, 2)) / size
    between = jnp.maximum(overall_moments(start)[1] - weights @ within, 0.0)

    def average(ratio: Array) -> Array:
        def left(variance: Array) -> Array:
            return variance * ratio**2 / (variance + ratio**2)

        inside = jnp.sum(left(shared), axis=1) + (size - rank) * left(own)
        # x_t itself is off by sigma, so that nothing leaves more open.
        return jnp.minimum(weights @ inside / size + left(between), ratio**2)

    return average


def start_denoiser(network: nn.Module, schedule: Schedule, shape: tuple[int, ...], start: Mixture) -> Denoiser:
    """The prior's denoiser that begins as the fitted start, x-hat = m + sqrt(v) F(c_in x_t, m, log sigma).

    m is the start's exact E[x | x_t] and v what it leaves open on average (``left_open``); the network's last layer starts
    at zero, so the first prior is the start itself.

    Args:
        network: a batched network.
        schedule: the noise schedule.
        shape: the shape of x.
        start: the fitted start.
    """
    call = network_call(network)
    _, spread = overall_moments(start)
    left = left_open(start)

    def apply(params: PyTree, x_t: Array, t: Array, context: PyTree, keep: Array | float, dropout: Key | None) -> Array:
        del context, keep
        alpha, sigma = schedule(t)
        x, ratio = x_t / alpha, sigma / alpha
        m = mixture_posterior_mean(None, start, x, jnp.ones(()), ratio, None)
        out = call(params, x * jax.lax.rsqrt(spread + ratio**2), jnp.log(ratio), m, dropout)
        return m + jnp.sqrt(left(ratio)) * out

    def open_variance(t: Array, context: PyTree, keep: Array | float) -> Array:
        del context, keep
        alpha, sigma = schedule(t)
        return left(sigma / alpha)

    return Denoiser(initializer(network, shape, jnp.zeros(shape)), apply, open_variance=open_variance)


class Moments(NamedTuple):
    """What ``moments_denoiser`` keeps of one observation: y, its condition array, and the start's mean and variance of x."""

    observation: Observation
    condition: Array
    mean: Array
    variance: Array


def moments_denoiser(
    network: nn.Module, schedule: Schedule, corruption: LinearCorruption, shape: tuple[int, ...], start: Mixture
) -> Denoiser:
    """A preconditioning that solves with the start once a draw, not at every sampler step.

    With the mean m_y and the variances d of the start's exact posterior given y (by coordinate, or their average where
    the corruption has its closed forms for that) and v = 1 / (1/d + 1/sigma^2),

        m = v (m_y / d + x_t / sigma^2),  x-hat = m + sqrt(v) F(c_in x_t, m, m_y, log sigma, condition)

    At large noise the network corrects the start's posterior mean, at small noise x_t itself, by as much as the start
    leaves open: an observed pixel's d is the noise's variance. Where A A^T is not diagonal (blurs, projections) the d of
    single coordinates do not say which directions are seen; there m takes up y once more and the network's output is
    projected, as in ``posterior_denoiser``. Without an observation m is the start's own E[x | x_t] and v what that leaves
    open on average, so that a network that serves as prior too (condition dropout) begins as the start.

    Args:
        network: a batched network.
        schedule: the noise schedule.
        corruption: a linear corruption with ``solve_gram``.
        shape: the shape of x.
        start: the fitted start.
    """
    call = network_call(network)
    prior_mean, spread = overall_moments(start)
    left = left_open(start)
    blank = jnp.zeros(attached_shape(corruption, shape, 2))
    empty: Array = blank_condition(corruption, shape)  # type: ignore[assignment]
    by_coordinate = has_exact_diagonal(corruption)
    separate = corruption.has_diagonal_gram

    def prepare(observation: Observation) -> Moments:
        mean, variance = posterior_moments(corruption, start, observation)
        variance = variance if by_coordinate else jnp.mean(variance)
        filled = corruption.fill(observation)
        return Moments(observation, corruption.condition(observation), mean if filled is None else filled, variance)

    def given(x: Array, ratio: Array, context: Moments) -> tuple[Array, Array]:
        """The mean m and the variances v that y and x_t leave."""
        v = context.variance * ratio**2 / (context.variance + ratio**2)
        m = context.mean + (context.variance / (context.variance + ratio**2)) * (x - context.mean)
        if separate:
            return m, v
        y, operator = context.observation
        solved = corruption.solve_gram(y - corruption.forward(m, operator), operator, v)
        return m + v * corruption.adjoint(solved, operator), v

    def apply(
        params: PyTree, x_t: Array, t: Array, context: Moments | None, keep: Array | float, dropout: Key | None
    ) -> Array:
        alpha, sigma = schedule(t)
        ratio = sigma / alpha
        x = x_t / alpha
        scaled = x * jax.lax.rsqrt(spread + ratio**2)
        # An observation that is always seen, as at sampling, costs no denoiser of the start.
        always = context is not None and isinstance(keep, float) and keep > 0
        seen = jnp.asarray(keep) > 0
        m, v, mean, condition = jnp.zeros_like(x), jnp.zeros(()), prior_mean, empty
        if not always:
            m, v = mixture_posterior_mean(None, start, x, jnp.ones(()), ratio, None), left(ratio)
        if context is not None:
            given_m, given_v = given(x, ratio, context)
            m, v = jnp.where(seen, given_m, m), jnp.where(seen, given_v, v)
            mean, condition = jnp.where(seen, context.mean, mean), jnp.where(seen, context.condition, condition)
        out = call(params, scaled, jnp.log(ratio), attach(m, mean, condition), dropout)
        if context is not None and not separate:
            out = jnp.where(seen, open_part(corruption, context.observation.operator, given_v, out), out)
        return m + jnp.sqrt(v) * out

    def open_variance(t: Array, context: Moments, keep: Array | float) -> Array:
        alpha, sigma = schedule(t)
        ratio = sigma / alpha
        given = jnp.mean(1 / (1 / context.variance + 1 / ratio**2))
        return given if isinstance(keep, float) and keep > 0 else jnp.where(jnp.asarray(keep) > 0, given, left(ratio))

    return Denoiser(initializer(network, shape, blank), apply, prepare, open_variance)


def posterior_denoiser(
    network: nn.Module, schedule: Schedule, corruption: LinearCorruption, shape: tuple[int, ...], base: Mixture
) -> Denoiser:
    """This project's preconditioning: the base prior's exact posterior mean, and the network for the rest.

    Args:
        network: a batched network; it sees m beside the condition.
        schedule: the noise schedule.
        corruption: a linear corruption with ``solve_gram``.
        shape: the shape of x.
        base: the base prior: an isotropic Gaussian (``isotropic_base``) or any mixture.
    """
    call = network_call(network)
    blank = jnp.zeros(attached_shape(corruption, shape))
    _, spread = overall_moments(base)

    def apply(
        params: PyTree, x_t: Array, t: Array, observation: Observation | None, keep: Array | float, dropout: Key | None
    ) -> Array:
        alpha, sigma = schedule(t)
        ratio = sigma / alpha
        x = x_t / alpha
        v = 1 / (1 / spread + 1 / ratio**2)
        m = mixture_posterior_mean(None, base, x, jnp.ones(()), ratio, None)
        if observation is not None:
            seen = mixture_posterior_mean(corruption, base, x, jnp.ones(()), ratio, observation)
            m = jnp.where(jnp.asarray(keep) > 0, seen, m)
        condition = seen_condition(corruption, observation, keep)
        if condition is None:
            condition = jnp.zeros_like(blank_condition(corruption, shape))  # type: ignore[arg-type]
        out = call(params, x * jax.lax.rsqrt(spread + ratio**2), jnp.log(ratio), attach(m, condition), dropout)
        if observation is not None:
            out = jnp.where(jnp.asarray(keep) > 0, open_part(corruption, observation.operator, v, out), out)
        return m + jnp.sqrt(v) * out

    return Denoiser(initializer(network, shape, blank), apply)


def open_part(corruption: LinearCorruption, operator: PyTree, v: Array, r: Array) -> Array:
    """P r = r - v A^T (v A A^T + noise_std^2 I)^-1 A r: what an observation leaves open of r."""
    return r - v * corruption.adjoint(corruption.solve_gram(corruption.forward(r, operator), operator, v), operator)
