"""What a denoiser is: a closed-form estimate of x, the base, and a network F that corrects it.

    x-hat = mean + std P F(x, noise, condition)

The base gives mean, std and what the network sees, once for E[x | x_t] and once for E[x | x_t, y]; P is the identity,
or takes out of F what y determines. Bases compute in full float32, networks as their ``dtype`` and the backend say.

    ``edm``        mean = c_skip x_t, std = c_out
    ``posterior``  mean = E[x | x_t, y] of a fitted prior, std^2 the variance of x given x_t, or given y too
    ``ambient``    mean = c_skip x_t where the mask shows x
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.samplers.schedules import noise_ratio
from diffem_jax.types import Corruption, DenoiseFn, Key, Observation, PyTree, Schedule


class Denoiser(NamedTuple):
    """A family of denoisers of one example, indexed by the network's parameters.

    ``dropout`` is a key in training and None otherwise; ``context`` is what ``prepare`` made of an observation.

    Attributes:
        init: key -> params.
        prior: (params, x_t, t, dropout) -> E[x | x_t].
        posterior: (params, context, x_t, t, dropout) -> E[x | x_t, y].
        either: (params, context, seen, x_t, t, dropout) -> ``posterior`` where ``seen`` [] is true, else ``prior``, by one
            evaluation of the network: for training with condition dropout.
        prepare: observation -> context, the work that is done once per draw rather than at every sampler step.
        variance: (t, context) -> the variance of x given x_t and y (given x_t alone for context None) that the base leaves
            open, in squared units of x / alpha: by coordinate [*X], or a scalar where one value stands for all.
    """

    init: Callable[[Key], PyTree]
    prior: Callable[[PyTree, Array, Array, Key | None], Array]
    posterior: Callable[[PyTree, PyTree, Array, Array, Key | None], Array]
    either: Callable[[PyTree, PyTree, Array, Array, Array, Key | None], Array]
    prepare: Callable[[Observation], PyTree]
    variance: Callable[[Array, PyTree | None], Array]


class Base(NamedTuple):
    """What a base makes of x_t / alpha = x + ratio e and ratio = sigma / alpha, and of y where there is one."""

    mean: Array  # [*X], the answer where the network yields 0
    std: Array  # the scale of the network's output, a scalar or [*X]
    x: Array  # [*X], x_t scaled for the network
    condition: Array | None  # what else the network sees


def precondition(
    network: nn.Module,
    schedule: Schedule,
    shape: tuple[int, ...],
    blank: Array | None,
    prior: Callable[[Array, Array], Base],
    posterior: Callable[[PyTree, Array, Array], Base],
    variance: Callable[[Array, PyTree | None], Array],
    prepare: Callable[[Observation], PyTree] = lambda observation: observation,
    project: Callable[[PyTree, Array, Array], Array] = lambda context, ratio, out: out,
) -> Denoiser:
    """The denoiser mean + std P F(x, log ratio, condition) of a base and a batched network F, for x of ``shape``.

    Given x_t / alpha and ratio = sigma / alpha, ``prior`` is (x, ratio) -> base, ``posterior`` (context, x, ratio) -> base,
    ``project`` (context, ratio, r [*X]) -> P r, of posteriors alone, and ``variance`` (ratio, context) -> as in ``Denoiser``,
    like ``prepare``; ``blank`` is an array of the condition's shape or None.
    """

    def init(key: Key) -> PyTree:
        batch = None if blank is None else blank[None]
        return network.init({"params": key}, jnp.zeros((1, *shape)), jnp.zeros((1,)), batch, False)["params"]

    def rescaled(x_t: Array, t: Array) -> tuple[Array, Array]:
        alpha, sigma = schedule(t)
        return x_t / alpha, sigma / alpha

    def evaluate(params: PyTree, base: Base, ratio: Array, dropout: Key | None) -> Array:
        condition = None if base.condition is None else base.condition[None]
        rngs = {} if dropout is None else {"dropout": dropout}
        inputs = (base.x[None], jnp.log(ratio)[None], condition, dropout is not None)
        return network.apply({"params": params}, *inputs, rngs=rngs)[0]

    def denoise_prior(params: PyTree, x_t: Array, t: Array, dropout: Key | None) -> Array:
        x, ratio = rescaled(x_t, t)
        base = prior(x, ratio)
        return base.mean + base.std * evaluate(params, base, ratio, dropout)

    def denoise_posterior(params: PyTree, context: PyTree, x_t: Array, t: Array, dropout: Key | None) -> Array:
        x, ratio = rescaled(x_t, t)
        base = posterior(context, x, ratio)
        return base.mean + base.std * project(context, ratio, evaluate(params, base, ratio, dropout))

    def denoise_any(params: PyTree, context: PyTree, seen: Array, x_t: Array, t: Array, dropout: Key | None) -> Array:
        (x, ratio), choose = rescaled(x_t, t), partial(jnp.where, seen)
        base = jax.tree.map(choose, posterior(context, x, ratio), prior(x, ratio))
        out = evaluate(params, base, ratio, dropout)
        return base.mean + base.std * choose(project(context, ratio, out), out)

    def variance_at(t: Array, context: PyTree | None) -> Array:
        return variance(noise_ratio(schedule, t), context)

    return Denoiser(init, denoise_prior, denoise_posterior, denoise_any, prepare, variance_at)


def bind(denoiser: Denoiser, params: PyTree, observation: Observation | None = None, guidance: float = 1) -> DenoiseFn:
    """(x_t, t) -> x-hat for given parameters and observation; without an observation that of the prior.

    ``guidance`` is w in prior + w (posterior - prior), for networks trained with condition dropout; 1 is the posterior.
    """
    if observation is None:
        return lambda x_t, t: denoiser.prior(params, x_t, t, None)
    context = denoiser.prepare(observation)

    def denoise(x_t: Array, t: Array) -> Array:
        conditional = denoiser.posterior(params, context, x_t, t, None)
        if guidance == 1.0:
            return conditional
        free = denoiser.prior(params, x_t, t, None)
        return free + guidance * (conditional - free)

    return denoise


def combined(variance: Array | float, ratio: Array) -> Array:
    """The variance 1 / (1/variance + 1/ratio^2) that remains of x once x + ratio e is known."""
    return variance * ratio**2 / (variance + ratio**2)


def attach(*arrays: Array) -> Array:
    """Joins condition arrays along the last axis; a vector joins an image flattened."""
    if len({a.shape[:-1] for a in arrays}) > 1:
        arrays = tuple(a.reshape(-1) for a in arrays)
    return jnp.concatenate(arrays, axis=-1)


def blank_condition(corruption: Corruption, shape: tuple[int, ...]) -> Array:
    """Zeros of the shape of the corruption's condition array: what a network sees in place of an observation."""
    made = jax.eval_shape(lambda: corruption.condition(corruption.sample(jax.random.key(0), jnp.zeros(shape))))
    return jnp.zeros(made.shape)
