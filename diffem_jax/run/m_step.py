"""The M-step on the host: which rows it trains on, and the one training loop, by which the prior trains too."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffem_jax.build.methods import Model
from diffem_jax.build.problem import Problem, rows
from diffem_jax.denoisers.losses import Example
from diffem_jax.errors import NonFinite
from diffem_jax.parallel import Parallel, no_transfers, on_host, process_count, process_index, snapshot
from diffem_jax.report.console import Progress
from diffem_jax.run.e_step import Read
from diffem_jax.run.termination import Say, StopRequest
from diffem_jax.storage import checkpoints
from diffem_jax.storage.background import Background, read_ahead
from diffem_jax.storage.reconstructions import ReconstructionStore, index_stream
from diffem_jax.types import EMState, Key, PyTree

ROLLING = "round_*_update_*"  # the names of checkpoints inside a training
OPERATOR_STREAM = 2**30  # added to the round, so that examples and operators are drawn in orders of their own
Batches = Callable[[int, int, slice], Iterator[PyTree]]
"""(first update, updates S in one call, this process's part of a batch) -> trees of arrays [S, B, ...], without end."""


def round_batches(problem: Problem, model: Model, store: ReconstructionStore, number: int) -> Batches:
    """The batches of round ``number``: reconstructions of the round before, or what the method trains on instead.

    With m_step.operators 'data' each has an observation's operator, by (seed, round, update, slot), whoever's x it is.
    """
    seed, size = problem.setup.config.seed, problem.setup.config.m_step.batch_size
    count, read = training_rows(problem, model, store, number)
    batches = row_batches(seed, number, count, size, read)
    if "operator" not in model.takes:
        return batches
    count, operator = problem.num_examples, problem.observations.operator
    operators = row_batches(seed, OPERATOR_STREAM + number, count, size, lambda indices: rows(operator, indices))
    return lambda *at: (x._replace(operator=other) for x, other in zip(batches(*at), operators(*at), strict=True))


def training_rows(problem: Problem, model: Model, store: ReconstructionStore, number: int) -> tuple[int, Read]:
    """How many rows round ``number`` trains on, and indices [n] -> n of them: ``Example``s where the method takes any."""
    observations, count = problem.observations, problem.num_examples
    read: Any
    if model.trains_on == "observations":
        return count, lambda indices: rows(observations, indices)
    if model.trains_on == "truth":
        length, read = count, lambda indices: np.asarray(problem.truth[indices], np.float32)
    else:
        reader = store.round(number - 1).open()
        length, read = len(reader), reader.__getitem__
    if not model.takes:
        return length, read
    if "own" not in model.takes:
        return length, lambda indices: Example(read(indices))
    return length, lambda indices: Example(read(indices), own=rows(observations.operator, indices % count))


def row_batches(seed: int, stream: int, count: int, batch_size: int, read: Read) -> Batches:
    """Batches of ``count`` rows in the order of a stream; ``read`` is indices [n] -> rows, a tree of arrays [n, ...]."""

    def batches(first: int, updates: int, own: slice) -> Iterator[PyTree]:
        order = index_stream(seed, stream, count, batch_size, first)
        while True:
            chosen = np.stack([next(order)[own] for _ in range(updates)])
            yield jax.tree.map(lambda a, at=chosen: a.reshape(*at.shape, *a.shape[1:]), read(chosen.reshape(-1)))

    return batches


class Course(NamedTuple):
    """Where a training stands: updates done, the sum of their losses and how many of them were read."""

    done: int = 0
    total: float = 0.0
    counted: int = 0


class Training(NamedTuple):
    """What a training needs besides its state."""

    label: str
    number: int  # the round, for errors and the names of checkpoints
    first_step: int  # updates of the run before this training, for errors
    steps: int
    dispatch: int  # updates in one call, a divisor of ``steps``
    batch_size: int  # examples in one update, over all devices of all processes
    every: int  # updates between two rolling checkpoints
    m_step: Callable[..., Any]
    batches: Batches
    folder: Path
    record: dict[str, Any]  # what identifies its checkpoints in ``folder``: one with other values is ignored
    note: Callable[[int, np.ndarray], None] = lambda done, losses: None  # takes (updates done, losses of a call)


def train(
    training: Training, parallel: Parallel, key: Key, begin: Callable[[], EMState], stop: StopRequest, say: Say
) -> tuple[EMState, float]:
    """Does what is left of a training, from its rolling checkpoint or ``begin``; returns the state and the mean loss.

    Each process places its own part of every batch. While a call runs, one thread reads and places the next one's rows, and (of
    a single process) another writes the last rolling checkpoint, whose failure ends the training at the next call.

    ``NonFinite`` names a loss, a gradient or a parameter that is not, with its update and step; ``Preempted`` where the run was
    asked to end: a rolling checkpoint is written.
    """
    state, course = _resume(training, begin, say)
    local = training.batch_size // process_count()
    own = slice(process_index() * local, (process_index() + 1) * local)
    # What is left may not be whole calls where a run goes on with another ``checkpoint.every_steps``.
    dispatch = math.gcd(training.dispatch, training.steps - course.done)
    batches = training.batches(course.done, dispatch, own)
    calls = (training.steps - course.done) // dispatch
    placed = contextlib.closing(read_ahead(lambda: parallel.shard(next(batches), 1), calls))
    progress = Progress(training.label, training.steps, "updates", done=course.done, quiet=process_index() != 0)
    writer: Background[None] = Background()
    slots = parallel.shard(np.tile(np.arange(training.batch_size, dtype=np.int32)[own], (dispatch, 1)), 1)
    key, state = parallel.replicate(key), parallel.place(state)
    begun = saved = course.done
    pending = None
    with progress, placed as ahead, writer:
        for data in ahead:
            update = jax.profiler.StepTraceAnnotation("update", step_num=training.first_step + course.done)
            with no_transfers(after_first=course.done > begun), update:
                state, info = training.m_step(key, state, data, slots)
            del data  # free this call's rows before the ones after the next are read
            # The losses of the call before are read while this one runs.
            course = _read_losses(training, course, pending, progress)
            pending, course = info, course._replace(done=course.done + dispatch)
            writer.check()
            stopping = stop.requested()
            if (course.done - saved >= training.every and course.done < training.steps) or stopping:
                course = _read_losses(training, course, pending, progress)
                pending, saved = None, course.done
                save = functools.partial(_save_rolling, training, snapshot(state), course)
                # Several processes write together, for which Orbax speaks to all devices: not beside an update.
                writer.start(save) if process_count() == 1 else save()
                if stopping:
                    writer.wait()
                    stop.check()
        course = _read_losses(training, course, pending, progress)
    host = jax.tree.map(on_host, state)
    _check_state(training, host, course.done)
    return host, course.total / max(course.counted, 1)


def _resume(training: Training, begin: Callable[[], EMState], say: Say) -> tuple[EMState, Course]:
    path = checkpoints.latest(training.folder, say, ROLLING)
    found = checkpoints.metadata(path) if path is not None else {}
    if path is None or any(found.get(name) != value for name, value in training.record.items()):
        return begin(), Course()
    say(f"{training.label}: continuing from update {found['done']} of {training.steps}")
    like = jax.eval_shape(begin)._asdict()
    return EMState(**checkpoints.load(path, like)), Course(found["done"], found["loss_sum"], found["loss_count"])


def _save_rolling(training: Training, state: EMState, course: Course) -> None:
    """Writes a state that is on the host."""
    _check_state(training, state, course.done)
    path = training.folder / f"round_{training.number:05d}_update_{course.done:09d}"
    record = {"done": course.done, "loss_sum": course.total, "loss_count": course.counted}
    checkpoints.write(path, state._asdict(), training.record | record)
    for older in checkpoints.written(training.folder, ROLLING)[:-2]:
        checkpoints.remove(older)


def _read_losses(training: Training, course: Course, info: Any, progress: Progress) -> Course:
    """Adds the losses of the last call counted in ``course.done``."""
    if info is None:
        return course
    losses = np.asarray(info["loss"], np.float64)
    finite = np.isfinite(losses) & np.isfinite(np.asarray(info["gradient_norm"]))
    if not finite.all():
        first = int(np.argmax(~finite))
        update = course.done - len(losses) + first + 1
        what = "gradient is not finite" if np.isfinite(losses[first]) else f"loss is {losses[first]}"
        where = f"update {update} of {training.steps}, step {training.first_step + update} of the run"
        raise NonFinite(f"{training.label}: the {what} at {where}", training.number, folder=training.folder)
    progress.advance(len(losses), f"loss {losses.mean():.4f}")
    training.note(course.done, losses)
    return course._replace(total=course.total + float(losses.sum()), counted=course.counted + len(losses))


def _check_state(training: Training, state: EMState, done: int) -> None:
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.ema_params))):
        where = f"update {done}, step {training.first_step + done} of the run"
        what = f"{training.label}: parameters are NaN or infinite after {where}"
        raise NonFinite(what, training.number, folder=training.folder)
