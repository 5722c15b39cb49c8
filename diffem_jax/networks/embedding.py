"""How a network sees the noise level: sines and cosines of log sigma."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

NETWORK_VERSION = 2
"""Raised by one whenever a network here, or a denoiser or condition array around it, becomes another function of the same
parameters: those of an earlier version would still load, but draw wrongly. 2: the noise embedding's slower waves.
"""


def sinusoidal_embedding(noise: Array, features: int) -> Array:
    """[B] -> [B, features]: sines and cosines of the log noise level at geometric frequencies from 1/16 to 1/2.

    What a denoiser does changes slowly with the log noise level; faster waves let a network fit changes
    that are not there.

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5, with a range made for log sigma in [-7, 5].
    """
    half = features // 2
    frequencies = jnp.exp(jnp.linspace(math.log(1 / 16), math.log(1 / 2), half))
    angles = noise[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def parameter_count(variables: object) -> int:
    """The number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
