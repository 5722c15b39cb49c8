"""The registry of methods, Muon, and the rules of noise: what each builds, draws and refuses."""

import dataclasses
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from diffem_jax import config
from diffem_jax.build import methods
from diffem_jax.build.muon import ADAM_SHARE, SCALE, muon
from diffem_jax.build.parts import check_noise, make_optimizer
from diffem_jax.config import default
from diffem_jax.config.values import put
from diffem_jax.corruptions import CORRUPTIONS
from diffem_jax.errors import UserError
from diffem_jax.gaussians import Gaussian, Mixture, stationary
from diffem_jax.networks.mlp import MLP
from diffem_jax.run.start import solve_warnings, standard_normal
from diffem_jax.types import Observation

SHAPE = (4, 4, 1)
SEEN = Observation(np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32))


def configured(**fields):
    c = config.default().unlock()
    c.network = {"name": "mlp", "features": (8,)}
    for name, value in fields.items():
        put(c, name.replace("__", "."), value)
    if ":" not in c.method:
        config.validate(c)
    return c


def built(start=None, **fields):
    return methods.make_model(methods.make_setup(configured(**fields), SHAPE), start or standard_normal(SHAPE))


def identity(denoise, schedule, corruption, observation):
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
    """Each is another estimate of the same x-hat by the same network; 'cov_x' is the start's, of low rank."""
    rng, models = np.random.default_rng(0), []
    factor = jnp.asarray(rng.standard_normal((1, 2, *SHAPE)), jnp.float32)
    start = Mixture(jnp.zeros((1,)), Gaussian(jnp.zeros((1, *SHAPE)), jnp.full((1,), 0.3), factor))
    for covariance, iterations in product(config.FIELDS["mmps.covariance"].choices, (1, 3)):
        fields = {"mmps__covariance": covariance, "mmps__iterations": iterations, "corruption__noise_std": 0.1}
        models.append(built(start, method="em_mmps", **fields))
    # An untrained network says 0.
    params = models[0].denoiser.init(jax.random.key(0))
    params = jax.tree.map(lambda a: a + jnp.asarray(0.1 * rng.normal(size=a.shape), a.dtype), params)
    seen = Observation(jnp.asarray(rng.standard_normal(SHAPE), jnp.float32), jnp.ones(SHAPE))
    estimates = jax.jit(lambda t: [model.bind(params, seen)(seen.y, t) for model in models])
    found = np.asarray(estimates(jnp.float32(0.6)))
    apart = np.abs(found[:, None] - found[None]).max(axis=(2, 3, 4))
    assert np.isfinite(found).all() and (apart[~np.eye(len(found), dtype=bool)] > 1e-4).all()
    with pytest.raises(UserError, match=r"cov_x.*low rank"):
        built(stationary.first_guess(jnp.zeros(SHAPE), 1.0), method="em_mmps", mmps__covariance="cov_x")


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


@pytest.mark.parametrize("method", ["diffem", "em_mmps", "ambient"])
def test_every_loss_can_be_weighted_by_what_the_base_leaves_open(method):
    """For the published preconditioning that is the published weight."""
    fields = {"method": method, "denoiser__preconditioning": "edm"}
    one, other = (built(**fields, m_step__loss_weight=weight) for weight in ("base", "snr"))
    params, key = one.denoiser.init(jax.random.key(0)), jax.random.key(1)
    example = SEEN if method == "ambient" else jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    with jax.debug_key_reuse(False):
        np.testing.assert_allclose(one.loss(params, key, example), other.loss(params, key, example), rtol=1e-5)


RATE = 0.1
KERNELS = {
    "dense/kernel": ((6, 4), (6, 4)),
    "conv/kernel": ((3, 3, 2, 8), (18, 8)),
    "attention/query/kernel": ((8, 2, 3), (8, 6)),
    "attention/out/kernel": ((2, 3, 8), (6, 8)),
}
"""Name -> its shape, and that of the matrix it stands for."""


