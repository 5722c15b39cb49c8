"""Sets of points against each other by optimal transport, and how well reconstructions predict observations."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from diffem_jax.errors import UserError
from diffem_jax.metrics.base import Estimate, flat, mean_estimate, point_sets
from diffem_jax.types import Key, Observation

BLOCK, LARGEST_LOG_SCALE = 16, 20.0  # iterations that share one kernel matrix; how far scalings may stray from it
POOL = 64  # reconstructions that score an observation
CHUNK = 64  # observations in memory at once
Pair = tuple[Array, Array]


@functools.partial(jax.jit, static_argnames="iterations")
def _entropic_cost(x: Array, y: Array, regularization: float, iterations: int) -> Pair:
    """<P, C> and its standard error."""
    n, m = x.shape[0], y.shape[0]
    center = jnp.mean(y, axis=0, keepdims=True)
    x, y = x - center, y - center
    dot = functools.partial(jnp.matmul, precision="highest")
    squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :]
    cost = jnp.maximum(squares - 2 * dot(x, y.T), 0.0) / regularization

    def log_iteration(carry: Pair, _: None) -> tuple[Pair, None]:
        f, _g = carry
        g = -jax.nn.logsumexp(f[:, None] - cost, axis=0) - math.log(m)
        f = -jax.nn.logsumexp(g[None, :] - cost, axis=1) - math.log(n)
        return (f, g), None

    def log_block(carry: Pair, length: int) -> Pair:
        return jax.lax.scan(log_iteration, carry, None, length=length)[0]

    def block(carry: Pair, _: None) -> tuple[Pair, None]:
        f, g = carry
        kernel = jnp.exp(f[:, None] + g[None, :] - cost)

        def scaling(scales: Pair, _: None) -> tuple[Pair, None]:
            u, _v = scales
            v = 1 / (m * dot(u, kernel))
            return (1 / (n * dot(kernel, v)), v), None

        (u, v), _ = jax.lax.scan(scaling, (jnp.ones(n), jnp.ones(m)), None, length=BLOCK)
        log_u, log_v = jnp.log(u), jnp.log(v)
        # Comparisons with NaN are false: an underflow takes the slow branch.
        near = jnp.maximum(jnp.max(jnp.abs(log_u)), jnp.max(jnp.abs(log_v))) < LARGEST_LOG_SCALE
        return jax.lax.cond(near, lambda: (f + log_u, g + log_v), lambda: log_block((f, g), BLOCK)), None

    blocks = max(iterations // BLOCK - 1, 0)
    start = log_block((jnp.zeros(n), jnp.zeros(m)), iterations - blocks * BLOCK)
    (f, g), _ = jax.lax.scan(block, start, None, length=blocks)
    # To first order the cost moves with its points by the potentials' means there; rows may be pairs, moving together.
    spread = jnp.var(f + g) / n if n == m else jnp.var(f) / n + jnp.var(g) / m
    # The rows of P sum to 1 / n, since f was updated last; a softmax keeps that in spite of f's rounding.
    value = jnp.mean(jnp.sum(jax.nn.softmax(g[None, :] - cost, axis=1) * cost, axis=1))
    return regularization * value, regularization * jnp.sqrt(spread)


def sinkhorn_cost(x: ArrayLike, y: ArrayLike, regularization: float = 1e-3, iterations: int = 1024) -> Estimate:
    """The transport cost <P, C> of entropic optimal transport between two sets of points of equal weights.

    Between x [N, ...] and y [M, ...], flattened: C is the squared Euclidean distance, P = exp((f + g - C) / regularization)
    after a fixed number of Sinkhorn iterations, so that no stopping test depends on the number of points. The standard error is
    of the cost's first order, by the variance of the potentials at the points. Samples: the smaller of N and M.

    The exponentials are the cost: 16 iterations share one kernel matrix that absorbs the potentials, and blocks whose
    scalings stray further than e^20 from it (the first ones) are done again with a log-sum-exp in each iteration.

    Source: Cuturi 2013, arXiv 1306.0895; the absorption: Schmitzer 2019, arXiv 1610.06519, algorithm 2; the error: del Barrio
    and Loubes 2019, arXiv 1705.01299 (without regularization).
    """
    x, y = point_sets(x, y, "sinkhorn_cost")
    cost, error = _entropic_cost(x, y, np.float32(regularization), iterations)
    return Estimate(float(cost), float(error), min(len(x), len(y)))


def sinkhorn_floor(truth: ArrayLike, regularization: float = 1e-3, iterations: int = 1024, rows: int = 2048) -> float:
    """The cost between the truth's first and last rows, what two fresh samples of the truth would score."""
    count = min(rows, np.shape(truth)[0] // 2)
    return sinkhorn_cost(truth[:count], truth[-count:], regularization, iterations).value  # type: ignore[index]


def sinkhorn_divergence(
    x: ArrayLike,
    truth: ArrayLike,
    regularization: float = 1e-3,
    iterations: int = 1024,
    rows: int = 2048,
    floor: float | None = None,
) -> Estimate:
    """``sinkhorn_cost`` of the truth's first rows to x's first rows, minus ``sinkhorn_floor``.

    Where row i of x is a reconstruction of row i of truth, it is slightly negative for x = truth. If the truth has fewer
    than 2 * ``rows`` rows, its first and last halves are used. ``floor`` is ``sinkhorn_floor`` of the same arguments, computed here if None;
    the standard error is that of the cost. Samples: points per side.
    """
    count, given = min(rows, np.shape(truth)[0] // 2), np.shape(x)[0]
    if given < count:
        raise UserError(f"sinkhorn_divergence: {given} reconstructions; expected at least {count}; lower rows")
    if floor is None:
        floor = sinkhorn_floor(truth, regularization, iterations, rows)
    cost = sinkhorn_cost(truth[:count], x[:count], regularization, iterations)  # type: ignore[index]
    return cost._replace(value=cost.value - floor)


@functools.partial(jax.jit, static_argnames="projections")
def _sliced(key: Key, x: Array, y: Array, i: Array, j: Array, weights: Array, projections: int) -> Array:
    directions = jax.random.normal(key, (projections, x.shape[1]))

    def one(direction: Array) -> Array:
        direction = direction / jnp.linalg.norm(direction)
        a = jnp.sort(jnp.matmul(x, direction, precision="highest"))
        b = jnp.sort(jnp.matmul(y, direction, precision="highest"))
        return jnp.sum(weights * (a[i] - b[j]) ** 2)

    return jax.lax.map(one, directions)


def sliced_wasserstein(x: ArrayLike, y: ArrayLike, key: Key, projections: int = 256) -> Estimate:
    """The squared sliced 2-Wasserstein distance, E_theta W2^2(theta . x, theta . y) over unit directions theta.

    The one-dimensional distances between x [N, ...] and y [M, ...], flattened, are exact; the key draws the directions, so that
    one key makes values comparable. Two samples of one distribution score above 0, the less so the larger they are. The
    standard error is that of the directions alone. Samples: the smaller of N and M.

    Source: Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures".
    """
    x, y = point_sets(x, y, "sliced_wasserstein")
    n, m = len(x), len(y)
    # The steps of two empirical quantile functions: on each piece between the breaks i/n and j/m both are constant.
    breaks = np.unique(np.concatenate([np.arange(n + 1) * m, np.arange(m + 1) * n]))
    i, j = (breaks[:-1] // m).astype(np.int32), (breaks[:-1] // n).astype(np.int32)
    values = _sliced(key, x, y, i, j, (np.diff(breaks) / (n * m)).astype(np.float32), projections=projections)
    return mean_estimate(values)._replace(samples=min(n, m))


def observation_features(y: ArrayLike, operator: Any = ()) -> np.ndarray:
    """Observations as points: y [N, ...] and the operators' leaves [N, ...], flattened and side by side, [N, D]."""
    return np.concatenate([flat(leaf) for leaf in (y, *jax.tree.leaves(operator))], axis=1)


@functools.partial(jax.jit, static_argnames="observe")
def _scores(observe: Callable[..., Array], keys: Key, observed: Observation, x: Array, at: Array) -> Array:
    def one(key: Key, observation: Observation, at: Array) -> Array:
        pool = x[at]
        made = jax.vmap(observe, in_axes=(0, 0, None))(jax.random.split(key, len(pool)), pool, observation.operator)
        made = made.reshape(len(pool), -1)
        error = jnp.sqrt(jnp.sum((made - observation.y.reshape(1, -1)) ** 2, axis=1))
        # Disjoint pairs: unbiased, and linear in the pool's size.
        pairs = jnp.sqrt(jnp.sum((made[0::2] - made[1::2]) ** 2, axis=1))
        return jnp.mean(error) - 0.5 * jnp.mean(pairs)

    return jax.lax.map(lambda args: one(*args), (keys, observed, at), batch_size=CHUNK)


def observation_scores(
    observe: Callable[..., Array], observed: Observation, x: ArrayLike, key: Key, pool: int = POOL
) -> np.ndarray:
    """The energy score of each observation under fresh corruptions, by its own operator, of other reconstructions.

        s_i = E_j |y'_ij - y_i| - E_jk |y'_ij - y'_ik| / 2,    y'_ij ~ p(y | x_j, operator_i), j and k not i.

    The mean over observations is strictly proper: with enough rows it is least where p(y | operator) is that of the data, for
    every operator. With the same key the scores of two rounds share their randomness and can be compared row by row.
    ``observe`` is (key, x, operator) -> y; of N observations and reconstructions x [N, ...] come N scores, each by ``pool`` of
    the reconstructions, an even number, or fewer where there are fewer.

    Source: Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", section 4.2.
    """
    x = np.asarray(x, np.float32)
    count = len(x)
    pool = min(pool, (count - 1) // 2 * 2)
    if pool < 2 or len(observed.y) != count:
        found = f"{len(observed.y)} observations, {count} reconstructions"
        raise UserError(f"observation_scores: {found}; expected equally many, at least 3")
    pick, noise = jax.random.split(key)
    # Distances that differ from 0 and from each other: no observation meets its own reconstruction.
    shifts = 1 + np.asarray(jax.random.permutation(pick, count - 1))[:pool]
    at = (np.arange(count)[:, None] + shifts) % count
    return np.asarray(_scores(observe, jax.random.split(noise, count), observed, x, at), np.float64)
