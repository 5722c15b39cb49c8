"""Gaussians and mixtures of them under linear corruptions: exact conditioning, evidence and posterior draws.

Everything is for one example. With a prior N(mean, D + U^T U) (diagonal plus low rank) and
C = A (D + U^T U) A^T + noise_std^2 I, Woodbury's identity leaves one solve with G = A D A^T + noise_std^2 I and one R x R factor.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.gaussians import linalg, stationary
from diffem_jax.gaussians.linalg import Gaussian, cholesky, contract, expand, full_precision, solve_psd_factored
from diffem_jax.gaussians.stationary import Stationary
from diffem_jax.types import Key, LinearCorruption, Observation, PyTree

EXACT_DIAGONAL = 32  # coordinates up to which diag(A^T G^-1 A) is exact; above it one random sign vector estimates it


class Mixture(NamedTuple):
    """sum_k exp(log_weights_k) N(mean_k, diag(variance_k) + factor_k^T factor_k), the weights summing to 1."""

    log_weights: Array  # [K]
    components: Gaussian  # its arrays carry a leading axis K


Start = Mixture | Stationary  # what is fitted to the observations before round 1


class Posterior(NamedTuple):
    """The distribution of x = mean_0 + U^T z + e given y, with what EM needs of the latent z."""

    mean: Array  # E[x | y], [*X]
    residual: Array  # E[e | y], [*X]
    z: Array  # E[z | y], [R]
    root: Array  # the Cholesky factor [R, R] of the precision of z given y
    hidden: Array  # D A^T G^-1 A U^T, [R, *X]: e given z moves by -hidden^T (z - E[z | y])
    log_prob: Array  # log p(y) up to a constant that depends on the operator alone


@full_precision
def condition_on_observation(corruption: LinearCorruption, prior: Gaussian, observation: Observation) -> Posterior:
    """Conditions a Gaussian prior on y = A x + n: the exact posterior's mean and latent moments, and the log evidence."""
    y, operator = observation
    rank = prior.factor.shape[0]
    r = y - corruption.forward(prior.mean, operator)
    solved = corruption.solve_gram(r, operator, prior.variance)
    # Entries of y that are not observed may hold anything, NaN included; there solve_gram yields 0.
    r = jnp.where(solved == 0, 0.0, r)
    log_det = corruption.log_det_gram(operator, prior.variance)
    if rank == 0:
        residual = prior.variance * corruption.adjoint(solved, operator)
        log_prob = -0.5 * (jnp.vdot(r, solved) + log_det)
        return Posterior(prior.mean + residual, residual, jnp.zeros((0,)), jnp.zeros((0, 0)), prior.factor, log_prob)
    w = jax.vmap(corruption.forward, (0, None))(prior.factor, operator)
    solved_w = jax.vmap(corruption.solve_gram, (0, None, None))(w, operator, prior.variance)
    precision = jnp.eye(rank) + w.reshape(rank, -1) @ solved_w.reshape(rank, -1).T
    root = cholesky(0.5 * (precision + precision.T))
    z = solve_psd_factored(root, contract(w, solved))
    variance = jnp.broadcast_to(prior.variance, prior.mean.shape)
    hidden = variance[None] * jax.vmap(corruption.adjoint, (0, None))(solved_w, operator)
    # r^T C^-1 r as the least value over z of a sum of squares: differences of large terms would not survive float32.
    rest, solved_rest = r - expand(z, w), solved - expand(z, solved_w)
    residual = variance * corruption.adjoint(solved_rest, operator)
    log_det = log_det + 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
    log_prob = -0.5 * (jnp.vdot(rest, solved_rest) + jnp.sum(z**2) + log_det)
    return Posterior(prior.mean + expand(z, prior.factor) + residual, residual, z, root, hidden, log_prob)


