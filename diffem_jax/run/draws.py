"""Rows drawn by an E-step, for everybody: rounds, posterior and prior samples, scores and pictures.

Batches are padded to one shape, one batch is computed while the one before comes back to the host, and draws that are
not finite are drawn again and counted: a sampler under guidance can overflow where the prior is steep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffem_jax.build.problem import rows
from diffem_jax.errors import UserError
from diffem_jax.parallel import Parallel, most, no_transfers, process_count
from diffem_jax.report.console import Progress
from diffem_jax.types import Key, Observation, PyTree, stream_key

ATTEMPTS = 4
"""How often a draw that is not finite is drawn again."""


class Drawing(NamedTuple):
    """How rows are drawn; row i has the key (keys(attempt), i), so batches and devices do not change a draw.

    Attributes:
        step: a mapped E-step.
        parallel: how it was mapped.
        params: its parameters, on the devices.
        read: indices [n] -> the observations of these rows, a tree of arrays [n, ...].
        keys: attempt -> key; attempt 0 is the first.
        batch: rows of this process in one call.
    """

    step: Callable[..., Any]
    parallel: Parallel
    params: PyTree
    read: Callable[[np.ndarray], PyTree]
    keys: Callable[[int], Key]
    batch: int


def make_drawing(
    step: Callable[..., Any],
    parallel: Parallel,
    params: PyTree,
    observations: Observation | None,
    keys: Any,
    batch: int,
) -> Drawing:
    """A ``Drawing`` whose row s N + i is draw s of observation i of N; of the prior where there are no observations.

    Args:
        step: a mapped E-step.
        parallel: how it was mapped.
        params: its parameters.
        observations: arrays with a leading axis N, or None.
        keys: attempt -> key, as ``attempt_keys`` gives.
        batch: rows in one call over all devices of all processes.
    """

    def read(indices: np.ndarray) -> PyTree:
        # The prior sees no observation; the empty tree stands for it.
        return () if observations is None else rows(observations, indices % len(observations.y))

    return Drawing(step, parallel, parallel.replicate(params), read, keys, batch // process_count())


def attempt_keys(seed: int, stream: str, *places: int) -> Callable[[int], Key]:
    """Attempt -> the key of a stream: its own for the first attempt, '<stream>_again' for later ones."""

    def keys(attempt: int) -> Key:
        return stream_key(seed, f"{stream}_again", *places, attempt) if attempt else stream_key(seed, stream, *places)

    return keys


def ignore(*args: Any) -> None:
    """Does nothing."""


def draw_rows(
    drawing: Drawing,
    indices: np.ndarray,
    *,
    size: int = 0,
    advance: Callable[[int], None] = ignore,
    check: Callable[[], None] = ignore,
) -> tuple[np.ndarray, int]:
    """The draws [n, *X] of the rows ``indices`` [n], and how many of them were drawn again.

    After the last attempt some may still not be finite: see ``not_finite``.

    Args:
        drawing: how.
        indices: the rows, at least one.
        size: the most rows of any process, which all compute together; 0 where there is one process.
        advance: takes the number of rows after each batch.
        check: called between batches; may raise.
    """
    x = _draw_batches(drawing, drawing.keys(0), indices, size or len(indices), advance, check)
    count = 0
    for attempt in range(1, ATTEMPTS + 1):
        bad = not_finite(x)
        largest = most(len(bad))
        if not largest:
            break
        wanted = indices[bad] if len(bad) else indices[:1]
        again = _draw_batches(drawing, drawing.keys(attempt), wanted, largest, ignore, check)
        if len(bad):
            x = np.array(x)
            x[bad] = again
        count += len(bad)
    return x, count


def _draw_batches(
    drawing: Drawing,
    key: Key,
    indices: np.ndarray,
    size: int,
    advance: Callable[[int], None],
    check: Callable[[], None],
) -> np.ndarray:
    """The draws of some rows in padded batches of one shape: nothing is dropped, nothing traced again."""
    parallel, batch = drawing.parallel, drawing.batch
    key, parts, waiting = parallel.replicate(key), [], None
    for first in range(0, size, batch):
        padded = indices[np.arange(first, first + batch) % len(indices)]
        observations, numbers = parallel.shard((drawing.read(padded), padded.astype(np.int32)))
        with no_transfers(after_first=first > 0):
            result = drawing.step(key, drawing.params, observations, numbers)
        # One batch is computed while the one before it comes back to the host.
        if waiting is not None:
            parts.append(parallel.gather(waiting))
            advance(batch)
            check()
        waiting = result
    parts.append(parallel.gather(waiting))
    advance(size - (len(parts) - 1) * batch)
    return np.concatenate(parts)[: len(indices)]


def draw_samples(
    drawing: Drawing, count: int, num_samples: int, *, quiet: bool = False, pad: bool = False
) -> np.ndarray:
    """num_samples draws for each of ``count`` observations, [num_samples, count, *X].

    Draw s of observation i is row s count + i, so more samples never change the earlier ones.

    Args:
        drawing: how.
        count: observations.
        num_samples: draws for each.
        quiet: show no progress.
        pad: keep the batch's size where there are fewer draws, for a step that is compiled for it.

    Raises:
        UserError: draws that are not finite, however often they were drawn.
    """
    total, devices = count * num_samples, drawing.parallel.num_devices
    if not pad:
        drawing = drawing._replace(batch=max(devices, min(drawing.batch, -(-total // devices) * devices)))
    with Progress("sampling", total, "draws", quiet=quiet) as progress:
        x, _ = draw_rows(drawing, np.arange(total), advance=progress.advance)
    check_draws(x)
    return x.reshape(num_samples, count, *x.shape[1:])


def not_finite(x: np.ndarray) -> np.ndarray:
    """Positions of the examples [N, ...] that hold NaN or infinity."""
    return np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))


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
