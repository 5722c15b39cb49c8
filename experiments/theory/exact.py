"""DiffEM in closed form where everything is Gaussian: x ~ N(m, S), y = A x + n with one of several known A.

One operator: pi^{k+1} = E_y pi^k(x | y) is Gaussian again, and the round is exact. Several operators: that average is a
mixture, and the round keeps its mean and covariance, as EM for a Gaussian does. Double precision throughout.
"""

from typing import NamedTuple

import numpy as np


class Normal(NamedTuple):
    """N(mean [D], cov [D, D])."""

    mean: np.ndarray
    cov: np.ndarray


class Channel(NamedTuple):
    """y = A_j x + n, j drawn with equal probabilities and known, n ~ N(0, noise_std^2 I)."""

    operators: np.ndarray  # [J, M, D]
    noise_std: float


def kl(p: Normal, q: Normal) -> float:
    """KL(p || q) of two Gaussians."""
    solved = np.linalg.solve(q.cov, p.cov)
    r = q.mean - p.mean
    _, log_det = np.linalg.slogdet(solved)
    return 0.5 * float(np.trace(solved) - len(r) - log_det + r @ np.linalg.solve(q.cov, r))


def observed(normal: Normal, a: np.ndarray, noise_std: float) -> Normal:
    """The distribution of y = a x + n."""
    return Normal(a @ normal.mean, a @ normal.cov @ a.T + noise_std**2 * np.eye(len(a)))


def observation_kl(truth: Normal, normal: Normal, channel: Channel) -> float:
    """KL(P_Y || pi_Y): the operator is part of y, so it is the mean over operators."""
    noise = channel.noise_std
    return float(np.mean([kl(observed(truth, a, noise), observed(normal, a, noise)) for a in channel.operators]))


def posterior(normal: Normal, a: np.ndarray, noise_std: float) -> tuple[np.ndarray, np.ndarray]:
    """The gain [D, M] and covariance [D, D] of x given y: E[x | y] = mean + gain (y - a mean)."""
    gain = np.linalg.solve(observed(normal, a, noise_std).cov, a @ normal.cov).T
    return gain, normal.cov - gain @ a @ normal.cov


def exact_round(normal: Normal, truth: Normal, channel: Channel) -> Normal:
    """Mean and covariance of E_{y ~ P_Y} pi^k(x | y)."""
    means, seconds = [], []
    for a in channel.operators:
        gain, cov = posterior(normal, a, channel.noise_std)
        y = observed(truth, a, channel.noise_std)
        mean = normal.mean + gain @ (y.mean - a @ normal.mean)
        means.append(mean)
        seconds.append(cov + gain @ y.cov @ gain.T + np.outer(mean, mean))
    mean = np.mean(means, axis=0)
    return Normal(mean, np.mean(seconds, axis=0) - np.outer(mean, mean))


def course(start: Normal, truth: Normal, channel: Channel, rounds: int) -> list[Normal]:
    """pi^0 to pi^rounds."""
    normals = [start]
    for _ in range(rounds):
        normals.append(exact_round(normals[-1], truth, channel))
    return normals


def predicted_rate(truth: Normal, channel: Channel) -> float:
    """By what KL(P_Y || pi_Y) is multiplied in a round near the truth: the square of the slowest direction's factor.

    The factors are the eigenvalues of the derivative of the round at its fixed point, which for EM is the share of the
    information that the observations miss (Dempster, Laird and Rubin 1977).
    """
    size = len(truth.mean)
    upper = np.triu_indices(size)

    def flat(normal: Normal) -> np.ndarray:
        return np.concatenate([normal.mean, normal.cov[upper]])

    def normal_of(vector: np.ndarray) -> Normal:
        cov = np.zeros((size, size))
        cov[upper] = vector[size:]
        return Normal(vector[:size], cov + cov.T - np.diag(np.diag(cov)))

    point, step = flat(truth), 1e-5
    columns = []
    for direction in np.eye(len(point)):
        ends = [flat(exact_round(normal_of(point + sign * step * direction), truth, channel)) for sign in (1, -1)]
        columns.append((ends[0] - ends[1]) / (2 * step))
    return float(np.max(np.abs(np.linalg.eigvals(np.array(columns).T))) ** 2)