@full_precision
def condition_on_both(
    corruption: LinearCorruption, prior: Gaussian, x_t: Array, alpha: Array, sigma: Array, observation: Observation
) -> tuple[Array, Array]:
    """E[x | x_t, y] for a Gaussian prior, and log p(x_t, y) up to a constant, with one factorisation for both.

    Given z the coordinates of x are independent, with the variances v that x_t leaves; y then adds one solve with
    A diag(v) A^T + noise_std^2 I, and z has the precision

        I + alpha^2 U (alpha^2 D + sigma^2 I)^-1 U^T + W (A diag(v) A^T + noise_std^2 I)^-1 W^T,

    with W^T = A diag(sigma^2 / (alpha^2 D + sigma^2)) U^T. Here x_t = alpha x + sigma e, sigma > 0.
    """
    y, operator = observation
    rank = prior.factor.shape[0]
    total = alpha**2 * prior.variance + sigma**2
    open_variance = prior.variance * sigma**2 / total
    r = x_t - alpha * prior.mean
    mean = prior.mean + (alpha * prior.variance / total) * r
    rest = y - corruption.forward(mean, operator)
    solved = corruption.solve_gram(rest, operator, open_variance)
    # Entries of y that are not observed may hold anything, NaN included; there solve_gram yields 0.
    rest = jnp.where(solved == 0, 0.0, rest)
    log_det = corruption.log_det_gram(operator, open_variance)
    log_det = log_det + jnp.sum(jnp.log(jnp.broadcast_to(total, x_t.shape)))
    if rank == 0:
        log_prob = -0.5 * (jnp.sum(r**2 / total) + jnp.vdot(rest, solved) + log_det)
        return mean + open_variance * corruption.adjoint(solved, operator), log_prob
    scaled = prior.factor / jnp.broadcast_to(total, x_t.shape)[None]
    left = sigma**2 * scaled
    w = jax.vmap(corruption.forward, (0, None))(left, operator)
    solved_w = jax.vmap(corruption.solve_gram, (0, None, None))(w, operator, open_variance)
    precision = jnp.eye(rank) + alpha**2 * (scaled.reshape(rank, -1) @ prior.factor.reshape(rank, -1).T)
    precision = precision + w.reshape(rank, -1) @ solved_w.reshape(rank, -1).T
    root = cholesky(0.5 * (precision + precision.T))
    z = solve_psd_factored(root, alpha * contract(scaled, r) + contract(w, solved))
    # Quadratic forms as the least value over z of a sum of squares: differences of large terms would not survive float32.
    rest, solved_rest = rest - expand(z, w), solved - expand(z, solved_w)
    square = jnp.sum((r - alpha * expand(z, prior.factor)) ** 2 / total) + jnp.vdot(rest, solved_rest) + jnp.sum(z**2)
    log_prob = -0.5 * (square + log_det + 2 * jnp.sum(jnp.log(jnp.diagonal(root))))
    return mean + expand(z, left) + open_variance * corruption.adjoint(solved_rest, operator), log_prob


@full_precision
def mixture_posterior_mean(
    corruption: LinearCorruption | None,
    mixture: Start,
    x_t: Array,
    alpha: Array,
    sigma: Array,
    observation: Observation | None,
) -> Array:
    """E[x | x_t, y] [*X] under a start and x_t = alpha x + sigma e; without an observation E[x | x_t]."""
    if isinstance(mixture, Stationary):
        left = stationary.given_noisy(mixture, x_t / alpha, sigma / alpha)
        if observation is None or corruption is None:
            return left.mean
        return stationary.posterior_mean(corruption, left, observation)

    def one(component: Gaussian) -> tuple[Array, Array]:
        if observation is None or corruption is None:
            given_x_t, log_prob = linalg.condition_on_noisy(component, x_t, alpha, sigma)
            return given_x_t.mean, log_prob
        return condition_on_both(corruption, component, x_t, alpha, sigma, observation)

    if mixture.log_weights.shape[0] == 1:
        return one(jax.tree.map(lambda leaf: leaf[0], mixture.components))[0]
    means, log_probs = jax.vmap(one)(mixture.components)
    return expand(jax.nn.softmax(mixture.log_weights + log_probs), means)


def has_exact_diagonal(corruption: LinearCorruption) -> bool:
    """Whether ``gram_diagonal`` is exact: for masks and other diagonal Gram matrices, and for few coordinates."""
    return corruption.has_diagonal_gram or math.prod(corruption.shape) <= EXACT_DIAGONAL


