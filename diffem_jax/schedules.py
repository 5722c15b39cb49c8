"""Noise schedules, time grids, laws of t in training and loss weights: small frozen dataclasses and functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.types import Key, Schedule, TimeLaw


@dataclasses.dataclass(frozen=True)
class VarianceExploding:
    """alpha_t = 1, sigma_t = sigma_min^(1 - t) sigma_max^t.

    Source: Song et al. 2021, arXiv 2011.13456, and the published runs of DiffEM (arXiv 2510.12691, appendix).
    """

    sigma_min: float = 1e-3
    sigma_max: float = 100.0

    def __call__(self, t: Array) -> tuple[Array, Array]:
        """(1, sigma_t)."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return jnp.ones_like(t), jnp.exp(low + (high - low) * t)

    def time(self, sigma: Array) -> Array:
        """The t at which sigma_t / alpha_t = sigma."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return (jnp.log(sigma) - low) / (high - low)


@dataclasses.dataclass(frozen=True)
class VariancePreserving:
    """alpha_t^2 + sigma_t^2 = 1 with sigma_t / alpha_t = sigma_min^(1 - t) sigma_max^t.

    The signal-to-noise ratio runs as in ``VarianceExploding``; only the scaling of x_t differs (Kingma et al. 2021,
    arXiv 2107.00630, section 3: schedules of equal signal-to-noise ratio are equivalent).
    """

    sigma_min: float = 1e-3
    sigma_max: float = 100.0

    def __call__(self, t: Array) -> tuple[Array, Array]:
        """(alpha_t, sigma_t)."""
        _, ratio = VarianceExploding(self.sigma_min, self.sigma_max)(t)
        alpha = jax.lax.rsqrt(1 + ratio**2)
        return alpha, ratio * alpha

    def time(self, sigma: Array) -> Array:
        """The t at which sigma_t / alpha_t = sigma."""
        return VarianceExploding(self.sigma_min, self.sigma_max).time(sigma)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """The straight line alpha_t = 1 - t', sigma_t = t' with t' affine in t, so that sigma / alpha spans the stated range.

    Source: Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv 2210.02747.
    """

    sigma_min: float = 1e-3
    sigma_max: float = 100.0

    def __call__(self, t: Array) -> tuple[Array, Array]:
        """(alpha_t, sigma_t)."""
        low = self.sigma_min / (1 + self.sigma_min)
        high = self.sigma_max / (1 + self.sigma_max)
        line = low + (high - low) * t
        return 1 - line, line

    def time(self, sigma: Array) -> Array:
        """The t at which sigma_t / alpha_t = sigma."""
        low = self.sigma_min / (1 + self.sigma_min)
        high = self.sigma_max / (1 + self.sigma_max)
        return (sigma / (1 + sigma) - low) / (high - low)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "ve": VarianceExploding,
    "vp": VariancePreserving,
    "rectified_flow": RectifiedFlow,
}


def log_uniform_grid(schedule: Schedule, steps: int) -> Array:
    """Steps + 1 times from 1 to 0, equally spaced in t (log-uniform in sigma for the exploding schedule), as published."""
    del schedule
    return jnp.linspace(1.0, 0.0, steps + 1)


def karras_grid(schedule: Schedule, steps: int, rho: float = 7.0) -> Array:
    """Steps + 1 times from 1 to 0 whose sigma^(1 / rho) are equally spaced.

    Source: Karras et al. 2022, arXiv 2206.00364, equation 5.
    """
    low, high = schedule.sigma_min ** (1 / rho), schedule.sigma_max ** (1 / rho)  # type: ignore[attr-defined]
    sigma = jnp.linspace(high, low, steps + 1) ** rho
    return jnp.clip(schedule.time(sigma), 0.0, 1.0)  # type: ignore[attr-defined]


TIME_GRIDS: dict[str, Callable[..., Array]] = {"log_uniform": log_uniform_grid, "karras": karras_grid}


@dataclasses.dataclass(frozen=True)
class Uniform:
    """t ~ U(0, 1)."""

    def sample(self, key: Key) -> Array:
        """One t."""
        return jax.random.uniform(key)


@dataclasses.dataclass(frozen=True)
class BetaMixture:
    """t ~ an even mixture of Beta(a, b) laws.

    Attributes:
        components: the pairs (a, b). Published: ((3, 3),) for images, ((2, 5), (5, 2)) for the manifold
            (arXiv 2510.12691; its text says Beta(3.5, 1.5), its runs used the mixture).
    """

    components: tuple[tuple[float, float], ...] = ((3.0, 3.0),)

    def sample(self, key: Key) -> Array:
        """One t."""
        choice_key, beta_key = jax.random.split(key)
        table = jnp.asarray(self._quantiles())
        row = jax.random.randint(choice_key, (), 0, len(self.components))
        # Inverse of a tabulated distribution function: jax.random.beta rejects in a loop, which costs more than a
        # small network's update.
        u = jax.random.uniform(beta_key) * (table.shape[1] - 1)
        floor = jnp.floor(u)
        low, frac = floor.astype(jnp.int32), u - floor
        return table[row, low] * (1 - frac) + table[row, jnp.minimum(low + 1, table.shape[1] - 1)] * frac

    def _quantiles(self) -> np.ndarray:
        # scipy is a dependency of jax itself.
        from scipy import stats

        u = np.linspace(0.0, 1.0, 1025)
        return np.stack([stats.beta.ppf(u, a, b) for a, b in self.components]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Matched:
    """A law whose density follows the size of the loss, under which the weighted loss has the mean of the base law.

    With base density b, loss f(t) (weighted, random through x, y' and z) and any density q > 0 where b is, f b / q has
    under t ~ q the mean of f under b, and the second moment int b^2 E[f^2 | t] / q dt. By Cauchy-Schwarz that is least for

        q(t) ~ b(t) sqrt(E[f(t)^2]),   here   q = b ((1 - share) r + share),  r = size / mean of size under b,

    so that no noise level is starved and no weight b / q exceeds 1 / share. The quantile function of q is tabulated, and the
    weight of a cell is what b and q give to it: whatever the sizes are, the objective stays the base's.

    Attributes:
        base: the law of t in the objective.
        sizes: sqrt(E[f^2]) at equally spaced t from 0 to 1 (``diffem_jax.matched`` measures them).
        share: the part of the base itself in q, in (0, 1].

    Raises:
        ValueError: a size that is negative or not finite, none that is positive, or a share outside (0, 1].

    Source: Nichol and Dhariwal 2021, arXiv 2102.09672, section 3.3 (importance sampling of steps by the root of their
    losses' second moments, with a share of the uniform law); their code renews the moments throughout training.
    """

    base: BetaMixture
    sizes: tuple[float, ...]
    share: float = 0.25

    def __post_init__(self) -> None:
        if not (all(math.isfinite(s) and s >= 0 for s in self.sizes) and any(self.sizes) and 0 < self.share <= 1):
            raise ValueError(
                f"sizes {self.sizes}, share {self.share}; expected finite sizes >= 0, one > 0; 0 < share <= 1"
            )

    def sample(self, key: Key) -> Array:
        """One t."""
        return self.draw(key)[0]

    def draw(self, key: Key) -> tuple[Array, Array]:
        """One t, and the weight b / q that its loss is multiplied by."""
        quantiles, weights = map(jnp.asarray, self._tables())
        u = jax.random.uniform(key) * weights.shape[0]
        cell = jnp.minimum(jnp.floor(u).astype(jnp.int32), weights.shape[0] - 1)
        frac = u - cell.astype(u.dtype)
        return quantiles[cell] * (1 - frac) + quantiles[cell + 1] * frac, weights[cell]

    def _tables(self, cells: int = 1024) -> tuple[np.ndarray, np.ndarray]:
        """Quantiles of q [cells + 1], and b's share of each of these cells times their number [cells]."""
        from scipy import stats

        def base(t: np.ndarray) -> np.ndarray:
            return np.mean([stats.beta.cdf(t, a, b) for a, b in self.base.components], axis=0)

        # Finer towards 0 and 1, where a density may grow without bound.
        edges = np.sin(np.linspace(0.0, np.pi / 2, 8 * cells + 1)) ** 2
        mass, middle = np.diff(base(edges)), (edges[1:] + edges[:-1]) / 2
        size = np.interp(middle, np.linspace(0.0, 1.0, len(self.sizes)), self.sizes)
        there = mass @ size
        relative = size / there if there > 0 else np.ones_like(size)
        below = np.concatenate([[0.0], np.cumsum(mass * ((1 - self.share) * relative + self.share))])
        quantiles = np.interp(np.linspace(0.0, below[-1], cells + 1), below, edges)
        return quantiles.astype(np.float32), (cells * np.diff(base(quantiles))).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class LogNormal:
    """log sigma ~ N(mean, std^2), clipped to the schedule's range.

    Source: Karras et al. 2022, arXiv 2206.00364, table 1 (mean -1.2, std 1.2).
    """

    schedule: Schedule
    mean: float = -1.2
    std: float = 1.2

    def sample(self, key: Key) -> Array:
        """One t."""
        sigma = jnp.exp(self.mean + self.std * jax.random.normal(key))
        return jnp.clip(self.schedule.time(sigma), 0.0, 1.0)  # type: ignore[attr-defined]


TIME_LAWS: dict[str, Callable[..., TimeLaw]] = {"uniform": Uniform, "beta": BetaMixture, "log_normal": LogNormal}


def snr_weight(sigma: Array, data_std: float) -> Array:
    """1 / sigma^2 + 1 / data_std^2 for sigma = sigma_t / alpha_t: the published weight (data_std = 1).

    It is also the inverse variance of x given x_t under N(mu, data_std^2 I), hence the natural weight of the
    'posterior' preconditioning. Source: Hosseintabar et al. 2025, arXiv 2510.12691; Karras et al. 2022,
    arXiv 2206.00364, equation 8.
    """
    return 1 / sigma**2 + 1 / data_std**2


def min_snr_weight(sigma: Array, data_std: float, gamma: float = 5.0) -> Array:
    """min(1 / sigma^2, gamma) + 1 / data_std^2: low noise levels no longer dominate.

    Source: Hang et al. 2023, arXiv 2303.09556.
    """
    return jnp.minimum(1 / sigma**2, gamma) + 1 / data_std**2


LOSS_WEIGHTS: dict[str, Callable[..., Array]] = {"snr": snr_weight, "min_snr": min_snr_weight}
