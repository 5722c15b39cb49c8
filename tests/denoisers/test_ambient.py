"""Ambient Diffusion, and augmentations of what is trained on."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.corruptions import PixelMask
from diffem_jax.denoisers import LOSS_WEIGHTS, Uniform, ambient, augment, bind
from diffem_jax.samplers import VarianceExploding, ddim, log_uniform_grid
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
    given = [bind(denoiser, params, Observation(x, mask))(jnp.where(mask > 0, x, b), t) for b in (x, spoilt)]
    np.testing.assert_array_equal(*given)
    assert np.isfinite(given[1]).all()
    loss = ambient.ambient_loss(denoiser, SCHEDULE, MASK, Uniform(), LOSS_WEIGHTS["snr"], further=0.3)
    run = jax.value_and_grad(lambda params, y: loss(params, jax.random.key(1), Observation(y, jnp.asarray(mask))))
    (value, slope), (again, slope_again) = (run(params, jnp.asarray(y)) for y in (x, spoilt))
    assert float(value) == float(again) > 0 and float(slope["level"]) == float(slope_again["level"]) != 0


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
