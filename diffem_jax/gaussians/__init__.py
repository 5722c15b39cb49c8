"""Closed forms: linear algebra for one example, Gaussians and mixtures, and the starts fitted with them."""

from diffem_jax.gaussians.factor_analysis import make_em_iteration, zero_sums
from diffem_jax.gaussians.gaussians import (
    Mixture,
    condition_on_both,
    condition_on_observation,
    mixture_posterior_mean,
    overall_moments,
    posterior_moments,
    sample_posterior,
)
from diffem_jax.gaussians.linalg import Gaussian, condition_on_noisy, conjugate_gradient
from diffem_jax.gaussians.starts import STARTS, fit, gaussian_start, make_start_draw, mixture_start
