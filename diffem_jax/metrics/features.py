"""Sets of feature vectors, of any function, against each other: Frechet and kernel distance, nearest neighbours."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from diffem_jax.errors import UserError
from diffem_jax.metrics.base import Estimate, mean_estimate, point_sets


def frechet_distance(features_x: ArrayLike, features_y: ArrayLike) -> Estimate:
    """|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), the squared W2 distance of the Gaussians fitted to [N, D] and [M, D].

    It is biased upwards for few samples, so compare only values of equally many. The standard error is that of two independent
    sets to first order, by the distance's derivative (x - m_x)^T (I - T) (x - m_x) + 2 (m_x - m_y) . (x - m_x) with T the
    optimal map's matrix. Samples: the smaller of N and M.

    Source: Heusel et al. 2017, arXiv 1706.08500.
    """
    x, y = point_sets(features_x, features_y, "frechet_distance", np.float64)
    if (count := min(len(x), len(y))) < 2:
        raise UserError(f"frechet_distance: {count} samples; expected at least 2 on each side")
    cov_x, cov_y = (np.atleast_2d(np.cov(points, rowvar=False)) for points in (x, y))
    # tr (S_x S_y)^(1/2) is the sum of the singular values of R_x^T R_y for any roots S = R R^T.
    roots, white = [], []
    for points, cov in ((x, cov_x), (y, cov_y)):
        values, vectors = np.linalg.eigh(cov)
        values = np.maximum(values, 0.0)
        roots.append(vectors * np.sqrt(values))
        inverse = np.where(values > 1e-9 * values.max(), 1 / np.sqrt(np.maximum(values, 1e-300)), 0.0)
        white.append((points - points.mean(0)) @ (vectors * inverse))
    left, cross, right = np.linalg.svd(roots[0].T @ roots[1])
    between = x.mean(0) - y.mean(0)
    value = np.sum(between**2) + np.trace(cov_x) + np.trace(cov_y) - 2 * cross.sum()
    variance = 0.0
    # In the whitened coordinates of each side, turned so that they agree, T is diagonal.
    for points, w, turn, shift in ((x, white[0], left, between), (y, white[1], right.T, -between)):
        centred = points - points.mean(0)
        slope = np.sum(centred**2, axis=1) + 2 * centred @ shift - np.square(w @ turn) @ cross
        variance += slope.var(ddof=1) / len(points)
    return Estimate(float(value), float(np.sqrt(variance)), count)


def kernel_distance(features_x: ArrayLike, features_y: ArrayLike, block: int = 1000) -> Estimate:
    """KID: the unbiased squared maximum mean discrepancy with the kernel (a . b / D + 1)^3 of features [N, D] and [M, D].

    It is the mean over disjoint blocks of so many rows, in random order, with their standard error. Samples: rows used per side.

    Source: Binkowski et al. 2018, arXiv 1801.01401.
    """
    x, y = point_sets(features_x, features_y, "kernel_distance", np.float64)
    if (size := min(block, len(x), len(y))) < 2:
        raise UserError(f"kernel_distance: blocks of {size} rows; expected at least 2 on each side")

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def discrepancy(a: np.ndarray, b: np.ndarray) -> float:
        pairs = sum((k.sum() - np.trace(k)) / (size * (size - 1)) for k in (kernel(a, a), kernel(b, b)))
        return float(pairs - 2 * kernel(a, b).mean())

    starts = range(0, min(len(x), len(y)) - size + 1, size)
    values = [discrepancy(x[start : start + size], y[start : start + size]) for start in starts]
    return mean_estimate(values)._replace(samples=size * len(values))


class Manifolds(NamedTuple):
    """Nearest-neighbour measures: quality (precision, density) and variety (recall, coverage)."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    squares = np.square(y).sum(axis=1)
    for part in (slice(start, start + 1024) for start in range(0, len(x), 1024)):
        yield part, np.square(x[part]).sum(axis=1)[:, None] + squares - 2 * x[part] @ y.T


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    # The smallest distance in a row is the point's own.
    return np.concatenate([np.partition(d, k, axis=1)[:, k] for _, d in _distances(x, x)])


def precision_recall_density_coverage(features_x: ArrayLike, features_y: ArrayLike, k: int = 5) -> Manifolds:
    """How much of x [N, D] lies on the truth's manifold [M, D] and the other way round, as unions of k-nearest-neighbour balls.

    Precision: the share of x inside some ball of the truth; recall: that of the truth inside some ball of x. Density: the
    mean number of the truth's balls around a point of x, over k; coverage: the share of the truth's balls that hold a point
    of x. Standard errors are those of means over points, the balls taken as given.

    Source: Kynkaanniemi et al. 2019, arXiv 1904.06991; Naeem et al. 2020, arXiv 2002.09797.
    """
    x, y = point_sets(features_x, features_y, "precision_recall_density_coverage", np.float64)
    if not 1 <= k < min(len(x), len(y)):
        raise UserError(f"k: {k}; expected from 1 to {min(len(x), len(y)) - 1}, one less than the smaller set; lower k")
    x, y = x - y.mean(axis=0), y - y.mean(axis=0)
    radius_x, radius_y = _radii(x, k), _radii(y, k)
    balls_around, recalled, covered = np.zeros(len(x), int), np.zeros(len(y), bool), np.zeros(len(y), bool)
    for part, distances in _distances(x, y):
        in_truth = distances < radius_y
        balls_around[part] = in_truth.sum(axis=1)
        covered |= in_truth.any(axis=0)
        recalled |= (distances < radius_x[part, None]).any(axis=0)
    return Manifolds(*map(mean_estimate, (balls_around > 0, recalled, balls_around / k, covered)))
