"""Corruptions that hide entries of x: y = m * (x + n) with a mask m of zeros and ones."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.corruptions.base import Linear
from diffem_jax.types import Key, Observation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask(Linear):
    """Base of the masks: the operator is an array of zeros (hidden) and ones (seen) that broadcasts to x.

    Hidden entries of y are exactly 0: neither x nor noise reaches them, so nothing can leak and a user's file may
    hold anything there. A subclass draws the mask.
    """

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """The mask's shape: [*spatial, 1] for images, the shape of x for vectors."""
        return (*self.shape[:-1], 1) if len(self.shape) > 1 else self.shape

    def _seen(self, mask: Array) -> Array:
        return jnp.broadcast_to(mask, self.shape) > 0

    def forward(self, x: Array, operator: Array) -> Array:
        """m * x, with hidden entries never read."""
        return jnp.where(self._seen(operator), x, 0.0)

    def adjoint(self, y: Array, operator: Array) -> Array:
        """m * y: a mask is its own adjoint."""
        return self.forward(y, operator)

    def sample(self, key: Key, x: Array) -> Observation:
        """Draws the mask and y = m * (x + n)."""
        observation = super().sample(key, x)
        return Observation(self.forward(observation.y, observation.operator), observation.operator)

    def solve_gram(self, r: Array, operator: Array, v: Array) -> Array:
        """r / (m v + noise_std^2), entry by entry; r is 0 where nothing is seen."""
        seen = self._seen(operator)
        return jnp.where(seen, r / (jnp.where(seen, v, 1.0) + self.noise_std**2), 0.0)

    def log_det_gram(self, operator: Array, v: Array) -> Array:
        """The sum of log(v + noise_std^2) over the seen entries."""
        return jnp.sum(jnp.where(self._seen(operator), jnp.log(v + self.noise_std**2), 0.0))

    def null_operator(self) -> Array:
        """The mask that hides everything."""
        return jnp.zeros(self.mask_shape)

    def condition(self, observation: Observation) -> Array:
        """The seen entries and the mask, [*spatial, C + M] for images and [2 D] for vectors."""
        mask = observation.operator.astype(jnp.float32)
        return jnp.concatenate([self.forward(observation.y, mask), mask], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelMask(Mask):
    """Every pixel is erased with probability ``rate``, independently.

    Attributes:
        rate: the probability that a pixel is erased, in [0, 1).
        per_channel: erase channels independently instead of whole pixels.

    Source: the random-pixel corruption of Daras et al. 2023, arXiv 2305.19256, and Hosseintabar et al. 2025,
    arXiv 2510.12691, section 4.
    """

    rate: float = 0.5
    per_channel: bool = False

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """[*spatial, 1] for whole pixels, the shape of x where channels are erased apart."""
        return self.shape if self.per_channel else super().mask_shape

    def draw_operator(self, key: Key) -> Array:
        """One mask: 1 with probability 1 - rate."""
        return jax.random.bernoulli(key, 1.0 - self.rate, self.mask_shape).astype(jnp.float32)