@full_precision
def gram_diagonal(corruption: LinearCorruption, operator: PyTree, v: Array, key: Key) -> Array:
    """diag(A^T G^-1 A) of shape [*X] with G = v A A^T + noise_std^2 I: exact as above, else unbiased."""

    def apply(u: Array) -> Array:
        return corruption.adjoint(corruption.solve_gram(corruption.forward(u, operator), operator, v), operator)

    size = math.prod(corruption.shape)
    if size <= EXACT_DIAGONAL:
        basis = jnp.eye(size).reshape(size, *corruption.shape)
        return jnp.sum(jax.vmap(apply)(basis) * basis, axis=0)
    signs = jax.random.rademacher(key, corruption.shape, jnp.float32)
    return signs * apply(signs)


@full_precision
def posterior_moments(corruption: LinearCorruption, mixture: Start, observation: Observation) -> tuple[Array, Array]:
    """E[x | y] and Var[x | y] by coordinate under a start, both [*X].

    Where the variance has no closed form (``has_exact_diagonal``), every coordinate of a component gets an estimated average.
    """
    if isinstance(mixture, Stationary):
        return stationary.moments(corruption, mixture, observation)

    def one(component: Gaussian) -> tuple[Array, Array, Array]:
        post = condition_on_observation(corruption, component, observation)
        seen = gram_diagonal(corruption, observation.operator, component.variance, jax.random.key(0))
        seen = seen if has_exact_diagonal(corruption) else jnp.mean(seen)
        own = jnp.maximum(component.variance - component.variance**2 * seen, 1e-6 * component.variance)
        rank = component.factor.shape[0]
        # Given y, x moves with z by U - hidden.
        half = component.factor - post.hidden
        half = linalg.solve_lower(post.root, half.reshape(rank, -1)) if rank else half
        own = own + jnp.sum(half.reshape(rank, *post.mean.shape) ** 2, axis=0)
        return post.mean, own, post.log_prob

    means, variances, log_probs = jax.vmap(one)(mixture.components)
    weights = jax.nn.softmax(mixture.log_weights + log_probs)
    mean = expand(weights, means)
    return mean, expand(weights, variances + (means - mean[None]) ** 2)


@full_precision
def sample_gaussian(key: Key, law: Gaussian) -> Array:
    """One draw of a Gaussian, [*X]."""
    z_key, e_key = jax.random.split(key)
    noise = jnp.sqrt(law.variance) * jax.random.normal(e_key, law.mean.shape)
    return law.mean + noise + expand(jax.random.normal(z_key, (law.factor.shape[0],)), law.factor)


@full_precision
def sample_posterior(key: Key, corruption: LinearCorruption, mixture: Start, observation: Observation) -> Array:
    """One exact draw of p(x | y) under a start.

    The component is drawn by its posterior weight; given it, with x' a draw of the component and n' of the noise,

        x = x' + S A^T (A S A^T + noise_std^2 I)^-1 (y - A x' - n').

    Source: Matheron's rule; Doucet 2010, "A note on efficient conditional simulation of Gaussian distributions".
    """
    if isinstance(mixture, Stationary):
        return stationary.draw(key, corruption, mixture, observation)
    choice_key, prior_key, noise_key = jax.random.split(key, 3)
    evidence = jax.vmap(lambda c: condition_on_observation(corruption, c, observation).log_prob)(mixture.components)
    choice = jax.random.categorical(choice_key, mixture.log_weights + evidence)
    component = jax.tree.map(lambda leaf: leaf[choice], mixture.components)
    start = sample_gaussian(prior_key, component)
    noise = corruption.noise_level(observation.operator) * jax.random.normal(noise_key, observation.y.shape)
    shifted = observation._replace(y=observation.y - noise)
    return condition_on_observation(corruption, component._replace(mean=start), shifted).mean


@full_precision
def overall_moments(mixture: Start) -> tuple[Array, Array]:
    """The mean of a start [*X] and its average variance per coordinate, a scalar."""
    if isinstance(mixture, Stationary):
        return mixture.mean, jnp.mean(mixture.power)
    weights = jnp.exp(mixture.log_weights)
    mean = expand(weights, mixture.components.mean)
    variance = mixture.components.variance
    own = variance.reshape(*variance.shape, *(1,) * (mean.ndim + 1 - variance.ndim))
    own = own + jnp.sum(mixture.components.factor**2, axis=1)
    return mean, jnp.mean(expand(weights, own + (mixture.components.mean - mean[None]) ** 2))
