"""Augmentations: their strengths, the images' range, and what a shift brings in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.denoisers import augment

X = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (6, 6, 3)), jnp.float32)


def many(name, *strength, count=256):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: augment.AUGMENTATIONS[name](key, X, *strength)))(keys))


def test_a_shift_brings_in_the_reflection():
    found = {a.tobytes() for a in many("shift", 2)}
    padded = np.pad(np.asarray(X), [(2, 2), (2, 2), (0, 0)], mode="reflect")
    expected = {padded[i : i + 6, j : j + 6].tobytes() for i in range(5) for j in range(5)}
    assert found == expected


def test_a_flip_mirrors_half_of_the_images():
    flipped = (many("flip") == np.asarray(X)[:, ::-1]).all(axis=(1, 2, 3))
    assert ((many("flip") == np.asarray(X)).all(axis=(1, 2, 3)) != flipped).all()
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / 16


@pytest.mark.parametrize("strength", [0.01, 0.2])
def test_hue_turns_by_at_most_its_strength(strength):
    """The angle about the grey axis, and nothing else of a colour."""

    def across(x):
        return x - x.mean(-1, keepdims=True)

    turned, before = across(many("hue", strength)), across(np.asarray(X))
    size = np.linalg.norm(before, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.broadcast_to(size, turned.shape[:-1]), rtol=1e-3)
    cosine = (turned * before).sum(-1) / (np.linalg.norm(turned, axis=-1) * size)
    angles = np.arccos(np.clip(cosine, -1, 1)).mean(axis=(1, 2)) / (2 * np.pi)
    assert 0.9 * strength < angles.max() < 1.05 * strength


def test_saturation_scales_within_its_factors():
    grey = np.asarray(X).mean(-1, keepdims=True)
    factors = ((many("saturation", (0.8, 1.1)) - grey) / (np.asarray(X) - grey)).reshape(256, -1)
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1], factors.shape), rtol=1e-2)
    assert 0.799 < factors[:, 0].min() < 0.81 and 1.09 < factors[:, 0].max() < 1.101


def test_strengths_reach_the_augmentations_by_name():
    still = augment.make(("hue", "saturation"), X.shape, hue=0.0, saturation=(1.0, 1.0), shift=3)
    np.testing.assert_allclose(still(jax.random.key(0), X), X, atol=1e-6)
    assert augment.make((), X.shape, hue=0.0) is None
