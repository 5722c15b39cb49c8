"""The noise of the samplers is JAX's own, by another way of computing it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax import noise
from diffem_jax.samplers import SAMPLERS, sample
from diffem_jax.schedules import VarianceExploding, log_uniform_grid

SHAPES = [(), (5,), (noise.FEWEST,), (17,), (8, 8, 1), (32, 32, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_numbers_are_those_of_jax(shape):
    keys = jax.random.split(jax.random.key(3), 20)
    ours = jax.jit(jax.vmap(lambda key: noise.normal(key, shape)))(keys)
    theirs = jax.vmap(lambda key: jax.random.normal(key, shape))(jax.random.clone(keys))
    assert ours.shape == (20, *shape) and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 16, 333, 70_000])
def test_the_bits_are_those_of_jax(size):
    key = jax.random.fold_in(jax.random.key(7), 5)
    np.testing.assert_array_equal(noise.bits(jax.random.clone(key), size), jax.random.bits(key, (size,)))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_kinds_of_keys_draw_with_their_own_generator(impl):
    key = jax.random.key(0, impl=impl)
    np.testing.assert_array_equal(noise.normal(jax.random.clone(key), (64,)), jax.random.normal(key, (64,)))


def test_the_hash_is_written_out():
    """No loop over rounds is left for the CPU, which is what it is for; JAX's own has one."""

    def loops(draw):
        return jax.jit(jax.vmap(lambda key: draw(key, (64,)))).lower(jax.random.split(jax.random.key(0), 4)).as_text()

    assert "while" not in loops(noise.normal)
    assert "while" in loops(jax.random.normal)


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_uses_a_key_twice(name, monkeypatch):
    """With JAX's own generator, whose use of keys the checker that all tests run under sees; and the draws are the same."""
    schedule, key = VarianceExploding(0.05, 20.0), jax.random.key(1)
    sampler, times = SAMPLERS[name](schedule), log_uniform_grid(schedule, 4)

    def draw(key):
        return jax.jit(lambda key: sample(key, sampler, lambda x, t: 0.5 * x, times, (64,)))(key)

    ours = draw(jax.random.clone(key))
    monkeypatch.setattr(noise, "FEWEST", 2**32)
    np.testing.assert_allclose(draw(key), ours, rtol=1e-5, atol=1e-6)
