"""From a network to a denoiser E[x | x_t, y]: preconditioning, analytic denoisers and the denoising loss.

A ``Denoiser`` closes over everything but the parameters. Two preconditionings wrap a network F:

* ``edm``: x-hat = c_skip x_t + c_out F(c_in x_t, log sigma, condition), as published (Karras et al. 2022,
  arXiv 2206.00364, table 1).
* ``posterior`` (this project's, for linear corruptions): a base prior's exact E[x | x_t, y] =: m, and the network only
  for what it leaves open,

      x-hat = m + sqrt(v) P F(c_in x_t, m, log sigma, condition),  v = 1 / (1/s^2 + 1/sigma^2),
      P r = r - v A^T (v A A^T + noise_std^2 I)^-1 A r.

  The base is N(mu, s^2 I) or the mixture that the start fitted; the network's last layer starts at zero, so the first
  denoiser is the base's own. ``diffem_jax.denoisers.posterior`` has two more that begin as the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.gaussians.gaussians import Mixture, mixture_posterior_mean
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.types import Corruption, DenoiseFn, Key, LinearCorruption, Observation, PyTree, Schedule


class Denoiser(NamedTuple):
    """A family of denoisers indexed by parameters.

    Attributes:
        init: key -> params.
        apply: (params, x_t, t, context or None, keep, dropout_key or None) -> x-hat, for one example. ``keep`` is 1.0,
            or 0.0 to ignore the observation (the prior).
        prepare: observation -> context, what ``apply`` needs of it: done once a draw, not at every sampler step.
        open_variance: (t, context, keep) -> the average variance that the base leaves for the network to explain, [], or None.
    """

    init: Callable[[Key], PyTree]
    apply: Callable[..., Array]
    prepare: Callable[[Observation], PyTree] = lambda observation: observation
    open_variance: Callable[[Array, PyTree, Array | float], Array] | None = None


def bind(
    denoiser: Denoiser, params: PyTree, observation: Observation | None = None, guidance: float = 1.0
) -> DenoiseFn:
    """(x_t, t) -> x-hat for given parameters and observation.

    Args:
        denoiser: the family.
        params: its parameters.
        observation: y and its operator; None for the prior.
        guidance: w in prior + w (posterior - prior), for networks trained with condition dropout; 1 is the posterior.
    """
    context = None if observation is None else denoiser.prepare(observation)

    def denoise(x_t: Array, t: Array) -> Array:
        if context is None:
            return denoiser.apply(params, x_t, t, None, 0.0, None)
        conditional = denoiser.apply(params, x_t, t, context, 1.0, None)
        if guidance == 1.0:
            return conditional
        free = denoiser.apply(params, x_t, t, context, 0.0, None)
        return free + guidance * (conditional - free)

    return denoise


def network_call(network: nn.Module) -> Callable[..., Array]:
    """The batched network for one example."""

    def call(params: PyTree, x: Array, noise: Array, condition: Array | None, dropout_key: Key | None) -> Array:
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        batch = None if condition is None else condition[None]
        return network.apply({"params": params}, x[None], noise[None], batch, dropout_key is not None, rngs=rngs)[0]

    return call


def attach(x: Array, *others: Array) -> Array:
    """Joins condition arrays along the last axis; a vector joins an image flattened."""
    arrays = [x, *others]
    if len({a.shape[:-1] for a in arrays}) > 1:
        arrays = [a.reshape(-1) for a in arrays]
    return jnp.concatenate(arrays, axis=-1)


def seen_condition(corruption: Corruption | None, observation: Observation | None, keep: Array | float) -> Array | None:
    """The condition array; one that is ignored is given as zeros."""
    if corruption is None or observation is None:
        return None
    condition = corruption.condition(observation)
    return jnp.where(jnp.asarray(keep) > 0, condition, jnp.zeros_like(condition))


def edm_denoiser(
    network: nn.Module,
    schedule: Schedule,
    corruption: Corruption | None,
    shape: tuple[int, ...],
    sigma_data: float = 1.0,
) -> Denoiser:
    """The published preconditioning; with ``corruption`` None the denoiser is unconditional.

    Args:
        network: a batched network (see ``diffem_jax.networks``).
        schedule: the noise schedule.
        corruption: gives the condition array, or None.
        shape: the shape of x.
        sigma_data: the data's standard deviation.

    Source: Karras et al. 2022, arXiv 2206.00364, equation 7 and table 1.
    """
    call = network_call(network)
    blank = blank_condition(corruption, shape)

    def apply(
        params: PyTree, x_t: Array, t: Array, observation: Observation | None, keep: Array | float, dropout: Key | None
    ) -> Array:
        alpha, sigma = schedule(t)
        x, ratio = x_t / alpha, sigma / alpha
        total = ratio**2 + sigma_data**2
        condition = seen_condition(corruption, observation, keep)
        out = call(params, x * jax.lax.rsqrt(total), jnp.log(ratio), blank if condition is None else condition, dropout)
        return (sigma_data**2 / total) * x + (ratio * sigma_data * jax.lax.rsqrt(total)) * out

    return Denoiser(initializer(network, shape, blank), apply)


def gaussian_denoiser(
    schedule: Schedule,
    law: Gaussian,
    corruption: LinearCorruption | None = None,
    observation: Observation | None = None,
) -> DenoiseFn:
    """The exact denoiser E[x | x_t] or E[x | x_t, y] of a Gaussian law of x."""
    lifted = jax.tree.map(lambda leaf: leaf[None], law)
    return mixture_denoiser(schedule, Mixture(jnp.zeros((1,)), lifted), corruption, observation)


def mixture_denoiser(
    schedule: Schedule, law: Mixture, corruption: LinearCorruption | None = None, observation: Observation | None = None
) -> DenoiseFn:
    """The exact denoiser E[x | x_t] or E[x | x_t, y] of a mixture of Gaussians."""

    def denoise(x_t: Array, t: Array) -> Array:
        alpha, sigma = schedule(t)
        return mixture_posterior_mean(corruption, law, x_t, alpha, sigma, observation)

    return denoise


def blank_condition(corruption: Corruption | None, shape: tuple[int, ...]) -> Array | None:
    """Zeros of the condition's shape."""
    if corruption is None:
        return None

    def draw() -> Array:
        return corruption.condition(corruption.sample(jax.random.key(0), jnp.zeros(shape)))

    return jnp.zeros(jax.eval_shape(draw).shape)


def attached_shape(corruption: Corruption, shape: tuple[int, ...], images: int = 1) -> tuple[int, ...]:
    """The shape of the condition with as many arrays of x's shape before it."""
    blank = blank_condition(corruption, shape)
    return jax.eval_shape(lambda: attach(*[jnp.zeros(shape)] * images, blank)).shape  # type: ignore[arg-type]


def initializer(network: nn.Module, shape: tuple[int, ...], condition: Array | None) -> Callable[[Key], PyTree]:
    """Key -> the network's parameters for one example's shape and a condition like this one."""

    def init(key: Key) -> PyTree:
        batch = None if condition is None else condition[None]
        return network.init({"params": key}, jnp.zeros((1, *shape)), jnp.zeros((1,)), batch, False)["params"]

    return init
