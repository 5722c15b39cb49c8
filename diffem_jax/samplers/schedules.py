"""Noise schedules, t -> (alpha_t, sigma_t), and time grids, (schedule, steps, data_std) -> times [steps + 1] from 1 to 0."""

import dataclasses
import functools
import math
from typing import Any

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
        """(alpha_t, sigma_t)."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return jnp.ones_like(t), jnp.exp(low + (high - low) * t)


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


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """The straight line alpha_t = 1 - t', sigma_t = t' with t' affine in t, so that sigma / alpha spans the stated range.

    Source: Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv 2210.02747.
    """

    sigma_min: float = 1e-3
    sigma_max: float = 100.0

    def __call__(self, t: Array) -> tuple[Array, Array]:
        """(alpha_t, sigma_t)."""
        low, high = (ratio / (1 + ratio) for ratio in (self.sigma_min, self.sigma_max))
        line = low + (high - low) * t
        return 1 - line, line


SCHEDULES: dict[str, Any] = {"ve": VarianceExploding, "vp": VariancePreserving, "rectified_flow": RectifiedFlow}


def noise_ratio(schedule: Schedule, t: Array) -> Array:
    """sigma_t / alpha_t, the noise in units of x."""
    alpha, sigma = schedule(t)
    return sigma / alpha


@functools.partial(jax.jit, static_argnums=0)
def time_at(schedule: Schedule, ratio: Array) -> Array:
    """The t in [0, 1] at which sigma_t / alpha_t = ratio, by bisection; 0 or 1 beyond the schedule's range."""

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        below = noise_ratio(schedule, middle) < ratio
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 26, halve, (jnp.zeros_like(ratio), jnp.ones_like(ratio)))
    least, most = noise_ratio(schedule, jnp.zeros(())), noise_ratio(schedule, jnp.ones(()))
    return jnp.where(ratio <= least, 0.0, jnp.where(ratio >= most, 1.0, (low + high) / 2))


def log_uniform_grid(schedule: Schedule, steps: int, data_std: float = 1.0) -> Array:
    """Steps + 1 times from 1 to 0, equally spaced in t (log-uniform in sigma for the exploding schedule), as published."""
    return jnp.linspace(1.0, 0.0, steps + 1)


def karras_grid(schedule: Schedule, steps: int, data_std: float = 1.0, rho: float = 7.0) -> Array:
    """Steps + 1 times from 1 to 0 whose sigma^(1 / rho) are equally spaced.

    Source: Karras et al. 2022, arXiv 2206.00364, equation 5.
    """
    high, low = noise_ratio(schedule, jnp.array([1.0, 0.0])) ** (1 / rho)
    sigma = jnp.linspace(high, low, steps + 1)[1:-1] ** rho
    return jnp.concatenate([jnp.ones(1), time_at(schedule, sigma), jnp.zeros(1)])


def tangent_grid(schedule: Schedule, steps: int, data_std: float = 1.0, rho: float = 2.0) -> Array:
    """Steps + 1 times from 1 to 0 with sigma = data_std tan(u)^rho, u equally spaced.

    u ends at 0, or with many steps at sigma_min, so that no noise level lies below it. The steps are closest at data_std.
    rho = 1 is uniform in the angle arctan(sigma / data_std); greater values spread the steps over more scales.
    """
    ends = noise_ratio(schedule, jnp.array([1.0, 0.0])) / data_std
    top, least = jnp.arctan(ends ** (1 / rho))
    end = jnp.where(top / steps >= least, 0.0, least)
    sigma = data_std * jnp.tan(jnp.linspace(top, end, steps + 1)[1:-1]) ** rho
    return jnp.concatenate([jnp.ones(1), time_at(schedule, sigma), jnp.zeros(1)])


TIME_GRIDS: dict[str, Any] = {"tangent": tangent_grid, "log_uniform": log_uniform_grid, "karras": karras_grid}
