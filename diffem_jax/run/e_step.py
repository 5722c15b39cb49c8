"""The E-step on the host: reconstructions drawn shard by shard, resumable, shared among processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from diffem_jax.build.problem import Problem
from diffem_jax.errors import NonFinite, UserError
from diffem_jax.parallel import Parallel, agree, barrier, most, process_count, process_index, total
from diffem_jax.report.console import Progress
from diffem_jax.run.draws import attempt_keys, draw_rows, make_drawing, not_finite
from diffem_jax.run.termination import StopRequest
from diffem_jax.storage.reconstructions import ReconstructionStore, Round
from diffem_jax.types import PyTree


def run_e_step(
    problem: Problem,
    store: ReconstructionStore,
    parallel: Parallel,
    step: Callable[..., Any],
    params: PyTree,
    number: int,
    stop: StopRequest,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Draws what is left of the reconstructions of round ``number``; returns its seconds and how many were drawn again.

    Row s N + i of the store is draw s of observation i, so the first N rows are one draw of each, however many
    ``e_step.draws`` there are.

    Args:
        problem: the observations.
        store: where reconstructions go.
        parallel: how the step is mapped.
        step: the mapped E-step, or the start's draw.
        params: what it draws with.
        number: the round.
        stop: asked after every batch.
        say: takes lines for the person watching.

    Raises:
        NonFinite: draws that are not finite, however often drawn.
        Preempted: the run was asked to end; finished shards are kept.
    """
    config = problem.setup.config
    began = time.monotonic()
    stored, done = _plan(problem, store, number, say)
    keys = attempt_keys(config.seed, "e_step", number)
    drawing = make_drawing(step, parallel, params, problem.observations, keys, config.e_step.batch_size)
    pending, processes, me = np.flatnonzero(~done), process_count(), process_index()
    finished = stored.num_examples - sum(len(stored.indices(int(s))) for s in pending)
    redrawn = 0
    with Progress(f"E-step {number}", stored.num_examples, "draws", done=finished, quiet=me != 0) as progress:
        for first in range(0, len(pending), processes):
            group = [int(shard) for shard in pending[first : first + processes]]
            # A process without a shard of its own computes along, since a call spans all devices.
            own = group[me] if me < len(group) else group[0]
            size = max(len(stored.indices(shard)) for shard in group)

            def advance(rows: int, shards: int = len(group)) -> None:
                progress.advance(rows * shards)

            rows = np.asarray(stored.indices(own))
            x, again = draw_rows(drawing, rows, size=size, advance=advance, check=stop.check)
            trouble = None
            if me < len(group):
                redrawn += again
                trouble = _keep(problem, stored, own, x)
            _raise_together(trouble, number)
            stop.check()
    barrier("drawn")
    if me == 0 and not stored.is_complete():
        stored.finalise()
    barrier("finalised")
    return {
        "e_step_seconds": time.monotonic() - began,
        "redrawn": int(total(np.array([redrawn], np.float64))[0]),
    }


def _plan(
    problem: Problem, store: ReconstructionStore, number: int, say: Callable[[str], None]
) -> tuple[Round, np.ndarray]:
    """The round's shards, and which of them are done; one process makes the plan, the others follow it."""
    config, shape = problem.setup.config.e_step, problem.setup.shape
    count = problem.num_examples * config.draws
    shard_size = config.shard_size or 8 * config.batch_size // process_count()
    if store.holds(number):
        shard_size = store.round(number).shard_size
    shard_size = int(agree(np.asarray(shard_size, np.int32)))
    if process_index() == 0:
        store.create(number, count, shape, shard_size)
    barrier("created")
    stored = store.create(number, count, shape, shard_size)
    done = np.zeros(stored.num_shards, bool)
    if process_index() == 0:
        found = stored.done_shards()
        done[list(found.shards)] = True
        for line in found.warnings:
            say(line)
    return stored, agree(done)


def _keep(problem: Problem, stored: Round, shard: int, x: np.ndarray) -> NonFinite | UserError | None:
    """Writes a shard; what went wrong is returned, so that all processes can stop."""
    bad = np.asarray(stored.indices(shard))[not_finite(x)]
    if len(bad):
        return NonFinite(
            f"E-step {stored.round}: {len(bad)} of {len(x)} draws are NaN or infinite, however often drawn; the first is that "
            f"of example {bad[0] % problem.num_examples}",
            stored.round,
        )
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
