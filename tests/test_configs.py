"""Every config that ships: checked, its full-size model traced, one E-step and M-step lowered for TPU and GPU."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffem_jax import em
from diffem_jax.build import draws_from_data, make_model, make_setup
from diffem_jax.config import validate
from diffem_jax.round_zero import standard_normal
from diffem_jax.types import stream_key

VARIANTS = {
    "digits": ("mask50", "mask75", "projection", "jpeg"),
    "manifold": ("quick", "best", "published", "paper"),
    "patches": ("mask50", "mask90", "blur", "jpeg"),
    "cifar10": ("mask75", "mask90", "blur", "jpeg20", "jpeg50", "jpeg70", "noisy"),
    "celeba": ("mask50", "mask75"),
    "own_data": ("small", "images"),
}
SHAPES = {
    "digits": (8, 8, 1),
    "manifold": (5,),
    "patches": (16, 16, 3),
    "cifar10": (32, 32, 3),
    "celeba": (64, 64, 3),
    "own_data": (16, 16, 3),
}
ALL = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]


@pytest.fixture(autouse=True)
def library_promotion():
    """Optax's schedules promote integer counts to floats, and Flax promotes in bfloat16."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def load(name: str, variant: str) -> ConfigDict:
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    if config.data.name == "observations":
        config.data.path = "given-on-the-command-line.npz"
    return config


def examples(setup) -> object:
    """One update's batch of two: x, and an operator beside each where the M-step takes those of the data."""
    key = jax.random.key(0)
    operator = jax.eval_shape(setup.corruption.draw_operator, key) if draws_from_data(setup) else None
    one = jax.ShapeDtypeStruct(setup.shape, jnp.float32)
    tree = one if operator is None else (one, operator)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, 2, *a.shape), a.dtype), tree)


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_config_is_valid_and_its_steps_trace_at_full_size(name, variant):
    config = load(name, variant)
    validate(config)
    setup = make_setup(config, SHAPES[name])
    model = make_model(setup, standard_normal(setup.shape))
    key = stream_key(0, "test")
    params = jax.eval_shape(model.denoiser.init, key)
    state = jax.eval_shape(lambda p: em.make_state(p, setup.optimizer), params)
    x = examples(setup)
    slots = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    m_step = em.make_m_step(model.loss, setup.optimizer, ema_decay=0.9)
    after, info = jax.eval_shape(m_step, key, state, x, slots)
    assert jax.tree.map(lambda a: a.shape, after.params) == jax.tree.map(lambda a: a.shape, params)
    assert info["loss"].shape == (1,)
    observation = jax.eval_shape(setup.corruption.sample, key, jax.ShapeDtypeStruct(setup.shape, jnp.float32))
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype), observation)
    e_step = em.make_e_step(model.bind, setup.sampler, setup.times, setup.shape)
    draws = jax.eval_shape(e_step, key, params, batch, jax.ShapeDtypeStruct((2,), jnp.int32))
    assert draws.shape == (2, *setup.shape)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(("name", "variant"), [("cifar10", "mask75"), ("celeba", "mask50"), ("manifold", "best")])
def test_steps_lower_for_accelerators(name, variant, platform):
    config = load(name, variant)
    setup = make_setup(config, SHAPES[name])
    model = make_model(setup, standard_normal(setup.shape))
    key = stream_key(0, "test")
    params = jax.eval_shape(model.denoiser.init, key)
    state = jax.eval_shape(lambda p: em.make_state(p, setup.optimizer), params)
    x = examples(setup)
    m_step = em.make_m_step(model.loss, setup.optimizer, ema_decay=0.9)
    with jax.debug_key_reuse(False):
        step = jax.jit(lambda data, s, a, b: m_step(jax.random.wrap_key_data(data), s, a, b))
        data = jax.ShapeDtypeStruct((2,), jnp.uint32)
        exported = jax.export.export(step, platforms=[platform])(
            data, state, x, jax.ShapeDtypeStruct((1, 2), jnp.int32)
        )
    assert exported.platforms == (platform,)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_unknown_variant_is_named(name):
    with pytest.raises(ValueError, match="nonsense"):
        load(name, "nonsense")


def test_paper_settings_of_the_manifold_can_be_read_off():
    config = load("manifold", "paper")
    assert (config.rounds, config.data.num_examples, config.m_step.steps) == (32, 65_536, 65_536)
    assert (config.e_step.sampler, config.e_step.steps) == ("pc", 4096)
    assert np.allclose((config.schedule.sigma_min, config.schedule.sigma_max), (1e-3, 10.0))
