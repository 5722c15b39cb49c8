"""Ambient Diffusion: what reaches the network and its loss, and draws by one fixed mask."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.corruptions import PixelMask
from diffem_jax.denoisers import ambient
from diffem_jax.denoisers.denoiser import bind
from diffem_jax.denoisers.losses import LOSS_WEIGHTS, Uniform
from diffem_jax.samplers.samplers import ddim
from diffem_jax.samplers.schedules import VarianceExploding, log_uniform_grid
from diffem_jax.types import Observation

SCHEDULE = VarianceExploding(sigma_min=1e-3, sigma_max=10.0)
MASK = PixelMask(shape=(4, 4, 1), rate=0.5, noise_std=0.0)


class Echo(nn.Module):
    """A network that gives back what it sees of x plus a learnt number, and counts nothing else."""

    @nn.compact
    def __call__(self, x, noise, condition=None, train=False):
        level = self.param("level", nn.initializers.constant(0.3), ())
        return level + 0.1 * x.sum(axis=(1, 2, 3), keepdims=True) * condition


def _ambient():
    denoiser = ambient.ambient_denoiser(Echo(), SCHEDULE, MASK)
    return denoiser, denoiser.init(jax.random.key(0))


def test_hidden_entries_reach_neither_the_ambient_network_nor_its_loss():
    denoiser, params = _ambient()
    rng = np.random.default_rng(0)
    mask = (rng.random((4, 4, 1)) < 0.5).astype(np.float32)
    x = rng.standard_normal((4, 4, 1)).astype(np.float32)
    spoilt = np.where(mask > 0, x, np.nan).astype(np.float32)
    t = jnp.float32(0.5)
    given = [
        bind(denoiser, params, Observation(a, mask))(jnp.where(mask > 0, a, b), t) for a, b in ((x, x), (x, spoilt))
    ]
    np.testing.assert_array_equal(*given)
    assert np.isfinite(given[1]).all()

    loss = ambient.ambient_loss(denoiser, SCHEDULE, MASK, Uniform(), LOSS_WEIGHTS["snr"], further=0.3)
    values = [
        jax.value_and_grad(loss)(params, jax.random.key(1), Observation(jnp.asarray(y), jnp.asarray(mask)))
        for y in (x, spoilt)
    ]
    assert float(values[0][0]) == float(values[1][0]) > 0
    assert float(values[1][1]["level"]) == float(values[0][1]["level"]) != 0


def test_ambient_training_hides_the_share_asked_for_and_only_seen_entries():
    mask = jnp.asarray((np.random.default_rng(1).random((100, 100)) < 0.4).astype(np.float32))
    hidden = ambient.hide_further(jax.random.key(0), mask, 0.25)
    assert ((hidden == 0) | (hidden == mask)).all()
    # 4,000 seen entries: five standard errors.
    assert abs(float(hidden.sum() / mask.sum()) - 0.75) < 5 * np.sqrt(0.25 * 0.75 / 4000)


def test_an_ambient_draw_uses_one_mask_and_the_prior_does_not_look_at_y():
    denoiser, params = _ambient()
    times, seen = log_uniform_grid(SCHEDULE, 5), []

    def posterior(params, observation, *rest):
        jax.debug.callback(lambda m: seen.append(np.asarray(m)), observation.operator)
        return denoiser.posterior(params, observation, *rest)

    watched = denoiser._replace(posterior=posterior)
    draw = ambient.prior_draw(watched, ddim(SCHEDULE), times, MASK, 0.1)
    x = draw(jax.random.key(3), params, ())
    jax.effects_barrier()
    assert x.shape == MASK.shape and len(seen) == 5 and all((m == seen[0]).all() for m in seen)
    assert 0 < seen[0].sum() < 16


def test_guidance_pulls_ambient_draws_to_the_observation():
    denoiser, params = _ambient()
    times = log_uniform_grid(SCHEDULE, 16)
    observation = Observation(jnp.full((4, 4, 1), 1.5), jnp.ones((4, 4, 1)))
    misfit = []
    for step in (0.0, 3.0):
        draw = ambient.posterior_draw(denoiser, ddim(SCHEDULE), times, SCHEDULE, MASK, further=0.1, step=step)
        keys = jax.random.split(jax.random.key(0), 32)
        x = jax.vmap(draw, (0, None, None))(keys, params, observation)
        misfit.append(float(jnp.abs(x - 1.5).mean()))
    assert misfit[1] < 0.9 * misfit[0]


def test_what_the_ambient_base_leaves_open_is_larger_where_nothing_is_seen():
    """The published weight, 1 / sigma^2 + 1 / sigma_data^2, is its inverse where the mask shows x."""
    denoiser, _ = _ambient()
    mask, t = jnp.zeros((4, 4, 1)).at[0, 0, 0].set(1.0), jnp.float32(0.3)
    variance = denoiser.variance(t, Observation(jnp.zeros((4, 4, 1)), mask))
    _, sigma = SCHEDULE(t)
    np.testing.assert_allclose(variance[0, 0, 0], 1 / LOSS_WEIGHTS["snr"](sigma, 1.0), rtol=1e-5)
    np.testing.assert_allclose(variance[1:], 1.0)
    np.testing.assert_allclose(denoiser.variance(t, None), jnp.full((4, 4, 1), variance[0, 0, 0]), rtol=1e-6)
