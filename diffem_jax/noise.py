"""Gaussian noise of one example: the numbers of ``jax.random.normal``, by a hash that the CPU computes in one pass.

JAX lowers Threefry for the CPU as a loop over its rounds, each of which passes over the whole array: for a small network
the noise of a sampler's step then takes a twentieth of the step. Written out, all rounds are one fused pass over the counters,
as they are in what JAX lowers for accelerators; there this costs two arrays of keys as large as the noise, which nobody has measured.
JAX's checker of keys that are used twice does not see this use of one.

Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3" (Threefry-2x32, 20 rounds).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.types import Key

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)
FEWEST = 16
"""Of fewer numbers an example the fused pass is not vectorised, and the loop is as fast."""


def normal(key: Key, shape: tuple[int, ...]) -> Array:
    """Independent standard normal numbers, float32 of ``shape``; those of ``jax.random.normal(key, shape)`` as JAX is by default."""
    size = math.prod(shape)
    if not FEWEST <= size < 2**32 or jax.random.key_impl(key) != "threefry2x32":
        return jax.random.normal(key, shape)
    uniform = jax.lax.bitcast_convert_type((bits(key, size) >> np.uint32(9)) | np.uint32(0x3F800000), jnp.float32)
    # From [1, 2) to (-1, 1), as JAX does it.
    least = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(least, (uniform - np.float32(1)) * (np.float32(1) - least) + least)
    return (np.sqrt(np.float32(2)) * jax.lax.erf_inv(uniform)).reshape(shape)


def bits(key: Key, size: int) -> Array:
    """Random bits, uint32 [size]: those of ``jax.random.bits``, hashes of the counters 0 to ``size`` - 1."""
    pair = jax.random.key_data(key)
    # Keys as long as the counters, so that the hash is one loop over arrays of one shape also under vmap.
    first, second = jax.lax.optimization_barrier(tuple(jnp.broadcast_to(pair[i], (size,)) for i in range(2)))
    keys = (first, second, first ^ second ^ PARITY)
    x, y = keys[0], jnp.arange(size, dtype=jnp.uint32) + keys[1]
    for i in range(5):
        for r in ROTATIONS[i % 2]:
            x = x + y
            y = ((y << np.uint32(r)) | (y >> np.uint32(32 - r))) ^ x
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + np.uint32(i + 1)
    return x ^ y
