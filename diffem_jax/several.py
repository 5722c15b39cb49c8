"""Several posterior draws an observation, in batches of one shape: for ``--mode=sample``, measures and pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffem_jax.parallel import Parallel
from diffem_jax.problem import rows
from diffem_jax.progress import Progress
from diffem_jax.redraw import not_finite, redraw
from diffem_jax.types import Observation, PyTree, UserError, stream_key


def several_draws(
    step: Callable[..., Any],
    parallel: Parallel,
    params: PyTree,
    observations: Observation,
    num_samples: int,
    *,
    seed: int,
    stream: str | tuple[Any, ...],
    batch: int,
    quiet: bool = False,
    pad: bool = False,
) -> np.ndarray:
    """num_samples draws for each of N observations, [num_samples, N, *X].

    Draw s of observation i has index s N + i, so more samples never change the earlier ones.

    Args:
        step: a mapped E-step.
        parallel: how it was mapped.
        params: its parameters.
        observations: arrays with a leading axis N.
        num_samples: S.
        seed: of the stream.
        stream: the stream's name, or its name and indices.
        batch: draws at once over all devices; fewer where there are fewer in all.
        quiet: show no progress.
        pad: keep the batch's size where there are fewer draws, for a step that is compiled for it.

    Raises:
        UserError: draws that are not finite, however often they were drawn.
    """
    count = len(observations.y)
    total = count * num_samples
    devices = parallel.num_devices
    if not pad:
        batch = max(devices, min(batch, -(-total // devices) * devices))
    params = parallel.replicate(params)
    name, *places = (stream,) if isinstance(stream, str) else stream

    def draw(attempt: int, wanted: np.ndarray, progress: Progress | None = None) -> np.ndarray:
        key = stream_key(seed, f"{name}_again", *places, attempt) if attempt else stream_key(seed, name, *places)
        key, parts = parallel.replicate(key), []
        for first in range(0, len(wanted), batch):
            indices = wanted[np.arange(first, first + batch) % len(wanted)]
            observed = parallel.shard(rows(observations, indices % count))
            x = parallel.gather(step(key, params, observed, parallel.shard(indices.astype(np.int32))))
            parts.append(x[: len(wanted) - first])
            if progress:
                progress.advance(len(parts[-1]))
        return np.concatenate(parts)

    with Progress("sampling", total, "draws", quiet=quiet) as progress:
        x = draw(0, np.arange(total), progress)
    x, _ = redraw(x, lambda attempt, positions, size: draw(attempt, positions))
    check_draws(x)
    return x.reshape(num_samples, count, *x.shape[1:])


def check_draws(x: np.ndarray) -> None:
    """Refuses draws that are still not finite.

    Raises:
        UserError: how many are NaN or infinite.
    """
    bad = not_finite(x)
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(x)} draws are NaN or infinite, however often drawn; expected finite numbers; choose another "
            "round, or train with more e_step.steps"
        )
