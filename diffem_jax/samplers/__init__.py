"""Samplers: noise schedules, time grids, and reverse diffusion as (init, step, final) with the one scan that runs it."""

from diffem_jax.samplers.samplers import (
    EVALUATIONS,
    SAMPLERS,
    analytic_2m,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    heun,
    initial_noise,
    predictor_corrector,
    sample,
)
from diffem_jax.samplers.schedules import (
    SCHEDULES,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    karras_grid,
    log_uniform_grid,
    noise_ratio,
    tangent_grid,
    time_at,
)
