"""One EM iteration of a mixture of factor analysers under linear corruptions, both steps in closed form.

The model is x = mean_k + U_k^T z + e with z ~ N(0, I_R), e ~ N(0, diag(D_k)), and y = A x + n under each example's own
operator A. ``starts`` runs it on a set of observations.

Source: Rubin and Thayer 1982, "EM algorithms for ML factor analysis"; Ghahramani and Hinton 1996, "The EM algorithm for
mixtures of factor analyzers"; the missing-data form follows from conditioning on y in place of x.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.gaussians.gaussians import Mixture, condition_on_observation, gram_diagonal
from diffem_jax.gaussians.linalg import Gaussian, cholesky, expand, full_precision, solve_lower, solve_psd
from diffem_jax.types import Key, LinearCorruption, Observation, example_keys


class Sums(NamedTuple):
    """Expected sufficient statistics of the examples seen so far, one leading axis K for the components."""

    weight: Array  # [K], responsibilities
    zz: Array  # [K, R + 1, R + 1], E[z' z'^T] with z' = (z, 1)
    ez: Array  # [K, R + 1, *X], E[z' e] with e = x - loading z'
    ee: Array  # [K, *X], E[e^2]
    log_prob: Array  # [], the observed log-likelihood up to a constant


@full_precision
def _e_step(corruption: LinearCorruption, mixture: Mixture, keys: Key, observed: Observation, present: Array) -> Sums:
    """The E-step of a batch: posterior moments of (z, e) under every component, weighted by responsibility, summed."""
    rank = mixture.components.factor.shape[1]
    shape, size = corruption.shape, math.prod(corruption.shape)

    def moments(key: Key, observation: Observation, component: Gaussian) -> tuple[Array, ...]:
        post = condition_on_observation(corruption, component, observation)
        hidden = post.hidden.reshape(rank, size)
        inverse_root = solve_lower(post.root, jnp.eye(rank)) if rank else post.root
        z1 = jnp.concatenate([post.z, jnp.ones((1,))])
        seen = gram_diagonal(corruption, observation.operator, component.variance, key)
        own = component.variance - component.variance**2 * seen
        own = own.reshape(size) + jnp.sum((inverse_root @ hidden) ** 2, axis=0)
        residual = post.residual.reshape(size)
        return z1, inverse_root.T @ inverse_root, hidden, residual, residual**2 + own, post.log_prob

    each = jax.vmap(moments, (None, None, 0))
    z1, z_cov, hidden, residual, square, log_probs = jax.vmap(each, (0, 0, None))(keys, observed, mixture.components)
    joint = mixture.log_weights[None] + log_probs
    weight = present[:, None] * jax.nn.softmax(joint)
    # Sums over the batch are matrix products: the loadings' terms of single examples, [R + 1, *X] each, never exist.
    z1_weighted = weight[:, :, None] * z1
    z_cov = weight[:, :, None, None] * z_cov
    zz = jnp.einsum("bkr,bks->krs", z1_weighted, z1) + jnp.pad(jnp.sum(z_cov, axis=0), ((0, 0), (0, 1), (0, 1)))
    pulled = jnp.einsum("bkrs,bksd->krd", z_cov, hidden)
    ez = jnp.einsum("bkr,bkd->krd", z1_weighted, residual) - jnp.pad(pulled, ((0, 0), (0, 1), (0, 0)))
    ee = jnp.einsum("bk,bkd->kd", weight, square)
    count = len(log_probs[0])
    log_prob = jnp.sum(present * jax.nn.logsumexp(joint, axis=1))
    return Sums(jnp.sum(weight, axis=0), zz, ez.reshape(count, rank + 1, *shape), ee.reshape(count, *shape), log_prob)


@full_precision
def _uncorrelated(component: Gaussian, weight: Array) -> Sums:
    """What so many examples add that are seen whole, with the component's mean and variances but no correlations."""
    mean, rank = component.mean, len(component.factor)
    u = component.factor.reshape(rank, mean.size)
    d = jnp.broadcast_to(component.variance, mean.shape).reshape(mean.size)
    total = d + jnp.sum(u**2, axis=0)
    # z given x has the mean gain (x - mean) and the covariance I - gain U^T.
    gain = solve_psd(jnp.eye(rank) + (u / d[None]) @ u.T, u / d[None]) if rank else u
    zx = gain * total[None]
    zz = zx @ gain.T + jnp.eye(rank) - gain @ u.T
    ez, ee = zx - zz @ u, total - jnp.sum(u * (2 * zx - zz @ u), axis=0)
    zz, ez = jnp.pad(zz, ((0, 1), (0, 1))).at[rank, rank].set(1.0), jnp.pad(ez, ((0, 1), (0, 0)))
    one = Sums(jnp.ones(()), zz, ez.reshape(rank + 1, *mean.shape), ee.reshape(mean.shape), jnp.zeros(()))
    return jax.tree.map(lambda part: weight * part, one)


