"""Noise schedules, time grids, laws of t in training and loss weights: small frozen dataclasses and functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.types import Schedule


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
