"""diffem_jax: learn a diffusion posterior p(x | y) and prior p(x) from corrupted observations alone.

The public surface; ``run_em`` runs an experiment. Names are imported on first use: ``diffem --help`` answers at once.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "errors": "UserError",
    "types": "Corruption EMState LinearCorruption Observation Sampler stream_key",
    "networks": "MLP UNet sinusoidal_embedding",
    "samplers": "VarianceExploding VariancePreserving RectifiedFlow log_uniform_grid karras_grid tangent_grid time_at "
    "initial_noise sample analytic_2m ddpm ddim heun predictor_corrector dpmpp_2m dpmpp_2m_sde",
    "gaussians": "Gaussian Mixture conjugate_gradient fit mixture_posterior_mean sample_posterior",
    "corruptions": "Denoising Linear Mask PixelMask Projection",
    "denoisers": "BetaMixture Denoiser bind denoising_loss dps edm_denoiser gaussian_denoiser mixture_denoiser mmps pigdm "
    "posterior_denoiser snr_weight",
    "em": "make_e_step make_m_step make_state",
    "parallel": "make_parallel",
    "pretrained": "export load",
    "run.train": "run_em",
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffem_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffem_jax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
