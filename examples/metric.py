"""A metric: the standard deviation of the reconstructions, which needs no clean data.

diffem --config=digits --config.eval.metrics="('psnr','examples.metric:contrast')" --workdir=runs/contrast
"""

from diffem_jax.metrics import Estimate


def contrast(problem):
    """(round, draws [N, *X]) -> the standard deviation over all entries."""
    return lambda number, draws: Estimate(float(draws.std()), None, len(draws))
