"""Round zero: a Gaussian or a mixture of factor analysers fitted to the observations by exact EM.

The model is x = mean_k + U_k^T z + e with z ~ N(0, I_R), e ~ N(0, diag(D_k)), and y = A x + n under each example's own
operator A. Both steps of EM are in closed form; nothing is sampled while fitting. With one component this is the
Gaussian start (R = D gives a full-rank covariance).

Source: Rubin and Thayer 1982, "EM algorithms for ML factor analysis"; Ghahramani and Hinton 1996, "The EM algorithm for
mixtures of factor analyzers"; the missing-data form follows from conditioning on y in place of x. The published start
(Rozet et al. 2024, arXiv 2405.13712, section 5; Hosseintabar et al. 2025, arXiv 2510.12691) fits one Gaussian by sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.gaussians import Mixture, condition_on_observation, sample_posterior
from diffem_jax.linalg import Gaussian, cholesky, expand, solve_lower, solve_psd
from diffem_jax.types import Key, LinearCorruption, Observation, PyTree, example_keys

# Coordinates up to which the diagonal of A^T G^-1 A is exact; above it one random sign vector an example estimates it.
EXACT_DIAGONAL = 32


class Sums(NamedTuple):
    """Expected sufficient statistics of the examples seen so far, one leading axis K for the components.

    Attributes:
        weight: [K], responsibilities.
        zz: [K, R + 1, R + 1], E[z' z'^T] with z' = (z, 1).
        ez: [K, R + 1, *X], E[z' e] with e = x - loading z'.
        ee: [K, *X], E[e^2].
        log_prob: [], the observed log-likelihood up to a constant.
    """

    weight: Array
    zz: Array
    ez: Array
    ee: Array
    log_prob: Array


def _gram_diagonal(corruption: LinearCorruption, operator: PyTree, v: Array, key: Key) -> Array:
    """diag(A^T G^-1 A) of shape [*X]: exact for few coordinates and for masks, unbiased otherwise."""

    def apply(u: Array) -> Array:
        return corruption.adjoint(corruption.solve_gram(corruption.forward(u, operator), operator, v), operator)

    size = math.prod(corruption.shape)
    if size <= EXACT_DIAGONAL:
        basis = jnp.eye(size).reshape(size, *corruption.shape)
        return jnp.sum(jax.vmap(apply)(basis) * basis, axis=0)
    signs = jax.random.rademacher(key, corruption.shape, jnp.float32)
    return signs * apply(signs)


def _example_sums(
    corruption: LinearCorruption, mixture: Mixture, key: Key, observation: Observation, present: Array
) -> Sums:
    """The E-step of one example: posterior moments of (z, e) under every component, weighted by responsibility."""

    def one(component: Gaussian) -> tuple[Array, Array, Array, Array]:
        post = condition_on_observation(corruption, component, observation)
        rank = component.factor.shape[0]
        inverse_root = solve_lower(post.root, jnp.eye(rank)) if rank else post.root
        z_cov = inverse_root.T @ inverse_root
        z1 = jnp.concatenate([post.z, jnp.ones((1,))])
        pulled = (z_cov @ post.hidden.reshape(rank, math.prod(corruption.shape))).reshape(post.hidden.shape)
        # The blocks are put together by padding: updates in place are slow scatters under vmap.
        zz = jnp.outer(z1, z1) + jnp.pad(z_cov, ((0, 1), (0, 1)))
        ez = jnp.outer(z1, post.residual.reshape(-1)).reshape(rank + 1, *corruption.shape)
        ez = ez - jnp.pad(pulled, ((0, 1), *((0, 0),) * len(corruption.shape)))
        seen = _gram_diagonal(corruption, observation.operator, component.variance, key)
        own = component.variance - component.variance**2 * seen + jnp.sum(post.hidden * pulled, axis=0)
        return zz, ez, post.residual**2 + own, post.log_prob

    zz, ez, ee, log_probs = jax.vmap(one)(mixture.components)
    joint = mixture.log_weights + log_probs
    weight = present * jax.nn.softmax(joint)
    zz = weight[:, None, None] * zz
    ez = weight.reshape(-1, *(1,) * (ez.ndim - 1)) * ez
    ee = weight.reshape(-1, *(1,) * (ee.ndim - 1)) * ee
    return Sums(weight, zz, ez, ee, present * jax.nn.logsumexp(joint))


def _maximize(mixture: Mixture, sums: Sums, variance_floor: float) -> Mixture:
    """The M-step: loadings, means and variances by regression of x on (z, 1); then z is re-standardised."""
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
            z_cov = z_cov + 1e-6 * jnp.eye(rank)
            mean = mean + expand(z_mean, factor)
            factor = (cholesky(z_cov).T @ factor.reshape(rank, -1)).reshape(factor.shape)
        return Gaussian(mean, variance, factor)

    components = jax.vmap(one)(mixture.components, sums.weight, sums.zz, sums.ez, sums.ee)
    weights = (sums.weight + 1.0) / jnp.sum(sums.weight + 1.0)
    return Mixture(jnp.log(weights), components)


def make_em_iteration(
    corruption: LinearCorruption, variance_floor: float, batch_size: int
) -> Callable[[Key, Mixture, Observation, Array], tuple[Mixture, Array]]:
    """One EM iteration over all observations: (key, mixture, observations [N, ...], present [N]) -> (mixture, log-likelihood).

    Args:
        corruption: the linear corruption.
        variance_floor: the least variance of a coordinate, which keeps float32 factorisations sound.
        batch_size: examples in memory at once; N must be a multiple of it (pad, and give the padding present = 0).

    Returns:
        the jitted function; the log-likelihood is that of the mixture that came in, a mean over examples.
    """

    def iteration(key: Key, mixture: Mixture, observations: Observation, present: Array) -> tuple[Mixture, Array]:
        count = present.shape[0]
        batches = jax.tree.map(lambda a: a.reshape(count // batch_size, batch_size, *a.shape[1:]), observations)
        indices = jnp.arange(count).reshape(-1, batch_size)
        masks = present.reshape(-1, batch_size)

        def body(sums: Sums, batch: tuple[Observation, Array, Array]) -> tuple[Sums, None]:
            observation, index, mask = batch
            keys = example_keys(key, index)
            each = jax.vmap(lambda k, o, m: _example_sums(corruption, mixture, k, o, m))(keys, observation, mask)
            added = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), jax.lax.optimization_barrier(each))
            return jax.tree.map(jnp.add, sums, added), None

        first = jax.tree.map(lambda a: a[0, 0], batches)
        zeros = jax.eval_shape(lambda: _example_sums(corruption, mixture, key, first, jnp.ones(())))
        sums, _ = jax.lax.scan(body, jax.tree.map(lambda s: jnp.zeros(s.shape), zeros), (batches, indices, masks))
        return _maximize(mixture, sums, variance_floor), sums.log_prob / jnp.sum(present)

    return jax.jit(iteration)


Report = Callable[[int, int, float], None]
"""(iteration, iterations in all, log-likelihood) -> None."""


class Fit(NamedTuple):
    """A fitted start and its course: the mean observed log-likelihood before each iteration."""

    mixture: Mixture
    log_likelihoods: list[float]


def back_project(corruption: LinearCorruption, observations: Observation) -> Array:
    """E[x | y] under N(0, I), [N, *X]: what the observations say of x without any model."""

    def one(observation: Observation) -> Array:
        y, operator = observation
        return corruption.adjoint(corruption.solve_gram(y, operator, jnp.ones(())), operator)

    return jax.jit(lambda o: jax.lax.map(one, o, batch_size=64))(observations)


def initial_gaussian(back_projected: np.ndarray, rank: int, *, scalar_variance: bool = False) -> Mixture:
    """A first guess from back-projections [N, *X]: their mean, and their leading principal axes as factors."""
    shape = back_projected.shape[1:]
    flat = back_projected.reshape(len(back_projected), -1).astype(np.float32)
    mean = flat.mean(axis=0)
    _, scale, axes = np.linalg.svd(flat - mean, full_matrices=False)
    scale = np.pad(scale / math.sqrt(len(flat)), (0, max(0, rank - len(scale))))[:rank]
    axes = np.pad(axes, ((0, max(0, rank - len(axes))), (0, 0)))[:rank]
    # Observations see part of x, so their spread understates that of x; EM settles the rest.
    factor = 0.9 * np.maximum(scale, 0.05)[:, None] * axes
    variance = np.full((1,) if scalar_variance else (1, *shape), max(0.1, 0.3 * float(flat.var())), np.float32)
    component = Gaussian(
        jnp.asarray(mean.reshape(1, *shape)), jnp.asarray(variance), jnp.asarray(factor.reshape(1, rank, *shape))
    )
    return Mixture(jnp.zeros((1,)), jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), component))


def spread_components(gaussian: Mixture, draws: np.ndarray, components: int, rank: int, shrink: float = 0.5) -> Mixture:
    """A first mixture from a fitted Gaussian: its means are posterior draws far from each other, its shape is shared.

    Args:
        gaussian: a mixture of one component.
        draws: posterior draws under it, [N, *X].
        components: K.
        rank: R of the new components.
        shrink: factor on the standard deviations, in (0, 1].
    """
    shape = draws.shape[1:]
    flat = draws.reshape(len(draws), -1)
    chosen = [0]
    distance = np.sum((flat - flat[0]) ** 2, axis=1)
    rng = np.random.Generator(np.random.Philox(components))
    for _ in range(components - 1):
        # k-means++ seeding (Arthur and Vassilvitskii 2007).
        chosen.append(int(rng.choice(len(flat), p=distance / distance.sum())))
        distance = np.minimum(distance, np.sum((flat - flat[chosen[-1]]) ** 2, axis=1))
    component = jax.tree.map(lambda leaf: leaf[0], gaussian.components)
    count = component.factor.shape[0]
    factor = shrink * component.factor[:rank]
    if rank > count:
        factor = jnp.concatenate([factor, jnp.zeros((rank - count, *shape))])
    shared = Gaussian(component.mean, shrink**2 * component.variance, factor)
    shared = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (components, *leaf.shape)), shared)
    means = jnp.asarray(flat[chosen].reshape(components, *shape), jnp.float32)
    return Mixture(jnp.full((components,), -math.log(components)), shared._replace(mean=means))


def make_start_draw(corruption: LinearCorruption) -> Callable[[Key, Mixture, Observation], Array]:
    """The draw of round zero for one example: (key, mixture, observation) -> an exact posterior draw [*X]."""
    return lambda key, mixture, observation: sample_posterior(key, corruption, mixture, observation)


def gaussian_start(
    key: Key, corruption: LinearCorruption, observations: Observation, *, rank: int, **options: Any
) -> Mixture:
    """One Gaussian fitted by ``fit``; options as there."""
    options.pop("components", None)
    return fit(key, corruption, observations, rank=rank, **options).mixture


def mixture_start(key: Key, corruption: LinearCorruption, observations: Observation, **options: Any) -> Mixture:
    """A mixture of factor analysers fitted by ``fit``; options as there."""
    return fit(key, corruption, observations, **options).mixture


STARTS: dict[str, Callable[..., Mixture]] = {"gaussian": gaussian_start, "mixture": mixture_start}
"""Starts by name. One of your own is a function (key, corruption, observations [N, ...], fields of the section) -> Mixture."""


def fit(
    key: Key,
    corruption: LinearCorruption,
    observations: Observation,
    *,
    rank: int,
    components: int = 1,
    iterations: int = 30,
    tolerance: float = 1e-4,
    variance_floor: float = 1e-4,
    batch_size: int = 0,
    report: Report | None = None,
) -> Fit:
    """Fits the start to observations: a Gaussian first, then, for components > 1, a mixture seeded by its draws.

    Args:
        key: randomness of trace estimates and of the seeding draws.
        corruption: a linear corruption.
        observations: arrays with a leading axis N.
        rank: R of each component, clipped to the number of coordinates.
        components: K, 1 for the Gaussian start.
        iterations: EM iterations at most, for the Gaussian and again for the mixture.
        tolerance: a fit ends early when the log-likelihood per example gains less than this times the number of
            coordinates in an iteration.
        variance_floor: the least variance of a coordinate given z.
        batch_size: examples in memory at once; 0 chooses by the model's size.
        report: called with (iteration, iterations in all, log-likelihood).

    Returns:
        the mixture and the log-likelihoods of the last fit.
    """
    size = math.prod(corruption.shape)
    rank = min(rank, size)
    count = len(observations.y)
    # A variance a coordinate where the solves with it are exact: diagonal ones, and small ones.
    scalar = not (hasattr(corruption, "gram_diagonal") or size <= EXACT_DIAGONAL)
    sample_rows = np.linspace(0, count - 1, min(count, 2048)).astype(int)
    subset = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[sample_rows]), observations)
    gaussian_rank = rank if components == 1 else min(size, max(rank, 16))
    mixture = initial_gaussian(np.asarray(back_project(corruption, subset)), gaussian_rank, scalar_variance=scalar)
    total = iterations * (1 if components == 1 else 2)

    def run(mixture: Mixture, offset: int) -> Fit:
        k, r = mixture.components.factor.shape[:2]
        rows = batch_size or int(np.clip(2**23 // (k * (r + 1) * size), 1, min(count, 1024)))
        padded = -(-count // rows) * rows
        present = jnp.asarray((np.arange(padded) < count).astype(np.float32))
        wrapped = jax.tree.map(
            lambda a: jnp.asarray(np.take(np.asarray(a), np.arange(padded) % count, 0)), observations
        )
        iterate = make_em_iteration(corruption, variance_floor, rows)
        values: list[float] = []
        for i in range(iterations):
            mixture, value = iterate(jax.random.fold_in(key, offset + i), mixture, wrapped, present)
            values.append(float(value))
            if report is not None:
                report(offset + i + 1, total, values[-1])
            if i > 2 and values[-1] - values[-2] < tolerance * size:
                break
        return Fit(mixture, values)

    result = run(mixture, 0)
    if components > 1:
        keys = example_keys(jax.random.fold_in(key, total), jnp.asarray(sample_rows))
        draw = jax.vmap(make_start_draw(corruption), (0, None, 0))
        draws = jax.jit(draw)(keys, result.mixture, subset)
        result = run(spread_components(result.mixture, np.asarray(draws), components, rank), iterations)
    return result
