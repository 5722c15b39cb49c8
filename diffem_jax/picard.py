"""Sampling in parallel over time: all steps' network evaluations at once, repeated until the trajectory stands still.

For when devices outnumber observations: it takes more evaluations than one step after the other, but fewer in sequence.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.types import DenoiseFn, Key, Sampler


def sample_picard(
    key: Key, sampler: Sampler, denoise: DenoiseFn, times: Array, shape: tuple[int, ...], iterations: int
) -> Array:
    """The draw of ``samplers.sample`` with the same key, by fixed-point iteration over the denoised points of all steps.

    One iteration runs the sampler's own recurrence with the denoised points D of the iteration before, which costs
    nothing, and then evaluates the denoiser at all points that this trajectory visits, which is one batch:

        x(D) = trajectory of the sampler given D;  D <- denoise(x(D), t) for all steps at once.

    After k iterations the first k evaluations are those of the sequential sampler, so as many iterations as the sampler
    has evaluations give its draw exactly; far fewer come close. The noise of a stochastic sampler is that of the key,
    the same in every iteration.

    Args:
        key: the draw's key, used as ``samplers.sample`` uses it.
        sampler: a sampler that calls ``denoise`` in ``step`` itself, not in a loop inside it (all but 'pc').
        denoise: (x_t, t) -> x-hat.
        times: [N + 1], decreasing.
        shape: the shape of x.
        iterations: evaluations in sequence, at least 1. The first one is of the initial noise alone.

    Returns:
        x of ``shape``.

    Source: Shih et al. 2023, arXiv 2305.16317, with the linear part of the step solved exactly.
    """
    first = sampler.init(jax.random.fold_in(key, 0), times[0], shape)
    steps = (jnp.arange(1, len(times)), times[:-1], times[1:])

    def replay(denoised: Array) -> tuple[Array, Array, Array]:
        """The trajectory given the denoised points [N, E, *X]: where they are evaluated, and x at its end."""

        def body(state: Any, step: Any) -> tuple[Any, tuple[Array, Array]]:
            (index, t, s), known = step
            asked: list[tuple[Array, Array]] = []

            def look_up(x: Array, at: Array) -> Array:
                asked.append((x, at))
                return known[len(asked) - 1]

            state, _ = sampler.step(jax.random.fold_in(key, index), state, t, s, look_up)
            return state, (jnp.stack([x for x, _ in asked]), jnp.stack([at for _, at in asked]))

        state, (points, levels) = jax.lax.scan(body, first, (steps, denoised))
        return points, levels, sampler.final(state, times[-1])

    calls = _evaluations(key, sampler, first, times, shape)
    every = jax.vmap(jax.vmap(denoise))

    def iterate(denoised: Array, _: None) -> tuple[Array, None]:
        points, levels, _end = replay(denoised)
        return every(points, levels), None

    # Far from the data the denoiser hardly depends on x: the first evaluation is a good guess for many steps.
    points, levels, _ = replay(jnp.zeros((len(times) - 1, calls, *shape)))
    guess = jnp.broadcast_to(denoise(points[0, 0], levels[0, 0]), (len(times) - 1, calls, *shape))
    denoised, _ = jax.lax.scan(iterate, guess, None, length=iterations - 1)
    return replay(denoised)[2]


def _evaluations(key: Key, sampler: Sampler, state: Any, times: Array, shape: tuple[int, ...]) -> int:
    """How often a step calls ``denoise``."""
    calls: list[None] = []

    def count(x: Array, t: Array) -> Array:
        calls.append(None)
        return jnp.zeros(shape)

    jax.eval_shape(lambda k, s: sampler.step(k, s, times[0], times[1], count)[0], key, state)
    return len(calls)
