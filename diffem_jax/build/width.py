"""How wide a config's draws are: its sampler, grid and number of steps with an exact denoiser."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffem_jax.build.parts import make_sampler, make_schedule, make_times
from diffem_jax.denoisers.edm import gaussian_denoiser
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.samplers import sample
from diffem_jax.types import stream_key

LEAST, MOST = 0.98, 1.03
"""Between these a config's draws count as wide enough; a larger error is fed back by EM, round by round (docs/theory.md)."""
DRAWS = 2**14


def draw_width(config: ConfigDict) -> float:
    """Returns f = Var(draw) / Var(exact) of an x ~ N(0, sigma_data^2) of which nothing is seen; its standard error is 0.011.

    With a share p of x seen, EM settles at a variance of V = p / (1 - (1 - p) f) times the true one.
    """
    schedule, std = make_schedule(config), config.denoiser.sigma_data
    sampler = make_sampler("e_step.sampler", config.e_step.sampler, schedule, std)
    times = make_times(config, schedule, config.e_step.steps)
    prior = Gaussian(jnp.zeros(1), jnp.full((1,), std**2), jnp.zeros((0, 1)))
    denoise = gaussian_denoiser(schedule, prior)
    draw = jax.jit(jax.vmap(lambda key: sample(key, sampler, denoise, times, (1,))))
    return float(jnp.var(draw(jax.random.split(stream_key(0, "width"), DRAWS)))) / std**2
