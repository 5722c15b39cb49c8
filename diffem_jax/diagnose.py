"""Where a draw went wrong: run again, step by step, once the batch has shown that it did."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.build import Model, Setup
from diffem_jax.types import Key, Observation, PyTree


def broken_step(setup: Setup, model: Model, key: Key, params: PyTree, observation: Observation) -> str:
    """Says at which noise level a sampler's state first held NaN or infinity.

    Args:
        setup: the run's.
        model: its model.
        key: the draw's key.
        params: the parameters it was drawn with, on the host.
        observation: what was observed of the example.

    Returns:
        'at noise level 0.31 (step 5 of 32)', or where it cannot be told, why.
    """
    if model.draw is not None:
        return "at a noise level that this method's draw does not tell"

    @jax.jit
    def finite(key: Key, params: PyTree, observation: Observation) -> Array:
        denoise = model.bind(params, observation)
        sampler, times = setup.sampler, setup.times
        state = sampler.init(jax.random.fold_in(key, 0), times[0], setup.shape)

        def body(state: Any, step: tuple[Array, Array, Array]) -> tuple[Any, Array]:
            index, t, s = step
            state, _ = sampler.step(jax.random.fold_in(key, index), state, t, s, denoise)
            return state, jnp.all(jnp.isfinite(sampler.final(state, s)))

        return jax.lax.scan(body, state, (jnp.arange(1, len(times)), times[:-1], times[1:]))[1]

    good = np.asarray(finite(key, params, observation))
    if good.all():
        return "where its last draw passed, not that of this attempt"
    first = int(np.argmin(good))
    alpha, sigma = setup.schedule(setup.times[first])
    return f"at noise level {float(sigma / alpha):.3g} (step {first + 1} of {len(good)} of the sampler)"
