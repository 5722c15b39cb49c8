"""EM with conditional diffusion models as two pure functions; a round.

    observations y_i ───────► E-step  x_i ~ reverse diffusion with d(. | y_i)
                                │                 ▲
                 reconstructions x_i              │ parameters (their moving average)
                                ▼                 │
    p(y | x) ───────────────► M-step  fit d(x_t, t | y') to x_i,  y' ~ p(y | x_i) drawn afresh for every batch

``samplers.sample`` is the loop over steps, ``denoisers`` give d and the loss, ``corruptions`` draw y'; ``parallel`` maps these
functions over devices and ``run.rounds`` calls them.

Source: Hosseintabar, Chen, Daras, Torralba and Daskalakis 2025, arXiv 2510.12691, algorithm 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from diffem_jax.samplers.samplers import sample
from diffem_jax.types import DenoiseFn, Draw, EMState, Key, Observation, PyTree, Sampler, Shape, example_keys

Bind = Callable[[PyTree, Observation], DenoiseFn]
EStep = Callable[[Key, PyTree, Observation, Array], Array]
Loss = Callable[[PyTree, Key, PyTree], Array]
Gradient = Callable[[PyTree, Key, PyTree, Array], tuple[Array, PyTree]]
MStep = Callable[[Key, EMState, PyTree, Array], tuple[EMState, dict[str, Array]]]


def make_e_step(bind: Bind, sampler: Sampler, times: Array, shape: Shape) -> EStep:
    """The E-step: (key, params, observations [B], indices [B]) -> x [B, *X], one posterior draw per observation.

    ``bind`` is (params, observation) -> d, the denoiser of one observation: the conditional network for DiffEM, an
    unconditional one under guidance for EM-MMPS; ``times`` [N + 1] decrease, ``shape`` is that of x.
    """
    return map_examples(lambda key, params, y: sample(key, sampler, bind(params, y), times, shape))


def map_examples(draw: Draw) -> EStep:
    """One example's draw over a batch; its randomness is (key, index), so batches and devices do not change a draw."""
    many = jax.vmap(draw, in_axes=(0, None, 0))
    return lambda key, params, observations, indices: many(example_keys(key, indices), params, observations)


def batch_gradient(loss: Loss) -> Gradient:
    """(params, key, x [B, *X], slots [B]) -> (mean loss, its gradient); slot b of a batch has the key (key, b)."""

    def mean_loss(params: PyTree, key: Key, x: PyTree, slots: Array) -> Array:
        return jnp.mean(jax.vmap(loss, in_axes=(None, 0, 0))(params, example_keys(key, slots), x))

    return jax.value_and_grad(mean_loss)


def make_update(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    ema_warmup: bool = True,
    mean: Callable[[PyTree], PyTree] = lambda tree: tree,
    gradient: Callable[[Loss], Gradient] = batch_gradient,
) -> MStep:
    """One update: (key, state, x [B, *X], slots [B]) -> (state, {"loss": [], "gradient_norm": []}).

    ``loss`` is (params, key, x) -> loss of one example, x perhaps a tree; clipping, schedules and weight decay live in
    ``optimizer``. The moving average's decay is ``ema_decay``, with ``ema_warmup`` at most (1 + n) / (10 + n) at update
    n: it forgets the start. ``mean`` averages a tree over devices that share a batch, ``gradient`` takes its gradient.
    """
    loss_and_gradient = gradient(loss)

    def update(key: Key, state: EMState, x: PyTree, slots: Array) -> tuple[EMState, dict[str, Array]]:
        value, grads = mean(loss_and_gradient(state.params, jax.random.fold_in(key, state.step), x, slots))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        count = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + count) / (10 + count)) if ema_warmup else jnp.float32(ema_decay)
        ema_params = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema_params, params)
        after = EMState(params, ema_params, opt_state, state.step + 1, state.round)
        return after, {"loss": value, "gradient_norm": optax.global_norm(grads)}

    return update


def make_m_step(loss: Loss, optimizer: optax.GradientTransformation, **options: Any) -> MStep:
    """The M-step: S updates in one ``lax.scan``, (key, state, x [S, B, *X], slots [S, B]) -> (state, info [S])."""
    update = make_update(loss, optimizer, **options)
    return lambda key, state, x, slots: jax.lax.scan(lambda s, batch: update(key, s, *batch), state, (x, slots))


def make_state(params: PyTree, optimizer: optax.GradientTransformation) -> EMState:
    """The state before the first update; every leaf owns its buffer, since the state is donated to each update."""
    step, number = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return EMState(params, jax.tree.map(jnp.array, params), optimizer.init(params), step, number)
