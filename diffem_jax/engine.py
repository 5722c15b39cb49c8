"""The compiled functions of a run: the E-step and the M-step of a config, mapped over the devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from diffem_jax import em
from diffem_jax.build import Model, Setup, at_round, make_model
from diffem_jax.denoisers import drawn_noise
from diffem_jax.gaussians import Mixture
from diffem_jax.parallel import Parallel
from diffem_jax.types import UserError
from diffem_jax.updates import largest_divisor


class Engine(NamedTuple):
    """The compiled functions of a run, built once.

    Attributes:
        parallel: how they are mapped.
        model: what they train and draw with.
        e_step: the first round's E-step, and every other's unless the sampler's steps grow.
        m_step: the M-step.
        dispatch: updates in one call.
        e_step_of: round -> its E-step, ``e_step`` itself unless the sampler's steps grow.
    """

    parallel: Parallel
    model: Model
    e_step: Callable[..., Any]
    m_step: Callable[..., Any]
    dispatch: int
    e_step_of: Callable[[int], Callable[..., Any]]


def make_engine(setup: Setup, parallel: Parallel, start: Mixture) -> Engine:
    """Builds and maps the E-step and the M-step."""
    config, m = setup.config, setup.config.m_step
    devices = parallel.num_devices
    if config.e_step.batch_size % devices:
        raise UserError(
            f"config.e_step.batch_size: {config.e_step.batch_size}; expected a multiple of the number of devices, {devices}"
        )
    if m.batch_size % (devices * m.accumulate):
        times = f" times m_step.accumulate, {devices} x {m.accumulate}" if m.accumulate > 1 else f", {devices}"
        raise UserError(
            f"config.m_step.batch_size: {m.batch_size}; expected a multiple of the number of devices{times}"
        )
    model = make_model(setup, start)
    e_step = _e_step(setup, parallel, model)

    # Rounds come one after the other: one is enough.
    @functools.lru_cache(maxsize=1)
    def grown(number: int) -> Callable[..., Any]:
        there = at_round(setup, number)
        return _e_step(there, parallel, make_model(there, start))

    # Ambient Diffusion's loss draws its noise in its own way.
    m_step = make_m_step(setup, parallel, model.loss, setup.optimizer, report_noise=config.method != "ambient")
    dispatch = largest_divisor(m.steps, min(m.updates_per_dispatch, config.checkpoint.every_steps))
    return Engine(
        parallel, model, e_step, m_step, dispatch, grown if config.e_step.steps_added else lambda number: e_step
    )


def _e_step(setup: Setup, parallel: Parallel, model: Model) -> Callable[..., Any]:
    if model.draw is not None:
        return parallel.map_e_step(em.map_examples(model.draw))
    picard = setup.config.e_step.picard
    return parallel.map_e_step(em.make_e_step(model.bind, setup.sampler, setup.times, setup.shape, picard=picard))


def make_m_step(
    setup: Setup, parallel: Parallel, loss: em.Loss, optimizer: optax.GradientTransformation, report_noise: bool = True
) -> Callable[..., Any]:
    """Builds and maps the M-step of a loss by the config; ``report_noise`` where it is a ``denoising_loss``."""
    m = setup.config.m_step
    m_step = em.make_m_step(
        loss,
        optimizer,
        ema_decay=m.ema_decay,
        ema_warmup=m.ema_warmup,
        accumulate=m.accumulate,
        mean=parallel.mean,
        noise=drawn_noise(setup.schedule, setup.time_law, m.noise_levels) if report_noise else None,
    )
    return parallel.map_m_step(m_step)
