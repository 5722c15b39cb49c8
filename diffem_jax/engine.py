"""The compiled functions of a run: the E-step and the M-step of a config, mapped over the devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from diffem_jax import em
from diffem_jax.build import Model, Setup, make_model
from diffem_jax.denoisers import drawn_noise
from diffem_jax.gaussians import Mixture
from diffem_jax.parallel import Parallel
from diffem_jax.parts import make_time_law
from diffem_jax.types import UserError
from diffem_jax.updates import largest_divisor


class Engine(NamedTuple):
    """The compiled functions of a run, built once."""

    parallel: Parallel
    model: Model
    e_step: Callable[..., Any]
    m_step: Callable[..., Any]
    dispatch: int


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
    e_step = em.make_e_step(model.bind, setup.sampler, setup.times, setup.shape, picard=config.e_step.picard)
    if model.draw is not None:
        e_step = em.map_examples(model.draw)
    # Ambient Diffusion's loss draws its noise in its own way.
    m_step = make_m_step(setup, parallel, model.loss, setup.optimizer, report_noise=config.method != "ambient")
    dispatch = largest_divisor(m.steps, min(m.updates_per_dispatch, config.checkpoint.every_steps))
    return Engine(parallel, model, parallel.map_e_step(e_step), m_step, dispatch)


def make_m_step(
    setup: Setup, parallel: Parallel, loss: em.Loss, optimizer: optax.GradientTransformation, report_noise: bool = True
) -> Callable[..., Any]:
    """Builds and maps the M-step of a loss by the config; ``report_noise`` where it is a ``denoising_loss``."""
    m = setup.config.m_step
    law = make_time_law(setup.config, setup.schedule)
    m_step = em.make_m_step(
        loss,
        optimizer,
        ema_decay=m.ema_decay,
        ema_warmup=m.ema_warmup,
        accumulate=m.accumulate,
        mean=parallel.mean,
        noise=drawn_noise(setup.schedule, law, m.noise_levels) if report_noise else None,
    )
    return parallel.map_m_step(m_step)
