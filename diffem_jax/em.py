"""EM with conditional diffusion models as two pure functions.

    E-step   x_i ~ reverse diffusion with d(. | y_i), one draw per observation (or several)
    M-step   train d(x_t, t | y') on pairs (x_i, y'), y' ~ p(y | x_i) drawn afresh in every batch

Nothing here knows a device, a file or a config; ``parallel`` maps these functions and ``train`` calls them.

Source: Hosseintabar, Chen, Daras, Torralba and Daskalakis 2025, arXiv 2510.12691, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from diffem_jax.picard import sample_picard
from diffem_jax.samplers import sample
from diffem_jax.types import DenoiseFn, EMState, Key, Observation, PyTree, Sampler, example_keys

EStep = Callable[[Key, PyTree, Observation, Array], Array]
MStep = Callable[[Key, EMState, PyTree, Array], tuple[EMState, dict[str, Array]]]
Loss = Callable[[PyTree, Key, PyTree], Array]


def make_e_step(
    bind: Callable[[PyTree, Observation], DenoiseFn],
    sampler: Sampler,
    times: Array,
    shape: tuple[int, ...],
    *,
    picard: int = 0,
) -> EStep:
    """The E-step: (key, params, observations [B], indices [B]) -> x-hat [B, *X], one posterior draw per observation.

    The randomness of a draw comes from (key, index of the example), so the numbers do not depend on the batch size, the
    number of devices or the way of mapping.

    Args:
        bind: (params, observation) -> (x_t, t) -> x-hat, the denoiser of one observation: the conditional network for
            DiffEM, an unconditional one under a posterior transform for EM-MMPS and EM-DPS.
        sampler: any ``Sampler``.
        times: [N + 1], decreasing.
        shape: the shape of x.
        picard: at least 1 runs that many iterations over all steps at once (``sample_picard``); 0 one step after the other.
    """

    def draw(key: Key, params: PyTree, observation: Observation) -> Array:
        denoise = bind(params, observation)
        if picard:
            return sample_picard(key, sampler, denoise, times, shape, picard)
        return sample(key, sampler, denoise, times, shape)

    return map_examples(draw)


def map_examples(draw: Callable[[Key, PyTree, Observation], Array]) -> EStep:
    """One example's draw (key, params, observation) -> x as an E-step over a batch of examples with indices [B]."""

    def e_step(key: Key, params: PyTree, observations: Observation, indices: Array) -> Array:
        return jax.vmap(draw, in_axes=(0, None, 0))(example_keys(key, indices), params, observations)

    return e_step


def make_m_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    ema_warmup: bool = True,
    accumulate: int = 1,
    mean: Callable[[PyTree], PyTree] = lambda tree: tree,
    noise: Callable[[Key], Array] | None = None,
) -> MStep:
    """The M-step: (key, state, x [S, B, *X], slots [S, B]) -> (state, {"loss": [S], "gradient_norm": [S]}).

    S updates run in one ``lax.scan``, each on B examples; x may be a tree of arrays, whatever the loss takes. An example's
    randomness (its fresh corruption, t, noise) comes from (key, step, slot), so the numbers do not depend on how the batch
    is laid out over devices.

    Args:
        loss: (params, key, x) -> loss of one example.
        optimizer: an optax transformation; clipping, schedules and weight decay live in it.
        ema_decay: decay of the parameters' moving average.
        ema_warmup: use min(ema_decay, (1 + n) / (10 + n)) at update n, so that early averages forget the start.
        accumulate: split each batch into this many parts and add up their gradients, to save memory.
        mean: average of a tree over what else shares the batch (other devices); the identity on one.
        noise: an example's key -> the noise level that the loss draws with it. Each update then also yields ``broken``,
            the share of examples whose loss is not finite, and ``noise``, the geometric mean of their levels; where all
            are finite, of all levels by their part in the loss.
    """

    def batch_loss(params: PyTree, keys: Key, x: PyTree) -> tuple[Array, PyTree]:
        losses = jax.vmap(loss, in_axes=(None, 0, 0))(params, keys, x)
        if noise is None:
            return jnp.mean(losses), ()
        level = jnp.log(jax.vmap(noise)(jax.random.clone(keys)))
        bad = ~jnp.isfinite(losses)
        parts = jnp.stack([bad.astype(losses.dtype), jnp.where(bad, 0.0, losses)])
        return jnp.mean(losses), (jnp.mean(parts, axis=1), jnp.mean(parts * level[None], axis=1))

    def value_and_grad(params: PyTree, keys: Key, x: PyTree) -> tuple[tuple[Array, PyTree], PyTree]:
        grad = jax.value_and_grad(batch_loss, has_aux=True)
        if accumulate == 1:
            return grad(params, keys, x)
        parts = jax.tree.map(lambda a: a.reshape(accumulate, -1, *a.shape[1:]), (keys, x))

        def add(total: PyTree, part: tuple[Key, PyTree]) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, grad(params, *part)), None

        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), parts)
        shapes = jax.eval_shape(grad, params, *one)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda leaf: leaf / accumulate, total)

    def m_step(key: Key, state: EMState, x: PyTree, slots: Array) -> tuple[EMState, dict[str, Array]]:
        def update(state: EMState, batch: tuple[PyTree, Array]) -> tuple[EMState, dict[str, Array]]:
            x, slot = batch
            keys = example_keys(jax.random.fold_in(key, state.step), slot)
            (value, levels), gradient = mean(value_and_grad(state.params, keys, x))
            norm = optax.global_norm(gradient)
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            count = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + count) / (10 + count)) if ema_warmup else jnp.float32(ema_decay)
            ema_params = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema_params, params)
            state = EMState(params, ema_params, opt_state, state.step + 1, state.round)
            info = {"loss": value, "gradient_norm": norm}
            if noise is not None:
                (broken, weight), (sum_broken, sum_weight) = levels
                mean_level = jnp.where(broken > 0, sum_broken / broken, sum_weight / weight)
                info |= {"broken": broken, "noise": jnp.exp(mean_level)}
            return state, info

        if slots.shape[0] == 1:
            # One update needs no loop, in which XLA's CPU backend has no fast convolutions.
            state, info = update(state, jax.tree.map(lambda a: a[0], (x, slots)))
            return state, jax.tree.map(lambda a: a[None], info)
        return jax.lax.scan(update, state, (x, slots))

    return m_step


def make_state(params: PyTree, optimizer: optax.GradientTransformation) -> EMState:
    """The state before the first update."""
    # Every leaf owns its buffer: the state is donated to each update.
    step, round_ = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return EMState(params, jax.tree.map(jnp.array, params), optimizer.init(params), step, round_)