def first_update(params):
    optimizer = muon(lambda count: RATE)
    gradient = jax.tree.map(lambda a: jax.random.normal(jax.random.key(a.size), a.shape), params)
    with jax.numpy_dtype_promotion("standard"):  # optax promotes integers by itself
        update, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    return gradient, update


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_moves_equally_far_in_all_directions(name):
    """-U V^T of the gradient, scaled; the Newton-Schulz iterations leave singular values between 0.6 and 1.3."""
    shape, matrix = KERNELS[name]
    params = unflatten_dict({name: jnp.zeros(shape)}, sep="/")
    gradient, update = (np.asarray(jax.tree.leaves(tree)[0]).reshape(matrix) for tree in first_update(params))
    u, _, v = np.linalg.svd(gradient, full_matrices=False)
    along = -np.diag(u.T @ update @ v.T) / (RATE * SCALE * max(matrix) ** 0.5)
    assert along.min() > 0.6 and along.max() < 1.3
    np.testing.assert_allclose(np.linalg.svd(update)[1], np.sort(np.abs(np.diag(u.T @ update @ v.T)))[::-1], rtol=1e-3)


def test_what_is_no_matrix_takes_adam_at_a_fifth_of_the_rate():
    params = {"bias": jnp.zeros(5), "attention": {"bias": jnp.zeros((2, 3))}, "scale": jnp.ones(())}
    gradient, update = first_update(params)
    for g, u in zip(jax.tree.leaves(gradient), jax.tree.leaves(update), strict=True):
        np.testing.assert_allclose(u, -ADAM_SHARE * RATE * np.sign(g), rtol=1e-4)


def test_a_config_chooses_it():
    m_step = default().m_step
    m_step.optimizer, m_step.learning_rate = "muon", 3e-2
    optimizer, x, network = make_optimizer(m_step, 40), jax.random.normal(jax.random.key(0), (4, 6)), MLP(features=(8,))

    def loss(params):
        return jnp.mean((network.apply(params, x, jnp.zeros(4)) - x) ** 2)

    def update(carry, _):
        value, gradient = jax.value_and_grad(loss)(carry[0])
        change, state = optimizer.update(gradient, carry[1], carry[0])
        return (jax.tree.map(jnp.add, carry[0], change), state), value

    params = jax.jit(network.init)(jax.random.key(1), x, jnp.zeros(4))
    with jax.numpy_dtype_promotion("standard"):
        _, losses = jax.jit(lambda p: jax.lax.scan(update, (p, optimizer.init(p)), None, length=40))(params)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "varying_noise"])
def test_noise_of_zero_is_refused_or_solved(name):
    corruption = CORRUPTIONS[name](shape=(4, 4, 3), noise_std=0.0)
    c = configured(corruption__name=name, corruption__noise_std=0.0)
    if corruption.is_linear and corruption.needs_noise:
        with pytest.raises(UserError, match=r"corruption\.noise_std: 0; expected more than 0.*noise_std=0\.001"):
            check_noise(c, corruption)
        return
    check_noise(c, corruption)
    if corruption.is_linear:

        @jax.jit
        def solved():
            y, operator = corruption.sample(jax.random.key(0), jnp.ones(corruption.shape))
            back = corruption.adjoint(corruption.solve_gram(y, operator, jnp.ones(())), operator)
            return back, jnp.abs(corruption.forward(back, operator) - y).max()

        back, misfit = solved()
        assert jnp.isfinite(back).all() and misfit < 1e-5


def test_draws_that_keep_noise_need_a_small_sigma_min():
    corruption = CORRUPTIONS["pixel_mask"](shape=(4, 4, 3), noise_std=0.01)
    with pytest.raises(UserError, match=r"sigma_min: 0\.01; expected at most a third.*sigma_min=0\.003"):
        check_noise(configured(schedule__sigma_min=0.01, e_step__sampler="ddpm"), corruption)
    check_noise(configured(schedule__sigma_min=0.003, e_step__sampler="ddpm"), corruption)
    check_noise(configured(schedule__sigma_min=0.01, e_step__sampler="analytic_2m"), corruption)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unsolved(CORRUPTIONS["compressed_sensing"]):
    """Its solves end where they begin."""

    def solve_gram(self, r, operator, v):
        del operator, v
        return jnp.zeros_like(r)


@pytest.mark.parametrize(("kind", "said"), [(CORRUPTIONS["compressed_sensing"], False), (Unsolved, True)])
def test_solves_that_do_not_converge_are_said_at_the_start_of_a_run(kind, said):
    corruption = kind(shape=(4, 4, 1), noise_std=0.1)
    observations = jax.jit(jax.vmap(corruption.sample))(jax.random.split(jax.random.key(0), 3), jnp.ones((3, 4, 4, 1)))
    setup = SimpleNamespace(config=configured(corruption__name="compressed_sensing"), corruption=corruption)
    lines = solve_warnings(setup, observations, standard_normal((4, 4, 1)))
    assert [("have not converged" in line) for line in lines] == [True] * said
