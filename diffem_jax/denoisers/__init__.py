"""Denoisers: from a network to E[x | x_t, y], its preconditionings, guidance and losses."""

from diffem_jax.denoisers.ambient import ambient_denoiser, ambient_loss
from diffem_jax.denoisers.augment import AUGMENTATIONS
from diffem_jax.denoisers.denoiser import Denoiser, bind
from diffem_jax.denoisers.edm import edm_denoiser, gaussian_denoiser, mixture_denoiser
from diffem_jax.denoisers.guidance import POSTERIORS, dps, mmps, pigdm
from diffem_jax.denoisers.losses import LOSS_WEIGHTS, TIME_LAWS, BetaMixture, Uniform, denoising_loss, snr_weight
from diffem_jax.denoisers.posterior import isotropic_base, moments_denoiser, posterior_denoiser, start_denoiser
