"""Noise that is not one Gaussian for all: photon counts, and a standard deviation of each observation's own."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.corruptions.base import AdditiveNoise, Denoising
from diffem_jax.types import Key, Observation, PyTree, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poisson(AdditiveNoise):
    """Photon counts: y = 4 k / peak - 2 with k ~ Poisson(peak (x + 2) / 4), so that E[y | x] = x; for x >= -2.

    Attributes:
        noise_std: Gaussian read-out noise on top, 0 for none.
        peak: the mean count at the brightest value, x = 2; > 0.
    """

    noise_std: float = 0.0
    peak: float = 30.0

    def __post_init__(self) -> None:
        """Refuses a peak that is not positive."""
        if not self.peak > 0:
            raise UserError(f"corruption.peak: {self.peak}; expected a number > 0; change corruption.peak")

    def forward(self, x: Array, operator: PyTree) -> Array:
        """x, and -2 where it is below that: there are no negative rates."""
        del operator
        return jnp.maximum(x, -2.0)

    def noise_variance(self, x: Array, operator: PyTree) -> Array:
        """4 (x + 2) / peak + noise_std^2."""
        return 4.0 * (self.forward(x, operator) + 2.0) / self.peak + self.noise_std**2

    def observe(self, key: Key, x: Array, operator: PyTree) -> Array:
        """Draws the counts and the read-out noise."""
        count_key, noise_key = jax.random.split(key)
        rate = self.peak * (self.forward(x, operator) + 2.0) / 4.0
        counts = jax.random.poisson(count_key, rate).astype(x.dtype)
        return 4.0 * counts / self.peak - 2.0 + self.noise_std * jax.random.normal(noise_key, x.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaryingNoise(Denoising):
    """y = x + s n with a standard deviation s of each observation's own, drawn log-uniformly; the operator is s.

    Attributes:
        noise_std: the smallest s, > 0.
        noise_std_max: the largest s.
    """

    noise_std: float = 0.01
    noise_std_max: float = 0.5

    def __post_init__(self) -> None:
        """Refuses bounds that are not positive and in order."""
        if not 0 < self.noise_std <= self.noise_std_max:
            raise UserError(
                f"corruption.noise_std, noise_std_max: {self.noise_std}, {self.noise_std_max}; "
                "expected 0 < noise_std <= noise_std_max; change them"
            )

    def draw_operator(self, key: Key) -> Array:
        """s, a scalar."""
        low, high = math.log(self.noise_std), math.log(self.noise_std_max)
        return jnp.exp(low + (high - low) * jax.random.uniform(key, ()))

    def noise_level(self, operator: Array) -> Array:
        """The operator s."""
        return operator

    def condition(self, observation: Observation) -> Array:
        """The array y and a plane of log s (one more entry for vectors): [*spatial, C + 1]."""
        shape = (*self.shape[:-1], 1)
        return jnp.concatenate([observation.y, jnp.broadcast_to(jnp.log(observation.operator), shape)], -1)
