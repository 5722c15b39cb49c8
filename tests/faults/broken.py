"""A sampler whose draws are NaN below a noise level, until the run has gone back once."""

import os
from pathlib import Path

import jax.numpy as jnp

from diffem_jax.samplers.samplers import ddpm

LEVEL = 0.5
WORKDIR = "DIFFEM_TEST_WORKDIR"


def sampler(schedule, data_std=1.0):
    """Ddpm; what it does is decided when a step is traced, which every attempt does anew."""
    right = ddpm(schedule, data_std)

    def step(key, state, t, s, denoise):
        state, info = right.step(key, state, t, s, denoise)
        log = Path(os.environ[WORKDIR]) / "metrics.jsonl"
        if log.exists() and "recovery" in log.read_text():
            return state, info
        alpha, sigma = schedule(s)
        return state._replace(x=jnp.where(sigma / alpha < LEVEL, jnp.nan, state.x)), info

    return right._replace(step=step)
