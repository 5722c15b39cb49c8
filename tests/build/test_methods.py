"""The registry of methods: each builds its model, draws in shape, and refuses what does not fit it."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax import config
from diffem_jax.build import methods
from diffem_jax.errors import UserError
from diffem_jax.gaussians import stationary
from diffem_jax.gaussians.gaussians import Mixture
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.run.start import standard_normal
from diffem_jax.types import Observation

SHAPE = (4, 4, 1)
SEEN = Observation(np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32))


def configured(**fields):
    """The default config, valid, with fields changed: section__field=value."""
    c = config.default().unlock()
    c.network = {"name": "mlp", "features": (8,)}
    for name, value in fields.items():
        *sections, last = name.split("__")
        section = c
        for part in sections:
            section = section[part]
        section[last] = value
    if ":" not in c.method:
        config.validate(c)
    return c


def built(start=None, **fields):
    return methods.make_model(methods.make_setup(configured(**fields), SHAPE), start or standard_normal(SHAPE))


def identity(denoise, schedule, corruption, observation):
    """A posterior transform from outside."""
    return denoise


@pytest.mark.parametrize("method", [*methods.METHODS, f"{__name__}:identity"])
def test_every_method_denoises_trains_and_draws_a_prior_or_says_that_it_does_not(method):
    setup = methods.make_setup(configured(method=method), SHAPE)
    model = methods.make_model(setup, standard_normal(SHAPE))
    key = jax.random.key(0)
    params = jax.eval_shape(model.denoiser.init, key)
    x_hat = jax.eval_shape(lambda p: model.bind(p, SEEN)(jnp.zeros(SHAPE), jnp.float32(0.5)), params)
    assert x_hat.shape == SHAPE
    example = SEEN if model.trains_on == "observations" else jnp.zeros(SHAPE)
    assert jax.eval_shape(model.loss, params, key, example).shape == ()
    assert (model.prior is None) == (method in ("diffem", "oracle"))
    if model.prior is not None:
        draw = model.prior(setup.sampler, setup.times)
        assert jax.eval_shape(draw, key, params, SEEN).shape == SHAPE


def test_condition_dropout_gives_diffem_a_prior():
    assert built(m_step__condition_dropout=0.1).prior is not None


def test_em_mmps_has_every_covariance_and_number_of_iterations():
    """Each is another estimate of the same x-hat by the same network, and 'cov_x' takes the covariance of the start."""
    rng, models = np.random.default_rng(0), {}
    factor = jnp.asarray(rng.standard_normal((1, 2, *SHAPE)), jnp.float32)
    start = Mixture(jnp.zeros((1,)), Gaussian(jnp.zeros((1, *SHAPE)), jnp.full((1,), 0.3), factor))
    for case in (*product(config.FIELDS["mmps.covariance"].choices, (1, 3)), ("jacobian", 5)):
        covariance, iterations = case
        fields = {"mmps__covariance": covariance, "mmps__iterations": iterations, "corruption__noise_std": 0.1}
        models[case] = built(start, method="em_mmps", **fields)

    @jax.jit
    def estimates(key, y):
        params = next(iter(models.values())).denoiser.init(key)
        # An untrained network says 0.
        params = jax.tree.map(lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape), params)
        seen, t = Observation(y, jnp.ones(SHAPE)), jnp.float32(0.6)
        return [model.bind(params, seen)(y, t) for model in models.values()]

    found = np.asarray(estimates(jax.random.key(0), jnp.asarray(rng.standard_normal(SHAPE), jnp.float32)))
    assert np.isfinite(found).all()
    apart = np.abs(found[:, None] - found[None]).max(axis=(2, 3, 4))
    assert (apart[~np.eye(len(found), dtype=bool)] > 1e-4).all()


CLIPPING = {"name": "clipping", "noise_std": 0.1}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "ambient", "corruption": {"name": "gaussian_blur", "noise_std": 0.1}}, "written for masks"),
        ({"corruption": CLIPPING}, "clipping.*is not linear"),
        ({"method": "em_mmps", "corruption": CLIPPING}, "clipping.*is not linear.*em_mmps"),
        ({"method": "em_pigdm", "corruption": CLIPPING}, "clipping.*is not linear.*em_pigdm"),
        ({"method": "ambient", "m_step__augment": ("flip",)}, "observations as they are"),
        ({"m_step__augment": ("hue",)}, "hue.*does not fit"),
    ],
)
def test_methods_refuse_what_does_not_fit_them(fields, words):
    with pytest.raises(UserError, match=words):
        built(**fields)


def test_the_starts_covariance_needs_a_start_of_low_rank():
    start = stationary.first_guess(jnp.zeros(SHAPE), 1.0)
    with pytest.raises(UserError, match=r"cov_x.*low rank"):
        built(start, method="em_mmps", mmps__covariance="cov_x")


@pytest.mark.parametrize("method", ["diffem", "em_mmps", "ambient"])
def test_every_loss_can_be_weighted_by_what_the_base_leaves_open(method):
    """For the published preconditioning that is the published weight."""
    one, other = (
        built(method=method, denoiser__preconditioning="edm", m_step__loss_weight=weight) for weight in ("base", "snr")
    )
    params, key = one.denoiser.init(jax.random.key(0)), jax.random.key(1)
    example = SEEN if method == "ambient" else jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    with jax.debug_key_reuse(False):
        np.testing.assert_allclose(one.loss(params, key, example), other.loss(params, key, example), rtol=1e-5)
