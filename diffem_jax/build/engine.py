"""The compiled functions of a run: the E-step and the M-step of a config, mapped over the devices."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from diffem_jax import em
from diffem_jax.build.methods import Model, Setup, make_model
from diffem_jax.errors import UserError
from diffem_jax.gaussians.gaussians import Start
from diffem_jax.parallel import Parallel
from diffem_jax.samplers.samplers import observed_spread
from diffem_jax.types import DenoiseFn, EMState, Key, LinearCorruption, PyTree, SpreadDenoiser


class Engine(NamedTuple):
    """The compiled functions of a run."""

    parallel: Parallel
    model: Model
    e_step: Callable[..., Any]  # (key, params, observations, indices) -> draws
    m_step: Callable[..., Any]  # (key, state, x, slots) -> (state, info), ``dispatch`` updates
    dispatch: int


def make_engine(setup: Setup, parallel: Parallel, start: Start) -> Engine:
    """Builds and maps the E-step and the M-step; UserError for a batch size that the devices cannot share."""
    config, m = setup.config, setup.config.m_step
    devices = parallel.num_devices
    for step, size, parts in (("e_step", config.e_step.batch_size, 1), ("m_step", m.batch_size, m.accumulate)):
        if size % (devices * parts):
            times = f" times m_step.accumulate, {devices} x {parts}" if parts > 1 else f", {devices}"
            expected = f"a multiple of the number of devices{times}"
            raise UserError(f"config.{step}.batch_size: {size}; expected {expected}; change it")
    model = make_model(setup, start)
    if model.draw is None:
        e_step = em.make_e_step(_bind_spread(setup, model), setup.sampler, setup.times, setup.shape)
    else:
        e_step = em.map_examples(model.draw)
    m_step = make_mapped_m_step(setup, parallel, model.loss, setup.optimizer)
    return Engine(parallel, model, parallel.map_e_step(e_step), m_step, updates_per_dispatch(config, m.steps))


def _bind_spread(setup: Setup, model: Model) -> em.Bind:
    """The model's denoisers, with the spread that a linear corruption knows in closed form."""
    if not setup.corruption.is_linear:
        return model.bind
    corruption = cast(LinearCorruption, setup.corruption)
    return lambda params, seen: cast(
        DenoiseFn, SpreadDenoiser(model.bind(params, seen), observed_spread(corruption, seen))
    )


def updates_per_dispatch(config: Any, steps: int) -> int:
    """The largest divisor of ``steps`` that config.m_step.updates_per_dispatch allows: every call has the same shape."""
    limit = min(config.m_step.updates_per_dispatch, config.checkpoint.every_steps, steps)
    return max(d for d in range(1, limit + 1) if steps % d == 0)


def make_mapped_m_step(
    setup: Setup, parallel: Parallel, loss: em.Loss, optimizer: optax.GradientTransformation
) -> Callable[..., Any]:
    """The M-step of a loss by the config's fields, mapped over the devices."""
    m = setup.config.m_step
    options = {"ema_decay": m.ema_decay, "ema_warmup": m.ema_warmup, "mean": parallel.mean}
    if m.accumulate > 1:
        options["gradient"] = lambda loss: accumulate_gradient(em.batch_gradient(loss), m.accumulate)
    update, scanned = em.make_update(loss, optimizer, **options), em.make_m_step(loss, optimizer, **options)

    def m_step(key: Key, state: EMState, x: PyTree, slots: Array) -> tuple[EMState, dict[str, Array]]:
        if slots.shape[0] > 1:
            return scanned(key, state, x, slots)
        # One update needs no loop, in which XLA's CPU backend has no fast convolutions.
        after, info = update(key, state, *jax.tree.map(lambda a: a[0], (x, slots)))
        return after, jax.tree.map(lambda a: a[None], info)

    return parallel.map_m_step(m_step)


def accumulate_gradient(gradient: em.Gradient, parts: int) -> em.Gradient:
    """The same gradient from a batch that is cut into ``parts`` taken one after another, to save memory."""

    def accumulated(params: PyTree, key: Key, x: PyTree, slots: Array) -> tuple[Array, PyTree]:
        # Every parts-th example: each device, which holds neighbours, then has its share of every part.
        cut = jax.tree.map(lambda a: jnp.swapaxes(a.reshape(-1, parts, *a.shape[1:]), 0, 1), (x, slots))

        def add(total: PyTree, part: tuple[PyTree, Array]) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, gradient(params, key, *part)), None

        total, _ = jax.lax.scan(add, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)), cut)
        return jax.tree.map(lambda leaf: leaf / parts, total)

    return accumulated
