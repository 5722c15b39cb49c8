"""Closed forms keep full float32 where the backend's matrix products round their inputs to bfloat16, as on TPU."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.interpreters import mlir
from jax._src.lax.lax import dot_general_p

from diffem_jax.corruptions import Projection
from diffem_jax.denoisers.denoiser import bind
from diffem_jax.denoisers.edm import edm_denoiser
from diffem_jax.denoisers.guidance import POSTERIORS
from diffem_jax.denoisers.posterior import moments_denoiser, posterior_denoiser
from diffem_jax.gaussians.gaussians import Mixture
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.samplers.schedules import VarianceExploding

D = 40
CORRUPTION = Projection(shape=(D,), measurements=12, noise_std=0.01)
SCHEDULE = VarianceExploding(1e-3, 10.0)


class Elementwise(nn.Module):
    """A network without matrix products."""

    @nn.compact
    def __call__(self, x, noise, condition=None, train=False):
        return 0.1 * jnp.tanh(x)


@pytest.fixture
def reduced_products():
    """Products of default precision round their inputs to eight bits, as a TPU does; others are left alone."""
    entry = mlir._platform_specific_lowerings["cpu"][dot_general_p]

    def rule(context, a, b, **params):
        if params["precision"] is not None and "DEFAULT" not in str(params["precision"]):
            return entry.rule(context, a, b, **params)

        def product(a, b):
            a, b = (jax.lax.reduce_precision(x, 8, 7) for x in (a, b))
            return dot_general_p.bind(a, b, **{**params, "precision": (jax.lax.Precision.HIGHEST,) * 2})

        return mlir.lower_fun(product, multiple_results=False)(context, a, b)

    def switch(on):
        mlir.register_lowering(dot_general_p, rule if on else entry.rule, platform="cpu")

    yield switch
    switch(False)


def start():
    rng = np.random.default_rng(0)
    leaves = rng.normal(size=(1, D)), np.full((1, D), 0.1), rng.normal(size=(1, 5, D))
    return Mixture(jnp.zeros(1), Gaussian(*(jnp.asarray(leaf, jnp.float32) for leaf in leaves)))


def denoised(name):
    """x-hat near the data's own noise level, where the solves are worst conditioned."""
    law = start()
    x = law.components.mean[0] + law.components.factor[0, 0]
    observation = CORRUPTION.sample(jax.random.key(1), x)

    def run(x_t, t):
        if name in POSTERIORS:
            free = bind(edm_denoiser(Elementwise(), SCHEDULE, None, (D,)), {})
            return POSTERIORS[name](free, SCHEDULE, CORRUPTION, observation)(x_t, t)
        make = {"posterior": posterior_denoiser, "moments": moments_denoiser}[name]
        return bind(make(Elementwise(), SCHEDULE, CORRUPTION, (D,), law), {}, observation)(x_t, t)

    return np.asarray(jax.jit(run)(x + 0.5 * jax.random.normal(jax.random.key(2), (D,)), jnp.float32(0.7)))


@pytest.mark.parametrize("name", ["posterior", "moments", "pigdm", "dps"])
def test_reduced_products_do_not_change_an_estimate(name, reduced_products):
    full = denoised(name)
    reduced_products(True)
    np.testing.assert_allclose(denoised(name), full, atol=2e-4)


def test_the_emulation_reduces_products(reduced_products):
    a = jnp.full((4, 4), 1.001)
    reduced_products(True)
    assert float(jax.jit(lambda a: a @ a)(a)[0, 0]) == 4.0
