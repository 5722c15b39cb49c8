"""Numbers: how good reconstructions, posteriors and priors are, each with its standard error where it has one.

* ``paired``: each reconstruction against its own truth (PSNR, SSIM), 8-bit conversion, a classifier's accuracy;
* ``transport``: sets of points against each other (Sinkhorn divergence, sliced Wasserstein), also in observation
  space, where no clean data are needed;
* ``features``: sets of feature vectors against each other (Frechet distance, KID, precision, recall, ...);
* ``scores``: how well reconstructions predict observations, a proper score without clean data;
* ``perceptual``: LPIPS, FID, Inception score, FD-DINOv2, by packages that are extras;
* ``posterior``: several draws per observation (coverage, TARP, CRPS, spread).
"""

from diffem_jax.metrics.base import Estimate, mean_estimate
from diffem_jax.metrics.features import Manifolds, frechet_distance, kernel_distance, precision_recall_density_coverage
from diffem_jax.metrics.paired import accuracy, psnr, psnr_per_example, ssim, to_uint8, train_classifier
from diffem_jax.metrics.perceptual import EXTRACTORS, fidelity, lpips
from diffem_jax.metrics.posterior import LEVELS, coverage, coverage_shares, crps, spread, tarp, tarp_shares
from diffem_jax.metrics.scores import observation_scores
from diffem_jax.metrics.transport import (
    observation_features,
    sinkhorn_cost,
    sinkhorn_divergence,
    sinkhorn_floor,
    sliced_wasserstein,
)
