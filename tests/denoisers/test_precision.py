"""Closed forms, and whatever an estimate computes beside its network, are in full float32 whatever a backend's default."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.corruptions import CORRUPTIONS, Linear, Projection
from diffem_jax.denoisers.denoiser import bind
from diffem_jax.denoisers.edm import edm_denoiser
from diffem_jax.denoisers.guidance import mmps, pigdm
from diffem_jax.denoisers.posterior import moments_denoiser, posterior_denoiser
from diffem_jax.gaussians.factor_analysis import em_iteration
from diffem_jax.gaussians.gaussians import Mixture, mixture_posterior_mean, posterior_moments, sample_posterior
from diffem_jax.gaussians.linalg import Gaussian, full_precision
from diffem_jax.samplers.schedules import VarianceExploding
from diffem_jax.types import Observation

SHAPE, D, SCHEDULE = (4, 4, 3), 40, VarianceExploding(1e-3, 10.0)


def products(function, *arguments):
    """The products of matrices in a program for a TPU, lowered."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    return [line for line in text.splitlines() if "dot_general" in line]


def assert_full_precision(function, *arguments):
    found = products(function, *arguments)
    assert found and all("HIGHEST" in line for line in found), [line for line in found if "HIGHEST" not in line][:3]


def mixture(shape, variance_shape=()):
    factor = np.random.default_rng(0).normal(size=(2, 3, *shape))
    part = Gaussian(jnp.ones((2, *shape)), jnp.ones((2, *variance_shape)), jnp.asarray(factor, jnp.float32))
    return Mixture(jnp.zeros(2), part)


def test_a_product_outside_of_closed_forms_asks_for_none():
    def plain(a):
        return a @ a

    assert all("HIGHEST" not in line for line in products(plain, jnp.ones((2, 2))))
    assert_full_precision(full_precision(plain), jnp.ones((2, 2)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows(Linear):
    """A user's own corruption with a plain product in it."""

    def forward(self, x, operator):
        del operator
        return jnp.sin(jnp.arange(240.0)).reshape(5, 48) @ x.reshape(-1)


NAMES = ("pixel_mask", "motion_blur", "projection", "fourier_mask", "composition")


@pytest.mark.parametrize("kind", [*map(CORRUPTIONS.get, NAMES), Rows])
def test_every_product_of_a_closed_form_asks_for_full_precision(kind):
    corruption = kind(shape=SHAPE)

    def use(key, x, law):
        observation, options, one = corruption.sample(key, x), {"variance_floor": 1e-4, "batch_size": 2}, jnp.ones(())
        y, operator = observation
        pair = jax.tree.map(lambda a: jnp.stack([a, a]), observation)
        return (
            em_iteration(key, law, pair, jnp.arange(2), jnp.ones(2), corruption=corruption, **options),
            corruption.condition(observation),
            sample_posterior(key, corruption, law, observation),
            posterior_moments(corruption, law, observation),
            mixture_posterior_mean(corruption, law, x, one, jnp.float32(0.1), observation),
            jax.grad(lambda r: jnp.sum(corruption.solve_gram(r, operator, one) ** 2))(y),
        )

    with jax.debug_key_reuse(False):
        assert_full_precision(use, jax.random.key(0), jnp.ones(SHAPE), mixture(SHAPE))


class Elementwise(nn.Module):
    """A network without matrix products."""

    @nn.compact
    def __call__(self, x, noise, condition=None, train=False):
        return 0.1 * jnp.tanh(x)


CORRUPTION, START = Projection(shape=(D,), measurements=12, noise_std=0.01), mixture((D,), (D,))
ONE = jax.tree.map(lambda leaf: leaf[0], START.components)
FREE = bind(edm_denoiser(Elementwise(), SCHEDULE, None, (D,)), {})


def based(make):
    return lambda observation: bind(make(Elementwise(), SCHEDULE, CORRUPTION, (D,), START), {}, observation)


def guided(transform, **options):
    return lambda observation: transform(FREE, SCHEDULE, CORRUPTION, observation, **options)


CASES = {"posterior": based(posterior_denoiser), "moments": based(moments_denoiser), "pigdm": guided(pigdm)}
CASES |= {"mmps": guided(mmps), "mmps, cov_x": guided(mmps, moments=ONE)}


@pytest.mark.parametrize("case", CASES)
def test_every_product_beside_the_network_asks_for_full_precision(case):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((D,), (12,), (12, D), ())]
    assert_full_precision(lambda x, y, operator, t: CASES[case](Observation(y, operator))(x, t), *shapes)
