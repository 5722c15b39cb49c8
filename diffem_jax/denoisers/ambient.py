"""Ambient Diffusion: a denoiser for masked data that never sees a clean example, and what is drawn with it.

From an observation (y, A) with a mask A further entries are hidden, A~ = B A, and the network learns to restore what A
shows from what A~ shows,

    min E |A (h(A~, A~ x_t, t) - y)|^2,    x_t = alpha y + sigma z.

As the network cannot tell which of the hidden entries A had shown, it learns E[x | A~ x_t, A~] everywhere. Draws of the
prior use one mask A~ for all steps (the published fixed-mask sampler). Nothing here is EM: training never sees a
reconstruction, so a run's rounds are the stages of one training.

Two things differ from the published code. Hidden entries count as infinitely noisy in the preconditioning, x-hat =
sigma_data F there, and in the loss, weight 1 / sigma_data^2: with one c_out for all entries none could be restored at
small sigma. And seen entries are taken for x: noise in y is learnt with them.

Source: Daras, Shah, Dagan, Gollakota, Dimakis and Klivans 2023, arXiv 2305.19256, equations 3.2 and 3.3, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.denoisers.edm import Denoiser, bind, initializer, network_call
from diffem_jax.denoisers.guidance import dps
from diffem_jax.samplers.samplers import sample
from diffem_jax.types import DenoiseFn, Key, Observation, PyTree, Sampler, Schedule, TimeLaw

Draw = Callable[[Key, PyTree, Observation], Array]


def hide_further(key: Key, mask: Array, probability: float) -> Array:
    """The mask with each seen entry hidden with a probability, A~ = B A."""
    return jnp.where(jax.random.bernoulli(key, 1 - probability, mask.shape), mask, jnp.zeros_like(mask))


def ambient_denoiser(network: nn.Module, schedule: Schedule, mask: Any, sigma_data: float = 1.0) -> Denoiser:
    """h(A~, A~ x_t, t): the network sees the masked noisy x and the mask, which is the observation's operator; never y.

    Args:
        network: a batched network.
        schedule: the noise schedule.
        mask: a mask corruption.
        sigma_data: the data's standard deviation.
    """
    call = network_call(network)

    def apply(
        params: PyTree, x_t: Array, t: Array, observation: Observation, keep: Array | float, dropout: Key | None
    ) -> Array:
        del keep
        alpha, sigma = schedule(t)
        ratio = sigma / alpha
        total = ratio**2 + sigma_data**2
        seen = mask.observed(observation.operator)
        x = jnp.where(seen, x_t / alpha, 0.0)
        out = call(params, x * jax.lax.rsqrt(total), jnp.log(ratio), observation.operator.astype(jnp.float32), dropout)
        shown = (sigma_data**2 / total) * x + (ratio * sigma_data * jax.lax.rsqrt(total)) * out
        return jnp.where(seen, shown, sigma_data * out)

    return Denoiser(initializer(network, mask.shape, jnp.zeros(mask.mask_shape)), apply)


def ambient_loss(
    denoiser: Denoiser,
    schedule: Schedule,
    mask: Any,
    time_law: TimeLaw,
    weight: Callable[[Array, float], Array],
    *,
    further: float,
    data_std: float = 1.0,
    dropout: bool = False,
) -> Callable[[PyTree, Key, Observation], Array]:
    """The loss of one observation: the mean over the seen entries of weight |h(A~, A~ x_t, t) - y|^2.

    Args:
        denoiser: ``ambient_denoiser``.
        schedule: the noise schedule.
        mask: a mask corruption.
        time_law: the law of t.
        weight: (sigma / alpha, data_std) -> weight of the entries that stay seen.
        further: the probability that a seen entry is hidden from the network.
        data_std: the data's standard deviation.
        dropout: whether the network draws dropout masks.
    """

    def loss(params: PyTree, key: Key, observation: Observation) -> Array:
        keys = jax.random.split(key, 4)
        y, operator = observation
        given = hide_further(keys[0], operator, further)
        t = time_law.sample(keys[1])
        alpha, sigma = schedule(t)
        seen, shown = mask.observed(operator), mask.observed(given)
        y = jnp.where(seen, y, 0.0)
        x_t = alpha * y + sigma * jax.random.normal(keys[2], y.shape)
        x_hat = denoiser.apply(params, x_t, t, Observation(y, given), 1.0, keys[3] if dropout else None)
        weights = jnp.where(shown, weight(sigma / alpha, data_std), 1 / data_std**2)
        return jnp.mean(jnp.where(seen, weights * (x_hat - y) ** 2, 0.0))

    return loss


def _fixed_mask(key: Key, params: PyTree, denoiser: Denoiser, mask: Any, further: float) -> DenoiseFn:
    draw_key, hide_key = jax.random.split(key)
    operator = hide_further(hide_key, mask.draw_operator(draw_key), further)
    return bind(denoiser, params, Observation(jnp.zeros(mask.shape), operator))


def prior_draw(denoiser: Denoiser, sampler: Sampler, times: Array, mask: Any, further: float) -> Draw:
    """Draws of the prior by the fixed-mask sampler: one A~ for all steps of a draw; the observation is not looked at.

    Source: Daras et al. 2023, arXiv 2305.19256, section 3.3.
    """

    def draw(key: Key, params: PyTree, observation: Any) -> Array:
        del observation
        mask_key, key = jax.random.split(key)
        return sample(key, sampler, _fixed_mask(mask_key, params, denoiser, mask, further), times, mask.shape)

    return draw


def posterior_draw(
    denoiser: Denoiser,
    sampler: Sampler,
    times: Array,
    schedule: Schedule,
    mask: Any,
    *,
    further: float,
    step: float,
) -> Draw:
    """Draws of p(x | y): the fixed-mask denoiser under the guidance of ``posteriors.dps``.

    Source: Aali, Daras, Levac, Kumar, Dimakis and Tamir 2024, arXiv 2403.08728 (Ambient Diffusion Posterior Sampling).
    """

    def draw(key: Key, params: PyTree, observation: Observation) -> Array:
        mask_key, key = jax.random.split(key)
        prior = _fixed_mask(mask_key, params, denoiser, mask, further)
        return sample(key, sampler, dps(prior, schedule, mask, observation, step=step), times, mask.shape)

    return draw


def restoration(denoiser: Denoiser, times: Array, schedule: Schedule) -> Draw:
    """h(A, y, t) at the last time, an estimate of E[x | y] by one network call: a point, not a draw.

    Source: Daras et al. 2023, arXiv 2305.19256, section 5 (restoration).
    """

    def draw(key: Key, params: PyTree, observation: Observation) -> Array:
        del key
        alpha, _ = schedule(times[-1])
        return bind(denoiser, params, observation)(alpha * observation.y, times[-1])

    return draw
