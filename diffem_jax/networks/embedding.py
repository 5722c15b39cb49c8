"""How a network sees the noise level: sines and cosines of log sigma."""

import math

import jax.numpy as jnp
from jax import Array

NETWORK_VERSION = 2
"""Raised by one whenever a network here, or a denoiser or condition array around it, becomes another function of the same
parameters: those of an earlier version would still load, but draw wrongly. 2: the noise embedding's slower waves.
"""


def sinusoidal_embedding(noise: Array, features: int) -> Array:
    """[B] -> [B, features]: sines and cosines of the log noise level at geometric frequencies from 1/16 to 1/2.

    What a denoiser does changes slowly with the log noise level; faster waves let a network fit changes that are not there.

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5, with a range made for log sigma in [-7, 5].
    """
    frequencies = jnp.exp(jnp.linspace(math.log(1 / 16), math.log(1 / 2), features // 2))
    angles = noise[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
