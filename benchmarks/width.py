"""How wide draws are by sampler and number of evaluations, with exact denoisers, and what EM makes of that.

    python -m benchmarks.width

f = Var(draw) / Var(exact) of an unseen x ~ N(0, 1), and the variance that eight rounds of EM reach where a share p of x is
seen: V <- p + (1 - p) Var(draw of N(0, V)), from V = 1. 65,536 draws: the standard error of f is 0.006.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import write
from diffem_jax.denoisers.edm import gaussian_denoiser
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.samplers import EVALUATIONS, SAMPLERS, VarianceExploding, log_uniform_grid, sample, tangent_grid

DRAWS, ROUNDS = 2**16, 8
SCHEDULE = VarianceExploding(1e-3, 100.0)


@functools.cache
def sampled(name: str, evaluations: int) -> Callable[[Any, Any], Any]:
    """(key, V) -> the variance of draws of N(0, V); 'analytic_2m' on its own grid."""
    grid = tangent_grid if name == "analytic_2m" else log_uniform_grid
    times = grid(SCHEDULE, evaluations // EVALUATIONS.get(name, 1))

    def variance(key: Any, v: Any) -> Any:
        denoise = gaussian_denoiser(SCHEDULE, Gaussian(jnp.zeros(1), v.reshape(1), jnp.zeros((0, 1))))
        draw = jax.vmap(lambda k: sample(k, SAMPLERS[name](SCHEDULE), denoise, times, (1,)))
        return jnp.var(draw(jax.random.split(key, DRAWS)))

    return jax.jit(variance)


def main() -> None:
    found: dict[str, Any] = {"f": {}, "em": {}}
    for name in ("ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "analytic_2m"):
        widths = {count: sampled(name, count)(jax.random.key(0), jnp.ones(())) for count in (8, 12, 16, 32, 64)}
        found["f"][name] = {count: round(float(width), 3) for count, width in widths.items()}
    for name, count in (("ddpm", 32), ("ddpm", 12), ("dpmpp_2m_sde", 12), ("analytic_2m", 12)):
        for seen in (0.25, 0.1):
            v = jnp.ones(())
            for number in range(ROUNDS):
                v = seen + (1 - seen) * sampled(name, count)(jax.random.key(number), v)
            found["em"][f"{name} in {count}, {1 - seen:.0%} unseen"] = round(float(v), 3)
    write("width", found)


if __name__ == "__main__":
    main()
