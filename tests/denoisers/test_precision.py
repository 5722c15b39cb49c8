"""Whatever an estimate computes beside its network is in full float32, whatever a backend's default for products."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.corruptions import Projection
from diffem_jax.denoisers.denoiser import bind
from diffem_jax.denoisers.edm import edm_denoiser
from diffem_jax.denoisers.guidance import mmps, pigdm
from diffem_jax.denoisers.posterior import moments_denoiser, posterior_denoiser
from diffem_jax.gaussians.gaussians import Mixture
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.samplers.schedules import VarianceExploding
from diffem_jax.types import Observation

D = 40
CORRUPTION = Projection(shape=(D,), measurements=12, noise_std=0.01)
SCHEDULE = VarianceExploding(1e-3, 10.0)
RNG = np.random.default_rng(0)
START = Mixture(
    jnp.zeros(2), Gaussian(jnp.ones((2, D)), jnp.ones((2, D)), jnp.asarray(RNG.normal(size=(2, 5, D)), jnp.float32))
)


class Elementwise(nn.Module):
    """A network without matrix products."""

    @nn.compact
    def __call__(self, x, noise, condition=None, train=False):
        return 0.1 * jnp.tanh(x)


def posterior(observation):
    return bind(posterior_denoiser(Elementwise(), SCHEDULE, CORRUPTION, (D,), START), {}, observation)


def moments(observation):
    return bind(moments_denoiser(Elementwise(), SCHEDULE, CORRUPTION, (D,), START), {}, observation)


def guided(transform, **options):
    free = bind(edm_denoiser(Elementwise(), SCHEDULE, None, (D,)), {})
    return lambda observation: transform(free, SCHEDULE, CORRUPTION, observation, **options)


CASES = {
    "posterior": posterior,
    "moments": moments,
    "pigdm": guided(pigdm),
    "mmps": guided(mmps),
    "mmps, cov_x": guided(mmps, moments=jax.tree.map(lambda leaf: leaf[0], START.components)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_product_beside_the_network_asks_for_full_precision(case):
    def run(x, y, operator, t):
        return CASES[case](Observation(y, operator))(x, t)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((D,), (12,), (12, D), ())]
    text = jax.jit(run).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("HIGHEST" in line for line in products), products
