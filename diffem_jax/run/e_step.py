"""The E-step on the host, and ``draw_rows``, by which everybody draws: rounds, samples, scores and pictures.

Batches are padded to one shape, and draws that are not finite are drawn again and counted: a sampler under guidance can
overflow where the prior is steep. Those of a round go to the store shard by shard, resumable, shared among processes.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffem_jax.build.problem import Problem, rows
from diffem_jax.errors import NonFinite, UserError
from diffem_jax.parallel import Parallel, agree, barrier, most, no_transfers, process_count, process_index, total
from diffem_jax.report.console import Progress
from diffem_jax.run.termination import Check, Say, StopRequest
from diffem_jax.storage.reconstructions import ReconstructionStore, Round
from diffem_jax.types import Key, Observation, PyTree, stream_key

ATTEMPTS = 4  # at drawing again what is not finite
Keys = Callable[[int], Key]  # attempt, 0 is the first -> key; row i has (key, i), whatever the batches and devices
Read = Callable[[np.ndarray], PyTree]  # indices [n] -> the observations of these rows, a tree of arrays [n, ...]
Advance = Callable[[int], None]  # takes how many rows more are done


class Drawing(NamedTuple):
    """How rows are drawn: a mapped E-step, how it was mapped, its parameters on the devices, rows of this process in one call."""

    step: Callable[..., Any]
    parallel: Parallel
    params: PyTree
    batch: int


def make_drawing(step: Callable[..., Any], parallel: Parallel, params: PyTree, batch: int) -> Drawing:
    """A ``Drawing`` by a mapped E-step, with ``batch`` rows in one call over all devices of all processes."""
    return Drawing(step, parallel, parallel.replicate(params), batch // process_count())


def attempt_keys(seed: int, stream: str, *at: int) -> Keys:
    """The keys of a stream: its own for the first attempt, those of '<stream>_again' for later ones."""
    return lambda attempt: (
        stream_key(seed, f"{stream}_again", *at, attempt) if attempt else stream_key(seed, stream, *at)
    )


def reader(observations: Observation) -> Read:
    """Row s N + i of several draws is draw s of observation i of N."""
    return lambda indices: rows(observations, indices % len(observations.y))


def draw_rows(
    drawing: Drawing,
    read: Read,
    keys: Keys,
    indices: np.ndarray,
    *,
    size: int = 0,
    advance: Advance = lambda count: None,
    check: Check = lambda: None,
) -> tuple[np.ndarray, int]:
    """The draws [n, *X] of the rows ``indices`` [n], n > 0, and how many of them were drawn again.

    After the last attempt some may still not be finite. Between batches ``advance`` takes the number of rows, and ``check`` may
    raise; ``size`` is the most rows of any process, since all compute together (0: of this one).
    """
    x = _draw_batches(drawing, read, keys(0), indices, size or len(indices), advance, check)
    count = 0
    for attempt in range(1, ATTEMPTS + 1):
        bad = not_finite(x)
        if not (largest := most(len(bad))):
            break
        wanted = indices[bad] if len(bad) else indices[:1]
        again = _draw_batches(drawing, read, keys(attempt), wanted, largest, lambda count: None, check)
        x = np.array(x)  # what comes from the devices is read-only
        x[bad] = again[: len(bad)]
        count += len(bad)
    return x, count


def _draw_batches(
    drawing: Drawing, read: Read, key: Key, indices: np.ndarray, size: int, advance: Advance, check: Check
) -> np.ndarray:
    """The draws of some rows in padded batches of one shape: nothing is dropped, nothing traced again."""
    parallel, batch = drawing.parallel, drawing.batch
    key, parts, waiting = parallel.replicate(key), [], None
    for first in range(0, size, batch):
        padded = indices[np.arange(first, first + batch) % len(indices)]
        observations, numbers = parallel.shard((read(padded), padded.astype(np.int32)))
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
    drawing: Drawing,
    observations: Observation | None,
    keys: Keys,
    num_samples: int,
    *,
    quiet: bool = False,
    pad: bool = False,
) -> np.ndarray:
    """num_samples draws for each of N observations, [num_samples, N, *X]; of the prior, which sees none, N = 1.

    More samples never change earlier ones; not finite ones are refused. ``pad`` keeps a batch size that is compiled.
    """
    # The empty tree stands for no observation.
    count, read = (1, lambda indices: ()) if observations is None else (len(observations.y), reader(observations))
    total, devices = count * num_samples, drawing.parallel.num_devices
    if not pad:
        drawing = drawing._replace(batch=max(devices, min(drawing.batch, -(-total // devices) * devices)))
    with Progress("sampling", total, "draws", quiet=quiet) as progress:
        x, _ = draw_rows(drawing, read, keys, np.arange(total), advance=progress.advance)
    check_draws(x)
    return x.reshape(num_samples, count, *x.shape[1:])


def not_finite(x: np.ndarray) -> np.ndarray:
    """Positions of the examples [N, ...] that hold NaN or infinity."""
    return np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))


def check_draws(x: np.ndarray) -> None:
    """Refuses draws that are still not finite."""
    if len(bad := not_finite(x)):
        what = f"{len(bad)} of {len(x)} draws are NaN or infinite, however often drawn"
        raise UserError(f"{what}; expected finite numbers; choose another round, or train with more e_step.steps")


def run_e_step(
    problem: Problem, store: ReconstructionStore, drawing: Drawing, number: int, stop: StopRequest, say: Say
) -> dict[str, float]:
    """Draws what is left of the reconstructions of round ``number``; returns its seconds and how many were drawn again.

    Row s N + i of the store is draw s of observation i, so the first N rows are one draw of each. ``NonFinite`` for draws that
    are not finite, however often drawn; ``Preempted`` where the run was asked to end, with finished shards kept.
    """
    began = time.monotonic()
    stored, pending = _plan(problem, store, number, say)
    read, keys = reader(problem.observations), attempt_keys(problem.setup.config.seed, "e_step", number)
    processes, me = process_count(), process_index()
    finished = stored.num_examples - sum(len(stored.indices(shard)) for shard in pending)
    redrawn = 0
    with Progress(f"E-step {number}", stored.num_examples, "draws", done=finished, quiet=me != 0) as progress:
        for first in range(0, len(pending), processes):
            group = pending[first : first + processes]
            mine = me < len(group)
            # A process without a shard of its own computes along, since a call spans all devices.
            own = group[me] if mine else group[0]
            size = max(len(stored.indices(shard)) for shard in group)

            def advance(count: int, shards: int = len(group)) -> None:
                progress.advance(count * shards)

            indices = np.asarray(stored.indices(own))
            x, again = draw_rows(drawing, read, keys, indices, size=size, advance=advance, check=stop.check)
            redrawn += again if mine else 0
            _raise_together(_keep(problem, stored, own, x) if mine else None, number)
            stop.check()
    barrier("drawn")
    return {"e_step_seconds": time.monotonic() - began, "redrawn": int(total(np.array([redrawn], np.float64))[0])}


def _plan(problem: Problem, store: ReconstructionStore, number: int, say: Say) -> tuple[Round, list[int]]:
    """The round's folder and the shards that are to be drawn; one process makes the plan, the others follow it."""
    config, shape = problem.setup.config.e_step, problem.setup.shape
    count = problem.num_examples * config.draws
    planned = store.round(number).shard_size if store.holds(number) else config.shard_size
    shard_size = int(agree(np.asarray(planned or 8 * config.batch_size // process_count(), np.int32)))
    if process_index() == 0:
        store.create(number, count, shape, shard_size)
    barrier("created")
    stored = store.create(number, count, shape, shard_size)
    done = np.zeros(stored.num_shards, bool)
    if process_index() == 0:
        whole, warnings = stored.done_shards()
        done[list(whole)] = True
        for line in warnings:
            say(line)
    return stored, np.flatnonzero(~agree(done)).tolist()


def _keep(problem: Problem, stored: Round, shard: int, x: np.ndarray) -> NonFinite | UserError | None:
    """Writes a shard; what went wrong is returned, so that all processes can stop."""
    if len(bad := np.asarray(stored.indices(shard))[not_finite(x)]):
        what = f"E-step {stored.round}: {len(bad)} of {len(x)} draws are NaN or infinite, however often drawn"
        return NonFinite(f"{what}; the first is that of example {bad[0] % problem.num_examples}", stored.round)
    try:
        stored.write_shard(shard, x, process_index())
    except UserError as error:
        return error
    return None


def _raise_together(error: NonFinite | UserError | None, number: int) -> None:
    """Raises an error of any process on all of them, so that none waits for one that has given up; all call it."""
    code = most(0 if error is None else 1 if isinstance(error, NonFinite) else 2)
    if error is not None:
        raise error
    if code == 1:
        raise NonFinite(f"E-step {number}: draws of another process are NaN or infinite", number)
    if code == 2:
        raise UserError(f"E-step {number}: another process could not write; expected what its own message says")
