"""The published preconditioning, and denoisers that are exact for Gaussians and their mixtures.

    x-hat = c_skip x_t + c_out F(c_in x_t, log sigma, condition)
    c_skip = s^2 / (sigma^2 + s^2),  c_out = sigma s / sqrt(sigma^2 + s^2),  c_in = 1 / sqrt(sigma^2 + s^2)

with s the data's standard deviation (for a schedule with alpha_t read x_t / alpha_t and sigma_t / alpha_t).

Source: Karras et al. 2022, arXiv 2206.00364, equation 7 and table 1.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.denoisers.denoiser import Base, Denoiser, blank_condition, combined, precondition
from diffem_jax.gaussians import Gaussian, Mixture, mixture_posterior_mean
from diffem_jax.types import Corruption, DenoiseFn, LinearCorruption, Observation, Schedule, Shape


def edm_denoiser(
    network: nn.Module, schedule: Schedule, corruption: Corruption | None, shape: Shape, sigma_data: float = 1.0
) -> Denoiser:
    """The published preconditioning of a batched network, for x of ``shape`` and standard deviation ``sigma_data``.

    The corruption gives the condition array; with None the denoiser is unconditional and looks at no observation. The
    variance left open is that of N(mu, sigma_data^2 I) given x_t: the base does not use y.
    """
    blank = None if corruption is None else blank_condition(corruption, shape)
    prepare = corruption.condition if corruption is not None else lambda observation: None

    def base(condition: Array | None, x: Array, ratio: Array) -> Base:
        total = ratio**2 + sigma_data**2
        c_in = jax.lax.rsqrt(total)
        return Base((sigma_data**2 / total) * x, ratio * sigma_data * c_in, x * c_in, condition)

    given = network, schedule, shape, blank, partial(base, blank), base
    return precondition(*given, lambda ratio, _: combined(sigma_data**2, ratio), prepare)


def gaussian_denoiser(
    schedule: Schedule,
    prior: Gaussian,
    corruption: LinearCorruption | None = None,
    observation: Observation | None = None,
) -> DenoiseFn:
    """The exact denoiser E[x | x_t] or E[x | x_t, y] for Gaussian x."""
    lifted = jax.tree.map(lambda leaf: leaf[None], prior)
    return mixture_denoiser(schedule, Mixture(jnp.zeros((1,)), lifted), corruption, observation)


def mixture_denoiser(
    schedule: Schedule,
    prior: Mixture,
    corruption: LinearCorruption | None = None,
    observation: Observation | None = None,
) -> DenoiseFn:
    """The exact denoiser E[x | x_t] or E[x | x_t, y] for x from a mixture of Gaussians."""
    return lambda x_t, t: mixture_posterior_mean(corruption, prior, x_t, *schedule(t), observation)
