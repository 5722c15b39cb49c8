"""Denoisers: from a network to E[x | x_t, y], its preconditionings, guidance and losses."""

from diffem_jax.denoisers.ambient import ambient_denoiser, ambient_loss
from diffem_jax.denoisers.augment import AUGMENTATIONS
from diffem_jax.denoisers.denoiser import Denoiser, bind
from diffem_jax.denoisers.edm import edm_denoiser, gaussian_denoiser, mixture_denoiser
from diffem_jax.denoisers.guidance import COVARIANCES, POSTERIORS, consistent, dps, mmps, pigdm
from diffem_jax.denoisers.losses import (
    LOSS_WEIGHTS,
    TIME_LAWS,
    BetaMixture,
    LogNormal,
    Uniform,
    denoising_loss,
    min_snr_weight,
    snr_weight,
)
from diffem_jax.denoisers.posterior import isotropic_base, moments_denoiser, posterior_denoiser, start_denoiser

__all__ = [
    "AUGMENTATIONS",
    "COVARIANCES",
    "LOSS_WEIGHTS",
    "POSTERIORS",
    "TIME_LAWS",
    "BetaMixture",
    "Denoiser",
    "LogNormal",
    "Uniform",
    "ambient_denoiser",
    "ambient_loss",
    "bind",
    "consistent",
    "denoising_loss",
    "dps",
    "edm_denoiser",
    "gaussian_denoiser",
    "isotropic_base",
    "min_snr_weight",
    "mixture_denoiser",
    "mmps",
    "moments_denoiser",
    "pigdm",
    "posterior_denoiser",
    "snr_weight",
    "start_denoiser",
]
