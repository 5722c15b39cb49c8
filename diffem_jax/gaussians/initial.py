"""First guesses for the start's EM: moments by least squares for a Gaussian, draws far from each other for a mixture."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.gaussians.gaussians import Mixture
from diffem_jax.gaussians.linalg import Gaussian, conjugate_gradient
from diffem_jax.types import Key, LinearCorruption, Observation, PyTree

MEAN_ITERATIONS = 8
"""Conjugate-gradient iterations for the first mean."""


class BackProjection(NamedTuple):
    """What the observations say of x without any model of it (``back_project``).

    Attributes:
        mean: m with average(P) m = average(b), [*X]; 0 in directions that nothing sees.
        residual: b - P m of each example, [N, *X].
        seen: the average share of x that an observation sees, trace(P) / D.
    """

    mean: Array
    residual: Array
    seen: Array


def make_back_projection(corruption: LinearCorruption) -> Callable[[Key, Observation], BackProjection]:
    """The jitted ``back_project`` of one corruption."""

    def pull(y: Array, operator: PyTree) -> Array:
        return corruption.adjoint(corruption.solve_gram(y, operator, jnp.ones(())), operator)

    def project(u: Array, operator: PyTree) -> Array:
        return pull(corruption.forward(u, operator), operator)

    def run(key: Key, observations: Observation) -> BackProjection:
        def average(u: Array) -> Array:
            each = jax.lax.map(lambda o: project(u, o.operator), observations, batch_size=64)
            return jnp.mean(each, axis=0) + 1e-3 * u

        b = jax.lax.map(lambda o: pull(*o), observations, batch_size=64)
        mean = conjugate_gradient(average, jnp.mean(b, axis=0), MEAN_ITERATIONS)
        residual = jax.lax.map(lambda o: pull(o.y, o.operator) - project(mean, o.operator), observations, batch_size=64)
        signs = jax.random.rademacher(key, (len(b), *corruption.shape), jnp.float32)
        seen = jax.lax.map(
            lambda a: jnp.mean(a[0] * project(a[0], a[1].operator)), (signs, observations), batch_size=64
        )
        return BackProjection(mean, residual, jnp.mean(seen))

    return jax.jit(run)


_kept_projection = functools.lru_cache(maxsize=8)(make_back_projection)
"""The same, compiled once for fits that are alike."""


def back_project(key: Key, corruption: LinearCorruption, observations: Observation) -> BackProjection:
    """First moments from b = A^T G^-1 y and P = A^T G^-1 A with G = A A^T + noise_std^2 I, by least squares.

    b alone understates x by what its operator does not see: for a mask that hides nine pixels of ten the average of b is a
    tenth of the mean of x.
    """
    try:
        run = _kept_projection(corruption)  # type: ignore[arg-type]
    except TypeError:  # a corruption that cannot be a key
        run = make_back_projection(corruption)
    return run(key, observations)


def initial_gaussian(seen: BackProjection, rank: int, *, scalar_variance: bool = False) -> Mixture:
    """A first guess: the least-squares mean, and the residuals' leading principal axes as factors."""
    mean, residual = np.asarray(seen.mean), np.asarray(seen.residual)
    shape, flat = mean.shape, residual.reshape(len(residual), -1)
    share = float(np.clip(seen.seen, 1e-3, 1.0))
    _, scale, axes = np.linalg.svd(flat, full_matrices=False)
    scale = np.pad(scale / math.sqrt(len(flat)), (0, max(0, rank - len(scale))))[:rank]
    axes = np.pad(axes, ((0, max(0, rank - len(axes))), (0, 0)))[:rank]
    # Half of the spread, undone of what is not seen, is left to the factors and half to the variances; EM settles the rest.
    factor = 0.5 / math.sqrt(share) * np.maximum(scale, 0.05)[:, None] * axes
    variance = np.full((1,) if scalar_variance else (1, *shape), max(0.05, 0.5 * float(flat.var()) / share), np.float32)
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
