"""Samplers: noise schedules, time grids, and reverse diffusion as (init, step, final) with the one scan that runs it."""

from diffem_jax.samplers.samplers import (
    EVALUATIONS,
    SAMPLERS,
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
    TIME_GRIDS,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    karras_grid,
    log_uniform_grid,
)

__all__ = [
    "EVALUATIONS",
    "SAMPLERS",
    "SCHEDULES",
    "TIME_GRIDS",
    "RectifiedFlow",
    "VarianceExploding",
    "VariancePreserving",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "heun",
    "initial_noise",
    "karras_grid",
    "log_uniform_grid",
    "predictor_corrector",
    "sample",
]
