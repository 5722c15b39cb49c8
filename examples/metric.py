"""A metric: the standard deviation of the reconstructions, which needs no clean data."""

from diffem_jax.metrics import Estimate


def contrast(problem):
    """(round, draws [N, *X]) -> the standard deviation over all entries."""
    return lambda number, draws: Estimate(float(draws.std()), None, len(draws))
