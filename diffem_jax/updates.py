"""Many updates on the host: the loop of an M-step and of the prior, with its losses, checkpoints and safe points."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from diffem_jax.guards import PRIOR, NonFinite, Preempted, check_state
from diffem_jax.parallel import Parallel, most, on_host, process_count, process_index
from diffem_jax.progress import Progress
from diffem_jax.types import EMState, Key, PyTree, UserError


class Course(NamedTuple):
    """Where a loop stands: updates done, the sum of their losses and how many of them were read."""

    done: int = 0
    total: float = 0.0
    counted: int = 0

    @property
    def mean(self) -> float:
        """The mean loss so far."""
        return self.total / max(self.counted, 1)


class Updates(NamedTuple):
    """What a loop needs besides its state.

    Attributes:
        label: what it is called, 'M-step 3'.
        number: the round, for errors.
        first_step: updates of the run before this loop, for errors.
        steps: updates in all.
        dispatch: updates a call, a divisor of ``steps``.
        batch_size: examples an update, over all devices of all processes.
        every: updates between two calls of ``save``.
        m_step: the mapped M-step.
        read: indices [n] -> rows [n, *X].
        attach: (rows [S, B, *X], slots of this process) -> what the loss takes.
        batches: batches of indices, from the first update still to be done.
        save: writes (state, course) as a rolling checkpoint.
        stop: the signal that asks the process to end, or 0.
        note: told (updates done, losses) once a dispatch's losses are read.
    """

    label: str
    number: int
    first_step: int
    steps: int
    dispatch: int
    batch_size: int
    every: int
    m_step: Callable[..., Any]
    read: Callable[[np.ndarray], PyTree]
    attach: Callable[[PyTree, slice], PyTree]
    batches: Iterator[np.ndarray]
    save: Callable[[EMState, Course], None]
    stop: Callable[[], int]
    note: Callable[[int, np.ndarray], None] = lambda done, losses: None


def run(updates: Updates, parallel: Parallel, key: Key, state: EMState, course: Course) -> tuple[EMState, Course]:
    """Does what is left of a loop; each process reads and places its own part of every batch.

    Returns:
        the state on the host, and the course.

    Raises:
        NonFinite: a loss, a gradient or a parameter; with update, step and noise level.
        Preempted: a signal came to any process; ``save`` was called.
    """
    u, several = updates, process_count() > 1
    local = u.batch_size // process_count()
    mine = slice(process_index() * local, (process_index() + 1) * local)
    # What is left may not be whole dispatches where a run goes on with another ``checkpoint.every_steps``.
    dispatch = math.gcd(u.dispatch, u.steps - course.done)
    slots = parallel.shard(np.tile(np.arange(u.batch_size, dtype=np.int32)[mine], (dispatch, 1)), 1)
    key, state = parallel.replicate(key), parallel.replicate(state)
    saved = course.done
    pending: Any = None
    with Progress(u.label, u.steps, "updates", done=course.done, quiet=process_index() != 0) as progress:
        while course.done < u.steps:
            chunk = np.stack([next(u.batches)[mine] for _ in range(dispatch)])
            rows = u.read(chunk.reshape(-1))
            drawn = jax.tree.map(lambda a, b=chunk: a.reshape(*b.shape, *a.shape[1:]), rows)
            data = parallel.shard(u.attach(drawn, mine), 1)
            with jax.transfer_guard("disallow"):
                state, info = u.m_step(key, state, data, slots)
            # The next dispatch's are read while this one runs: what is not needed any more must not lie beside them.
            del rows, drawn, data
            # The losses of the dispatch before are read while this one runs.
            course = _read(u, course, pending, progress)
            pending, course = info, course._replace(done=course.done + dispatch)
            stop = most(u.stop()) if several else u.stop()
            if (course.done - saved >= u.every and course.done < u.steps) or stop:
                course = _read(u, course, pending, progress)
                pending, saved = None, course.done
                check_state(jax.tree.map(on_host, state), u.number, course.done, u.label, u.first_step)
                u.save(state, course)
                if stop:
                    raise Preempted(signal.Signals(stop).name)
        course = _read(u, course, pending, progress)
    host = jax.tree.map(on_host, state)
    check_state(host, u.number, course.done, u.label, u.first_step)
    return host, course


def _read(u: Updates, course: Course, info: Any, progress: Progress) -> Course:
    """Adds the losses of the last dispatch counted in ``course.done``."""
    if info is None:
        return course
    losses = np.asarray(info["loss"], np.float64)
    finite = np.isfinite(losses) & np.isfinite(np.asarray(info["gradient_norm"]))
    if not finite.all():
        first = int(np.argmax(~finite))
        update = course.done - len(losses) + first + 1
        what = "gradient is not finite" if np.isfinite(losses[first]) else f"loss is {losses[first]}"
        where = f"update {update} of {u.steps}, step {u.first_step + update} of the run"
        message = f"{u.label}: the {what} at {where}"
        if "noise" in info:
            level, broken = float(info["noise"]), float(info["broken"])
            share = f"of {broken:.0%} of the batch" if broken else "of the largest losses"
            message += f", at noise level {level:.3g} ({share})"
        raise NonFinite(message, u.number, prior=u.label == PRIOR)
    progress.advance(len(losses), f"loss {losses.mean():.4f}")
    u.note(course.done, losses)
    return course._replace(total=course.total + float(losses.sum()), counted=course.counted + len(losses))


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is at most ``limit``: every dispatch then has the same shape."""
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)


def raise_together(error: NonFinite | UserError | None, label: str, number: int) -> None:
    """Raises an error of any process on all of them, so that none waits for one that has given up; all call it."""
    code = most(0 if error is None else 1 if isinstance(error, NonFinite) else 2)
    if error is not None:
        raise error
    if code == 1:
        raise NonFinite(f"{label}: draws of another process are NaN or infinite", number, draws=True)
    if code == 2:
        raise UserError(f"{label}: another process could not write; expected what its own message says")
