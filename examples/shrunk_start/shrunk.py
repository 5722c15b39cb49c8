"""A start: the Gaussian fitted by EM, its covariance shrunk towards equal variances. For few observations.

    diffem --config=shrunk_start/config.py --workdir=runs/shrunk

Source of the idea: Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".
"""

import jax.numpy as jnp

import diffem_jax as dx


def shrunk(key, corruption, observations, *, rank, iterations=30, shrink=0.1):
    """A mixture of one component with covariance (1 - shrink) S + shrink (tr S / D) I.

    Fields of the section ``start`` come as arguments, those of your own too; the others are left out.
    """
    log_weights, (mean, variance, factor) = dx.fit(
        key, corruption, observations, rank=rank, iterations=iterations
    ).mixture
    average = jnp.mean(variance) + jnp.sum(factor**2) / mean.size
    return dx.Mixture(
        log_weights,
        dx.Gaussian(mean, (1 - shrink) * variance + shrink * average, jnp.sqrt(1 - shrink) * factor),
    )
