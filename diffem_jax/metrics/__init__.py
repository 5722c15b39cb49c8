"""Numbers from arrays: how good reconstructions, posteriors and priors are, each with its standard error where it has one.

``paired`` compares each reconstruction with its own truth, ``transport`` and ``features`` compare sets, ``perceptual`` needs
networks of others, ``posterior`` takes several draws per observation.
"""

from diffem_jax.metrics.base import Estimate, mean_estimate
from diffem_jax.metrics.features import Manifolds, frechet_distance, kernel_distance, precision_recall_density_coverage
from diffem_jax.metrics.paired import accuracy, psnr, psnr_per_example, ssim, to_uint8, train_classifier
from diffem_jax.metrics.perceptual import EXTRACTORS, fidelity, lpips
from diffem_jax.metrics.posterior import LEVELS, coverage, coverage_shares, crps, spread, tarp, tarp_shares
from diffem_jax.metrics.transport import (
    observation_features,
    observation_scores,
    sinkhorn_cost,
    sinkhorn_divergence,
    sinkhorn_floor,
    sliced_wasserstein,
)
