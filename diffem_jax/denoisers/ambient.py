"""Ambient Diffusion: a denoiser for masked data that never sees a clean example, and what is drawn with it.

Of an observation (y, A) with a mask A more entries are hidden, A~ = B A, and the network learns from A~ what A shows,

    min E |A (h(A~, A~ x_t, t) - y)|^2,    x_t = alpha y + sigma z.

As the network cannot tell which of the hidden entries A had shown, it learns E[x | A~ x_t, A~] everywhere. Nothing here is
EM: training never sees a reconstruction, so a run's rounds are the stages of one training.

Two things differ from the published code. Hidden entries count as infinitely noisy in the preconditioning, x-hat =
sigma_data F there, and in the loss, weight 1 / sigma_data^2: with one c_out for all entries none could be restored at
small sigma. And seen entries are taken for x: noise in y is learnt with them.

Source: Daras, Shah, Dagan, Gollakota, Dimakis and Klivans 2023, arXiv 2305.19256, equations 3.2 and 3.3, section 3.3.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.corruptions.masks import Mask
from diffem_jax.denoisers.denoiser import Base, Denoiser, bind, precondition
from diffem_jax.denoisers.guidance import dps
from diffem_jax.samplers import sample
from diffem_jax.types import DenoiseFn, Draw, Key, Observation, PyTree, Sampler, Schedule, TimeLaw

Guide = Callable[[DenoiseFn, Observation], DenoiseFn]


def hide_further(key: Key, mask: Array, probability: float) -> Array:
    """The mask with each seen entry hidden with a probability, A~ = B A."""
    return jnp.where(jax.random.bernoulli(key, 1 - probability, mask.shape), mask, jnp.zeros_like(mask))


def ambient_denoiser(network: nn.Module, schedule: Schedule, mask: Mask, sigma_data: float = 1.0) -> Denoiser:
    """h(A~, A~ x_t, t): the batched network sees the masked noisy x and the mask, the observation's operator; never y.

    Its E[x | x_t] without a mask takes everything as shown, which no training example was: draw the prior by ``prior_draw``.
    """
    everything = Observation(jnp.zeros(mask.shape), jnp.ones(mask.mask_shape))

    def scales(ratio: Array, operator: Array) -> tuple[Array, Array]:
        """Of the noise ratio sigma / alpha, ratio^2 + sigma_data^2 and the standard deviation left open by entry."""
        total = ratio**2 + sigma_data**2
        return total, jnp.where(mask.observed(operator), ratio * sigma_data * jax.lax.rsqrt(total), sigma_data)

    def base(observation: Observation, x: Array, ratio: Array) -> Base:
        operator = observation.operator
        (total, std), x = scales(ratio, operator), mask.keep_observed(x, operator)
        return Base((sigma_data**2 / total) * x, std, x * jax.lax.rsqrt(total), operator.astype(jnp.float32))

    given = network, schedule, mask.shape, jnp.zeros(mask.mask_shape), partial(base, everything), base
    return precondition(*given, lambda ratio, context: scales(ratio, (context or everything).operator)[1] ** 2)


def ambient_loss(
    denoiser: Denoiser,
    schedule: Schedule,
    mask: Mask,
    time_law: TimeLaw,
    weight: Callable[[Array, float], Array] | None,
    *,
    further: float,
    data_std: float = 1.0,
) -> Callable[[PyTree, Key, Observation], Array]:
    """The loss of one observation: the mean over the seen entries of weight |h(A~, A~ x_t, t) - y|^2.

    ``further`` is the probability that a seen entry is hidden from the network; ``weight`` is that of the entries that stay
    seen, (sigma / alpha, data_std) -> weight, None for 1 / ``denoiser.variance``.
    """

    def loss(params: PyTree, key: Key, observation: Observation) -> Array:
        keys = jax.random.split(key, 4)
        y, operator = observation
        given = hide_further(keys[0], operator, further)
        t = time_law.sample(keys[1])
        alpha, sigma = schedule(t)
        y = mask.keep_observed(y, operator)
        x_t = alpha * y + sigma * jax.random.normal(keys[2], y.shape)
        context = denoiser.prepare(Observation(y, given))
        x_hat = denoiser.posterior(params, context, x_t, t, keys[3])
        weights = 1 / denoiser.variance(t, context)
        if weight is not None:
            weights = jnp.where(mask.observed(given), weight(sigma / alpha, data_std), 1 / data_std**2)
        return jnp.mean(mask.keep_observed(weights * (x_hat - y) ** 2, operator))

    return loss


def prior_draw(
    denoiser: Denoiser, sampler: Sampler, times: Array, mask: Mask, further: float, guide: Guide = lambda d, _: d
) -> Draw:
    """Draws of the prior by the fixed-mask sampler (section 3.3): one A~ for all steps; ``guide`` alone sees the observation."""

    def draw(key: Key, params: PyTree, observation: Observation) -> Array:
        mask_key, key = jax.random.split(key)
        draw_key, hide_key = jax.random.split(mask_key)
        operator = hide_further(hide_key, mask.draw_operator(draw_key), further)
        prior = bind(denoiser, params, Observation(jnp.zeros(mask.shape), operator))
        return sample(key, sampler, guide(prior, observation), times, mask.shape)

    return draw


def posterior_draw(
    denoiser: Denoiser, sampler: Sampler, times: Array, schedule: Schedule, mask: Mask, *, further: float, step: float
) -> Draw:
    """Draws of p(x | y): the fixed-mask denoiser under the guidance of ``guidance.dps``.

    Source: Aali, Daras, Levac, Kumar, Dimakis and Tamir 2024, arXiv 2403.08728 (Ambient Diffusion Posterior Sampling).
    """
    return prior_draw(
        denoiser, sampler, times, mask, further, lambda prior, seen: dps(prior, schedule, mask, seen, step=step)
    )


def restoration(denoiser: Denoiser, times: Array, schedule: Schedule) -> Draw:
    """h(A, y, t) at the last time (section 5, restoration), an estimate of E[x | y] by one call: a point, not a draw."""

    def draw(key: Key, params: PyTree, observation: Observation) -> Array:
        alpha, _ = schedule(times[-1])
        return bind(denoiser, params, observation)(alpha * observation.y, times[-1])

    return draw
