"""A user's own parts, named as 'module:name': corruption, network, start, posterior transform, schedule, sampler, traced before any compute."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax import samplers
from diffem_jax.build.methods import Model, Setup
from diffem_jax.config import flatten, lookup
from diffem_jax.errors import UserError, first_line
from diffem_jax.gaussians import starts
from diffem_jax.types import Key, stream_key

FIELDS = ("start.name", "schedule.name", "corruption.name", "e_step.sampler", "network.name", "method")


def check(setup: Setup, model: Model) -> None:
    """Traces one draw of objects from outside, which may not keep their contract; UserError says which and what went wrong."""
    config = flatten(setup.config)
    plugged = {field: config[field] for field in FIELDS if ":" in config[field]}
    if "start.name" in plugged:
        lookup("start.name", plugged["start.name"], starts.STARTS)
    if not plugged:
        return

    def use(key: Key) -> Array:
        params = model.denoiser.init(key)
        x = jnp.zeros(setup.shape)
        denoise = model.bind(params, setup.corruption.sample(key, x))
        if denoise(x, jnp.ones(())).shape != setup.shape:
            raise ValueError(f"the denoiser yields {denoise(x, jnp.ones(())).shape} for x of {setup.shape}")
        return samplers.sample(key, setup.sampler, denoise, setup.times, setup.shape)

    try:
        with jax.debug_key_reuse(False):
            drawn = jax.eval_shape(use, stream_key(setup.config.seed, "init"))
        if drawn.shape != setup.shape:
            raise ValueError(f"a draw has shape {drawn.shape}, x has {setup.shape}")
    except UserError:
        raise
    except Exception as error:
        said = ", ".join(f"config.{field}: {name!r}" for field, name in plugged.items())
        raise UserError(
            f"{said}: cannot be traced ({type(error).__name__}: {first_line(error)[:200]}); expected objects that keep "
            "their contract; try them by the checks of diffem_jax.testing"
        ) from error
