"""Augmentations of x in training, applied before the corruption so that x and its fresh observation belong together.

Each is (key, x [*S, C], strength) -> x; images lie in [-2, 2] and stay there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.errors import UserError
from diffem_jax.types import Key


def flip(key: Key, x: Array, probability: float = 0.5) -> Array:
    """Mirrors the last spatial axis with a probability."""
    return jnp.where(jax.random.bernoulli(key, probability), jnp.flip(x, axis=-2), x)


def shift(key: Key, x: Array, most: int = 4) -> Array:
    """Moves the image by up to ``most`` pixels along each spatial axis; what comes in is the image's reflection."""
    offsets = jax.random.randint(key, (x.ndim - 1,), 0, 2 * most + 1)
    padded = jnp.pad(x, [(most, most)] * (x.ndim - 1) + [(0, 0)], mode="reflect")
    return jax.lax.dynamic_slice(padded, [*offsets, jnp.zeros((), offsets.dtype)], x.shape)


def saturation(key: Key, x: Array, factors: tuple[float, float] = (0.95, 1.05)) -> Array:
    """Scales the distance from grey by a factor drawn log-uniformly between two."""
    low, high = factors
    grey = jnp.mean(x, axis=-1, keepdims=True)
    factor = jnp.exp(jax.random.uniform(key, (), minval=jnp.log(low), maxval=jnp.log(high)))
    return jnp.clip(grey + factor * (x - grey), -2.0, 2.0)


def hue(key: Key, x: Array, most: float = 0.01) -> Array:
    """Rotates the colours of an RGB image about the grey axis by up to ``most`` of a turn."""
    angle = 2 * jnp.pi * jax.random.uniform(key, (), minval=-most, maxval=most)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Rodrigues' rotation about (1, 1, 1) / sqrt(3).
    cross = jnp.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / jnp.sqrt(3.0)
    rotation = cos * jnp.eye(3) + sin * cross + (1 - cos) * jnp.full((3, 3), 1 / 3)
    return jnp.clip(jnp.matmul(x, rotation.T, precision="highest"), -2.0, 2.0)


AUGMENTATIONS: dict[str, Callable[..., Array]] = {"flip": flip, "shift": shift, "saturation": saturation, "hue": hue}


def make(names: tuple[str, ...], shape: tuple[int, ...], **strengths: Any) -> Callable[[Key, Array], Array] | None:
    """These augmentations in a row, third arguments in ``strengths``; None for none, UserError for misfits."""
    for name in names:
        if name not in AUGMENTATIONS:
            raise UserError(f"config.m_step.augment: {name!r}; expected any of {', '.join(AUGMENTATIONS)}")
        if len(shape) < 2 or (name in ("hue", "saturation") and shape[-1] != 3):
            raise UserError(f"config.m_step.augment: {name!r} does not fit examples of shape {shape}; remove it")
    if not names:
        return None

    def augment(key: Key, x: Array) -> Array:
        for i, name in enumerate(names):
            strength = (strengths[name],) if name in strengths else ()
            x = AUGMENTATIONS[name](jax.random.fold_in(key, i), x, *strength)
        return x

    return augment
