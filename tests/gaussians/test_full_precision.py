"""Closed forms are in full float32 whatever a backend's default: on the CPU, by rounding what an accelerator would round."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.lax import lax as lax_module

from diffem_jax.corruptions import CORRUPTIONS, Linear, Projection
from diffem_jax.gaussians.factor_analysis import em_iteration
from diffem_jax.gaussians.gaussians import Mixture, mixture_posterior_mean, posterior_moments, sample_posterior
from diffem_jax.gaussians.linalg import Gaussian, full_precision

SHAPE = (4, 4, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows(Linear):
    """A user's own corruption with a plain product in it."""

    def forward(self, x, operator):
        del operator
        return jnp.sin(jnp.arange(240.0)).reshape(5, 48) @ x.reshape(-1)


LINEAR = [
    "pixel_mask", "gaussian_blur", "motion_blur", "projection", "compressed_sensing", "fourier_mask", "composition",
]  # fmt: skip


def law(components=2, rank=3, scalar=False):
    rng = np.random.default_rng(0)
    variance = rng.uniform(0.1, 0.5, (components, *(() if scalar else SHAPE)))
    part = Gaussian(rng.normal(size=(components, *SHAPE)), variance, rng.normal(size=(components, rank, *SHAPE)))
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), Mixture(np.full(components, -np.log(components)), part))


def use(corruption, key, x, mixture):
    """Everything that a run computes in closed form with a corruption."""
    observation = corruption.sample(key, x)
    pair = jax.tree.map(lambda a: jnp.stack([a, a]), observation)
    options = {"corruption": corruption, "variance_floor": 1e-4, "batch_size": 2}
    fitted = em_iteration(key, mixture, pair, jnp.arange(2), jnp.ones(2), **options)
    return (
        fitted,
        corruption.condition(observation),
        sample_posterior(key, corruption, mixture, observation),
        posterior_moments(corruption, mixture, observation),
        mixture_posterior_mean(corruption, mixture, x, jnp.ones(()), jnp.float32(0.1), observation),
        jax.grad(lambda r: jnp.sum(corruption.solve_gram(r, observation.operator, jnp.ones(())) ** 2))(observation.y),
    )


def products(text):
    """The lowered products of a program."""
    return [line for line in text.splitlines() if "dot_general" in line]


@pytest.mark.parametrize("name", [*LINEAR, "own"])
def test_every_product_of_a_closed_form_asks_for_full_precision(name):
    corruption = Rows(shape=SHAPE) if name == "own" else CORRUPTIONS[name](shape=SHAPE)
    with jax.debug_key_reuse(False):
        lowered = jax.jit(lambda *args: use(corruption, *args)).trace(
            jax.random.key(0), jnp.ones(SHAPE), law(scalar=True)
        )
        text = lowered.lower(lowering_platforms=("tpu",)).as_text()
    found = products(text)
    assert found and all("HIGHEST" in line for line in found), [line for line in found if "HIGHEST" not in line][:3]


def test_a_product_outside_of_closed_forms_asks_for_none():
    def plain(a):
        return a @ a

    a = jnp.ones((2, 2))
    assert all("HIGHEST" not in line for line in products(jax.jit(plain).lower(a).as_text()))
    assert all("HIGHEST" in line for line in products(jax.jit(full_precision(plain)).lower(a).as_text()))


def rounded(a, keep):
    """The nearest number with so many bits after the leading one: 7 is bfloat16, 10 is TF32."""
    bits, drop = jax.lax.bitcast_convert_type(a, jnp.uint32), 23 - keep
    half = jnp.uint32((1 << (drop - 1)) - 1) + ((bits >> drop) & jnp.uint32(1))
    return jax.lax.bitcast_convert_type((bits + half) & jnp.uint32(0xFFFFFFFF ^ ((1 << drop) - 1)), jnp.float32)


@pytest.fixture
def reduced(monkeypatch):
    """Products of float32 round their factors to bfloat16, unless they or their surroundings ask for more."""
    exact = lax_module.dot_general

    def dot_general(lhs, rhs, dimension_numbers, precision=None, **options):
        asked = precision if precision is not None else jax.config.jax_default_matmul_precision
        if asked is None and lhs.dtype == rhs.dtype == jnp.float32:
            lhs, rhs = rounded(lhs, 7), rounded(rhs, 7)
        return exact(lhs, rhs, dimension_numbers, precision=precision, **options)

    monkeypatch.setattr(lax_module, "dot_general", dot_general)
    monkeypatch.setattr(jax.lax, "dot_general", dot_general)
    jax.clear_caches()
    yield
    jax.clear_caches()


def misfit(corruption, keys):
    """|A x - y| over the noise, of exact posterior draws x."""
    mixture = law(components=1, rank=8)
    x = mixture.components.mean[0] + jnp.tensordot(jnp.ones(8), mixture.components.factor[0], 1, precision="highest")
    observation = corruption.sample(keys[0], x)
    draw = jax.jit(jax.vmap(lambda key: sample_posterior(key, corruption, mixture, observation)))
    images = jax.vmap(corruption.forward, (0, None))(draw(jax.random.split(keys[1], 64)), observation.operator)
    return float(jnp.sqrt(jnp.mean((images - observation.y[None]) ** 2)) / corruption.noise_std)


def test_draws_fit_y_under_reduced_products(reduced):
    """At noise 1e-3, where rounded products would leave them several times the noise from y."""
    keys = jax.random.split(jax.random.key(1), 3)
    a = jax.random.normal(keys[2], (8, 8))
    assert jnp.abs(a @ a - jnp.matmul(a, a, precision="highest")).max() > 1e-3, "the emulation rounds nothing"
    assert misfit(Projection(shape=SHAPE, measurements=6, noise_std=1e-3), keys) < 1.3
