"""From a network to a denoiser E[x | x_t, y]: preconditioning, analytic denoisers and the denoising loss.

A ``Denoiser`` closes over everything but the parameters. Two preconditionings wrap a network F:

* ``edm``: x-hat = c_skip x_t + c_out F(c_in x_t, log sigma, condition), as published (Karras et al. 2022,
  arXiv 2206.00364, table 1).
* ``posterior`` (this project's, for linear corruptions): a base prior's exact E[x | x_t, y] =: m, and the network only
  for what it leaves open,

      x-hat = m + sqrt(v) P F(c_in x_t, m, log sigma, condition),  v = 1 / (1/s^2 + 1/sigma^2),
      P r = r - v A^T (v A A^T + noise_std^2 I)^-1 A r.

  The base is N(mu, s^2 I) or the mixture that the start fitted; the network's last layer starts at zero, so the first
  denoiser is the base's own. ``diffem_jax.bases`` has two more that begin as the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.gaussians import Mixture, mixture_posterior_mean, overall_moments
from diffem_jax.linalg import Gaussian
from diffem_jax.types import Corruption, DenoiseFn, Key, LinearCorruption, Observation, PyTree, Schedule, TimeLaw


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


def _condition(corruption: Corruption | None, observation: Observation | None, keep: Array | float) -> Array | None:
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
        condition = _condition(corruption, observation, keep)
        out = call(params, x * jax.lax.rsqrt(total), jnp.log(ratio), blank if condition is None else condition, dropout)
        return (sigma_data**2 / total) * x + (ratio * sigma_data * jax.lax.rsqrt(total)) * out

    return Denoiser(initializer(network, shape, blank), apply)


def posterior_denoiser(
    network: nn.Module, schedule: Schedule, corruption: LinearCorruption, shape: tuple[int, ...], base: Mixture
) -> Denoiser:
    """This project's preconditioning: the base prior's exact posterior mean, and the network for the rest.

    Args:
        network: a batched network; it sees m beside the condition.
        schedule: the noise schedule.
        corruption: a linear corruption with ``solve_gram``.
        shape: the shape of x.
        base: the base prior: an isotropic Gaussian (``isotropic_base``) or any mixture.
    """
    call = network_call(network)
    blank = jnp.zeros(attached_shape(corruption, shape))
    _, spread = overall_moments(base)

    def apply(
        params: PyTree, x_t: Array, t: Array, observation: Observation | None, keep: Array | float, dropout: Key | None
    ) -> Array:
        alpha, sigma = schedule(t)
        ratio = sigma / alpha
        x = x_t / alpha
        v = 1 / (1 / spread + 1 / ratio**2)
        m = mixture_posterior_mean(None, base, x, jnp.ones(()), ratio, None)
        if observation is not None:
            seen = mixture_posterior_mean(corruption, base, x, jnp.ones(()), ratio, observation)
            m = jnp.where(jnp.asarray(keep) > 0, seen, m)
        condition = _condition(corruption, observation, keep)
        if condition is None:
            condition = jnp.zeros_like(blank_condition(corruption, shape))  # type: ignore[arg-type]
        out = call(params, x * jax.lax.rsqrt(spread + ratio**2), jnp.log(ratio), attach(m, condition), dropout)
        if observation is not None:
            out = jnp.where(jnp.asarray(keep) > 0, open_part(corruption, observation.operator, v, out), out)
        return m + jnp.sqrt(v) * out

    return Denoiser(initializer(network, shape, blank), apply)


def open_part(corruption: LinearCorruption, operator: PyTree, v: Array, r: Array) -> Array:
    """P r = r - v A^T (v A A^T + noise_std^2 I)^-1 A r: what an observation leaves open of r."""
    return r - v * corruption.adjoint(corruption.solve_gram(corruption.forward(r, operator), operator, v), operator)


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


def denoising_loss(
    denoiser: Denoiser,
    schedule: Schedule,
    corruption: Corruption | None,
    time_law: TimeLaw,
    weight: Callable[[Array, float], Array] | None,
    *,
    condition_dropout: float = 0.0,
    data_std: float = 1.0,
    dropout: bool = False,
    augment: Callable[[Key, Array], Array] | None = None,
    operators: str = "law",
    levels: int = 1,
) -> Callable[[PyTree, Key, PyTree], Array]:
    """The loss of one example: weight(sigma) mean |d(alpha x + sigma z, t | y') - x|^2 with a fresh y' ~ p(y | x).

    Args:
        denoiser: what is trained.
        schedule: the noise schedule.
        corruption: p(y | x), drawn anew at every call; None trains an unconditional denoiser.
        time_law: the law of t; one with ``draw`` also weighs the loss there.
        weight: (sigma / alpha, data_std) -> weight; None weighs by 1 / ``denoiser.open_variance``, so that every noise
            level counts by what the base leaves open there.
        condition_dropout: the probability that the observation is ignored, which trains the prior with the same network.
        data_std: the data's standard deviation.
        dropout: whether the network draws dropout masks.
        augment: (key, x) -> x, applied before the corruption, so that x and y' belong together.
        operators: 'law' draws the operator of y' by the corruption's law; with 'data' it is given beside x.
        levels: how many t and z of the same x and y' are averaged.

    Returns:
        (params, key, x [*X]) -> loss []; for operators 'data' (params, key, (x, operator)) -> loss [].

    Source: Hosseintabar et al. 2025, arXiv 2510.12691, algorithm 1.
    """
    given = operators == "data" and corruption is not None
    draw_time = getattr(time_law, "draw", lambda key: (time_law.sample(key), None))

    def observe(key: Key, x: Array, operator: PyTree) -> Observation | None:
        if corruption is None:
            return None
        return Observation(corruption.observe(key, x, operator), operator) if given else corruption.sample(key, x)

    def loss(params: PyTree, key: Key, example: PyTree) -> Array:
        keys = jax.random.split(key, 6)
        x, operator = example if given else (example, None)
        if augment is not None:
            x = augment(keys[5], x)
        observation = observe(keys[0], x, operator)
        keep: Array | float = 1.0
        if condition_dropout > 0:
            keep = jax.random.bernoulli(keys[3], 1 - condition_dropout).astype(jnp.float32)
        context = None if observation is None else denoiser.prepare(observation)

        def at_level(time_key: Key, noise_key: Key, dropout_key: Key) -> Array:
            t, importance = draw_time(time_key)
            alpha, sigma = schedule(t)
            x_t = alpha * x + sigma * jax.random.normal(noise_key, x.shape)
            x_hat = denoiser.apply(params, x_t, t, context, keep, dropout_key if dropout else None)
            if weight is not None:
                scale = weight(sigma / alpha, data_std)
            else:
                assert denoiser.open_variance is not None
                scale = 1 / denoiser.open_variance(t, context, keep)
            if importance is not None:
                scale = scale * importance
            return scale * jnp.mean((x_hat - x) ** 2)

        if levels == 1:
            return at_level(keys[1], keys[2], keys[4])
        return jnp.mean(jax.vmap(at_level)(*(jax.random.split(keys[i], levels) for i in (1, 2, 4))))

    return loss


def drawn_noise(schedule: Schedule, time_law: TimeLaw, levels: int = 1) -> Callable[[Key], Array]:
    """Key -> the noise level sigma / alpha that ``denoising_loss`` draws with that key; of several, the geometric mean."""

    def level(key: Key) -> Array:
        alpha, sigma = schedule(time_law.sample(key))
        return sigma / alpha

    def mean_level(key: Key) -> Array:
        drawn = jax.random.split(key, 6)[1]
        if levels == 1:
            return level(drawn)
        return jnp.exp(jnp.mean(jnp.log(jax.vmap(level)(jax.random.split(drawn, levels)))))

    return mean_level


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
