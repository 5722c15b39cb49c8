"""Closed forms: linear algebra for one example, Gaussians and mixtures, and the starts fitted with them."""

from diffem_jax.gaussians.gaussians import Mixture, mixture_posterior_mean, sample_posterior
from diffem_jax.gaussians.linalg import Gaussian, conjugate_gradient
from diffem_jax.gaussians.starts import STARTS, fit
