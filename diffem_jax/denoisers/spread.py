"""How x scatters about x-hat given y: what samplers need so that draws are as wide as they should be."""

from __future__ import annotations

import jax
from jax import Array

from diffem_jax.samplers.samplers import isotropic_spread
from diffem_jax.types import Key, LinearCorruption, Observation, Spread


def observed_spread(corruption: LinearCorruption, observation: Observation) -> Spread:
    """The spread given y = A x + n: a draw of N(C w, C), C = (I / v + A^T A / noise_std^2)^-1, by one solve.

    With x' ~ N(v w, v I) and n' of the noise, x' - v A^T (v A A^T + noise_std^2 I)^-1 (A x' + n') has that distribution.

    Source: Matheron's rule; Doucet 2010, "A note on efficient conditional simulation of Gaussian distributions".
    """
    operator = observation.operator

    def spread(key: Key, w: Array, v: Array) -> Array:
        x_key, noise_key = jax.random.split(key)
        x = isotropic_spread(x_key, w, v)
        noise = corruption.noise_level(operator) * jax.random.normal(noise_key, observation.y.shape)
        return x - v * corruption.adjoint(
            corruption.solve_gram(corruption.forward(x, operator) + noise, operator, v), operator
        )

    return spread
