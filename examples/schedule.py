"""A noise schedule: alpha_t and sigma_t are cosine and sine of an angle that is linear in t.

    diffem --config=digits --config.schedule.name=examples.schedule:Cosine --workdir=runs/cosine

Source: Nichol and Dhariwal 2021, arXiv 2102.09672, section 3.2, with the ends set by the config.
"""

import dataclasses
import math

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Cosine:
    """alpha_t = cos a, sigma_t = sin a, with the angle a linear in t from atan(sigma_min) to atan(sigma_max)."""

    sigma_min: float = 1e-3
    sigma_max: float = 100.0

    def __call__(self, t):
        """(alpha_t, sigma_t)."""
        low, high = math.atan(self.sigma_min), math.atan(self.sigma_max)
        angle = low + (high - low) * t
        return jnp.cos(angle), jnp.sin(angle)
