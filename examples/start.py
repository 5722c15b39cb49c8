"""A start: the Gaussian fitted by EM, its covariance shrunk towards equal variances. For few observations.

    diffem --config=digits --config.start.name=examples.start:shrunk --workdir=runs/shrunk

Source of the idea: Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".
"""

import jax.numpy as jnp

import diffem_jax as dx


def shrunk(key, corruption, observations, *, rank, iterations=30, shrink=0.1):
    """A mixture of one component with covariance (1 - shrink) S + shrink (tr S / D) I.

    The fields of the config's section ``start`` that it names come as arguments, its own (``shrink``) too.
    """
    fitted = dx.fit(key, corruption, observations, rank=rank, iterations=iterations).mixture
    log_weights, (mean, variance, factor) = fitted
    average = jnp.mean(variance) + jnp.sum(factor**2) / mean.size
    shrunk_variance = (1 - shrink) * variance + shrink * average
    return dx.Mixture(log_weights, dx.Gaussian(mean, shrunk_variance, jnp.sqrt(1 - shrink) * factor))