@full_precision
def _m_step(mixture: Mixture, sums: Sums, variance_floor: float) -> Mixture:
    """The M-step: loadings, means and variances by regression of x on (z, 1); then z has mean 0 and covariance I again."""
    scalar_variance = mixture.components.variance.ndim == 1

    def one(component: Gaussian, weight: Array, zz: Array, ez: Array, ee: Array) -> Gaussian:
        rank = component.factor.shape[0]
        # Pseudo-observations of weight 1e-3 that say 'as before' keep a component that lost its examples.
        ridge = zz + 1e-3 * jnp.eye(rank + 1)
        shift = solve_psd(ridge, ez.reshape(rank + 1, -1)).reshape(ez.shape)
        loading = jnp.concatenate([component.factor, component.mean[None]]) + shift
        rest = ee - jnp.sum(shift * ez, axis=0)
        rest = jnp.mean(rest) if scalar_variance else rest
        variance = jnp.maximum((rest + 1e-3 * component.variance) / (weight + 1e-3), variance_floor)
        mean, factor = loading[rank], loading[:rank]
        if rank:
            # Parameter expansion (Liu, Rubin and Wu 1998): absorb the mean and covariance that z has acquired.
            z_mean = zz[rank, :rank] / (weight + 1e-3)
            z_cov = (zz[:rank, :rank] + 1e-3 * jnp.eye(rank)) / (weight + 1e-3) - jnp.outer(z_mean, z_mean)
            mean = mean + expand(z_mean, factor)
            factor = (cholesky(z_cov + 1e-6 * jnp.eye(rank)).T @ factor.reshape(rank, -1)).reshape(factor.shape)
        return Gaussian(mean, variance, factor)

    components = jax.vmap(one)(mixture.components, sums.weight, sums.zz, sums.ez, sums.ee)
    return Mixture(jnp.log((sums.weight + 1.0) / jnp.sum(sums.weight + 1.0)), components)


@partial(jax.jit, static_argnames=("corruption", "variance_floor", "batch_size"))
def em_iteration(
    key: Key, mixture: Mixture, observations: Observation, indices: Array, present: Array, shrinkage: Array | float = 0.0, *,
    corruption: LinearCorruption, variance_floor: float, batch_size: int,
) -> tuple[Mixture, Array]:  # fmt: skip
    """One EM iteration over observations [N, ...] of the given indices [N]: the new mixture, and the old one's log-likelihood.

    The log-likelihood is a mean over examples. ``batch_size`` examples are in memory at once; N is a multiple of it (padding has
    ``present`` 0, other examples 1). ``shrinkage`` examples without correlations are added, which shrinks the covariance towards
    its diagonal. ``variance_floor`` is the least variance of a coordinate, which keeps float32 factorisations sound.
    """
    whole = (example_keys(key, indices), observations, present)
    batches = jax.tree.map(lambda a: a.reshape(-1, batch_size, *a.shape[1:]), whole)

    def body(total: Sums, batch: tuple[Key, Observation, Array]) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, total, _e_step(corruption, mixture, *batch)), None

    k, r, *shape = mixture.components.factor.shape
    shapes = (k,), (k, r + 1, r + 1), (k, r + 1, *shape), (k, *shape), ()
    sums, _ = jax.lax.scan(body, Sums(*map(jnp.zeros, shapes)), batches)
    value = sums.log_prob / jnp.sum(present)
    added = jax.vmap(_uncorrelated)(mixture.components, shrinkage * jnp.exp(mixture.log_weights))
    sums = jax.tree.map(jnp.add, sums._replace(log_prob=added.log_prob), added)
    return _m_step(mixture, sums, variance_floor), value


@jax.jit
def relax(before: Mixture, after: Mixture, step: Array, variance_floor: Array) -> Mixture:
    """An EM step made longer: before + step (after - before), of variances and weights in their logarithms.

    Source: Salakhutdinov and Roweis 2003, "Adaptive overrelaxed bound optimization methods".
    """

    def move(a: Array, b: Array) -> Array:
        return a + step * (b - a)

    old, new = before.components, after.components
    # No variance moves by more than a factor of e at once.
    change = jnp.clip(step * jnp.log(new.variance / old.variance), -1.0, 1.0)
    variance = jnp.maximum(old.variance * jnp.exp(change), variance_floor)
    weights = jax.nn.log_softmax(move(before.log_weights, after.log_weights))
    return Mixture(weights, Gaussian(move(old.mean, new.mean), variance, move(old.factor, new.factor)))
