"""Draws [S, N, ...], S for each of N observations, against the truth [N, ...]: coverage, TARP, CRPS, spread."""

from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import ArrayLike

from diffem_jax.errors import UserError
from diffem_jax.metrics.base import Estimate, mean_estimate
from diffem_jax.types import Key

LEVELS = (0.5, 0.8, 0.9, 0.95)


def _check(draws: ArrayLike, truth: ArrayLike, least: int) -> tuple[np.ndarray, np.ndarray]:
    draws, truth = np.asarray(draws, np.float32), np.asarray(truth, np.float32)
    if draws.shape[1:] != truth.shape or draws.ndim < 2 or draws.shape[0] < least:
        raise UserError(f"draws: {draws.shape}; expected [S, N, ...] with S >= {least} for the truth's {truth.shape}")
    return draws.reshape(*draws.shape[:2], -1), truth.reshape(truth.shape[0], -1)


def _share(less: np.ndarray, equal: np.ndarray, count: int, low: float, high: float) -> np.ndarray:
    # The truth's rank among `count` draws stands for a uniform number in [less, less + equal + 1] / (count + 1), which with exact
    # draws is uniform on [0, 1] for any count and any ties. This is the share of that interval between low and high.
    left, right = less / (count + 1), (less + equal + 1) / (count + 1)
    return np.maximum(np.minimum(right, high) - np.maximum(left, low), 0.0) / (right - left)


def coverage(draws: ArrayLike, truth: ArrayLike, levels: Sequence[float] = LEVELS) -> tuple[Estimate, ...]:
    """How often central credible intervals hold the truth, by the truth's rank among the draws, over all coordinates.

    A calibrated posterior gives each level in (0, 1) back in expectation, for any number of draws; a collapsed one covers too
    little, a smeared one too much. One estimate per level, with a standard error over observations. Samples: observations.
    """
    draws, truth = _check(draws, truth, 1)
    return tuple(mean_estimate(coverage_shares(draws, truth, level).mean(axis=1)) for level in levels)


def coverage_shares(draws: np.ndarray, truth: np.ndarray, level: float) -> np.ndarray:
    """Of each entry, the probability that its central interval holds the truth under randomised ranks, like ``truth``."""
    less, equal = (draws < truth).sum(axis=0), (draws == truth).sum(axis=0)
    return _share(less, equal, len(draws), (1 - level) / 2, (1 + level) / 2)


def tarp(
    draws: ArrayLike, truth: ArrayLike, key: Key, levels: Sequence[float] = LEVELS, references: ArrayLike | None = None
) -> tuple[Estimate, ...]:
    """Expected coverage of the regions "closer to a random point than the truth is", which sees joint errors.

    Calibrated draws give each level back whatever the ``references`` [N, ...], as long as they do not look at the truth given y;
    where they do not depend on y either, as the default, uniform in the box that the draws span, draws from the prior pass
    too. One estimate per level. Samples: observations.

    Source: Lemos et al. 2023, arXiv 2302.03026, algorithm 2.
    """
    draws, truth = _check(draws, truth, 1)
    if references is None:
        low, high = draws.min(axis=(0, 1)), draws.max(axis=(0, 1))
        references = low + (high - low) * np.asarray(jax.random.uniform(key, truth.shape))
    points = np.asarray(references, np.float32).reshape(truth.shape)
    return tuple(mean_estimate(tarp_shares(draws, truth, points, level)) for level in levels)


def tarp_shares(draws: np.ndarray, truth: np.ndarray, points: np.ndarray, level: float) -> np.ndarray:
    """Of each example, the probability under randomised ranks that the truth is among the ``level`` nearest to its point, [N]."""
    flat = (*draws.shape[:2], -1)
    distance = np.square(draws - points).reshape(flat).sum(axis=-1)
    truth_distance = np.square(truth - points).reshape(flat[1:]).sum(axis=-1)
    less, equal = (distance < truth_distance).sum(axis=0), (distance == truth_distance).sum(axis=0)
    return _share(less, equal, len(draws), 0.0, level)


def crps(draws: ArrayLike, truth: ArrayLike) -> Estimate:
    """E|X - x| - E|X - X'| / 2 per coordinate, averaged, by the estimator that is unbiased in the number of draws.

    It is a proper score: the exact posterior minimises it. Lower is better; at least 2 draws. Samples: observations.

    Source: Gneiting and Raftery 2007; Ferro 2014 ("fair" ensemble scores).
    """
    draws, truth = _check(draws, truth, 2)
    count = len(draws)
    error = np.abs(draws - truth).mean(axis=0)
    # The sum over pairs of sorted draws: the i-th is above i others and below count - 1 - i.
    weights = (2 * np.arange(count) - count + 1).astype(np.float32)
    pairs = np.einsum("s,s...->...", weights, np.sort(draws, axis=0)) / (count * (count - 1))
    return mean_estimate((error - pairs).mean(axis=1))


def spread(draws: ArrayLike) -> Estimate:
    """The standard deviation over an observation's draws, at least 2, averaged over coordinates. Samples: observations."""
    draws, _ = _check(draws, np.asarray(draws)[0], 2)
    return mean_estimate(draws.std(axis=0, ddof=1).mean(axis=1))
