"""EM with conditional diffusion models as two pure functions.

    E-step   x_i ~ reverse diffusion with d(. | y_i), one draw per observation (or several)
    M-step   train d(x_t, t | y') on pairs (x_i, y'), y' ~ p(y | x_i) drawn afresh in every batch

Nothing here knows a device, a file or a config; ``parallel`` maps these functions and ``rounds`` calls them.

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
        noise: an example's key -> the noise level that the loss draws with it. Of the call's first update that is not
            finite (of its first where all are) the result then also has ``broken`` [], the share of examples whose loss is
            not finite, and ``noise`` [], the geometric mean of their levels; where all losses are finite, of all levels by
            their part in the loss.
    """

    def batch_loss(params: PyTree, key: Key, x: PyTree, slots: Array) -> tuple[Array, Array]:
        losses = jax.vmap(loss, in_axes=(None, 0, 0))(params, example_keys(key, slots), x)
        return jnp.mean(losses), losses

    def losses_and_gradient(params: PyTree, key: Key, x: PyTree, slots: Array) -> tuple[Array, PyTree]:
        grad = jax.grad(batch_loss, has_aux=True)
        if accumulate == 1:
            gradient, losses = grad(params, key, x, slots)
            return losses, gradient
        # Every accumulate-th example: each device, which holds neighbours, then has its share of every part.
        parts = jax.tree.map(lambda a: jnp.swapaxes(a.reshape(-1, accumulate, *a.shape[1:]), 0, 1), (x, slots))

        def add(total: PyTree, part: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
            gradient, losses = grad(params, key, *part)
            return jax.tree.map(jnp.add, total, gradient), losses

        total, losses = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
        return losses.T.reshape(-1), jax.tree.map(lambda leaf: leaf / accumulate, total)

    def blame(key: Key, step: Array, slots: Array, info: dict[str, Array], losses: Array) -> dict[str, Array]:
        """The noise level of the first update that is not finite; once a call, so that it costs the updates nothing."""
        assert noise is not None
        first = jnp.argmax(~(jnp.isfinite(info["loss"]) & jnp.isfinite(info["gradient_norm"])))
        level = jnp.log(jax.vmap(noise)(example_keys(jax.random.fold_in(key, step + first), slots[first])))
        bad = ~jnp.isfinite(losses[first])
        parts = jnp.stack([bad.astype(losses.dtype), jnp.where(bad, 0.0, losses[first])])
        (broken, weight), (sum_broken, sum_weight) = mean((jnp.mean(parts, 1), jnp.mean(parts * level[None], 1)))
        return {"broken": broken, "noise": jnp.exp(jnp.where(broken > 0, sum_broken / broken, sum_weight / weight))}

    def m_step(key: Key, state: EMState, x: PyTree, slots: Array) -> tuple[EMState, dict[str, Array]]:
        def update(state: EMState, batch: tuple[PyTree, Array]) -> tuple[EMState, tuple[dict[str, Array], Array]]:
            x, slot = batch
            losses, gradient = losses_and_gradient(state.params, jax.random.fold_in(key, state.step), x, slot)
            value, gradient = mean((jnp.mean(losses), gradient))
            norm = optax.global_norm(gradient)
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            count = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + count) / (10 + count)) if ema_warmup else jnp.float32(ema_decay)
            ema_params = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema_params, params)
            after = EMState(params, ema_params, opt_state, state.step + 1, state.round)
            return after, ({"loss": value, "gradient_norm": norm}, losses)

        if slots.shape[0] == 1:
            # One update needs no loop, in which XLA's CPU backend has no fast convolutions.
            after, one = update(state, jax.tree.map(lambda a: a[0], (x, slots)))
            info, losses = jax.tree.map(lambda a: a[None], one)
        else:
            after, (info, losses) = jax.lax.scan(update, state, (x, slots))
        return after, info if noise is None else info | blame(key, state.step, slots, info, losses)

    return m_step


def make_state(params: PyTree, optimizer: optax.GradientTransformation) -> EMState:
    """The state before the first update."""
    # Every leaf owns its buffer: the state is donated to each update.
    step, round_ = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return EMState(params, jax.tree.map(jnp.array, params), optimizer.init(params), step, round_)
