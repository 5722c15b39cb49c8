"""The rounds of a run: M-step, checkpoint, E-step, metrics and picture, each resumable where it was interrupted.

Keys are derived from (seed, stream, round, example), shards and checkpoints are written atomically, so a run that was
killed anywhere goes on by the same command and ends with the same bits.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax import checkpoints, em, evaluate, held_out, matched, refresh, report, stopping, warm
from diffem_jax.announce import Estimate, round_line
from diffem_jax.build import at_round
from diffem_jax.data import ReconstructionStore, index_stream
from diffem_jax.diagnose import broken_step
from diffem_jax.engine import make_engine
from diffem_jax.fresh import operator_rows, training_rows
from diffem_jax.gaussians import Mixture
from diffem_jax.guards import NonFinite, Preempted, write_shard
from diffem_jax.parallel import agree, barrier, make_parallel, most, on_host, process_count, process_index, total
from diffem_jax.problem import Problem, rows
from diffem_jax.progress import CompileClock, Progress
from diffem_jax.redraw import not_finite, redraw
from diffem_jax.round_zero import load_or_fit, start_draw
from diffem_jax.types import EMState, UserError, stream_key
from diffem_jax.updates import Course, Updates, raise_together
from diffem_jax.updates import run as run_updates
from diffem_jax.workdir import Workdir
from diffem_jax.writers import Writers

Say = Callable[[str], None]


class Run:
    """One run in one work directory: the objects that its rounds share."""

    def __init__(self, problem: Problem, workdir: Workdir, say: Say, measure: Callable[..., dict[str, float]]):
        self.problem, self.workdir, self.say = problem, workdir, say
        self.setup, self.config = problem.setup, problem.setup.config
        self.parallel = make_parallel(self.config.parallel)
        self.lead = process_index() == 0
        self.store = ReconstructionStore(workdir.reconstructions)
        self.stop_signal = 0
        self.clock, self.compiled = CompileClock(), 0.0
        self.start: Mixture = load_or_fit(problem, workdir, say, quiet=not self.lead)
        self.setup = matched.settle(self.setup, self.start)
        self.engine = make_engine(self.setup, self.parallel, self.start)
        self.measure = measure
        init = self.engine.model.denoiser.init
        shapes = jax.eval_shape(lambda: init(stream_key(self.config.seed, "init")))
        self.warm_params = warm.adopt(problem, workdir, shapes, say)
        self.start_step = self.parallel.map_e_step(em.map_examples(start_draw(self.setup)))
        self.draws = problem.num_examples * self.config.e_step.draws
        self.estimate = Estimate(self.config, self.draws, say)
        self.writers: Writers | None = None
        asked = self.config.stop.rule == held_out.NAME
        self.held_out = held_out.make(problem, self.parallel) if asked else None

    # E-step ----------------------------------------------------------------------------------------------------------

    def e_step(self, number: int, params: Any, step: Callable[..., Any]) -> float:
        """Draws reconstructions into the store, shard by shard (see ``refresh``); returns the seconds it took.

        Row s N + i is draw s of observation i, so the first N rows are one draw of each, whatever ``e_step.draws`` is.
        """
        config, count = self.config.e_step, self.draws
        processes, me = process_count(), process_index()
        local_batch = config.batch_size // processes
        shard_size = config.shard_size or 8 * local_batch
        if self.store.holds(number):
            shard_size = self.store.round(number).shard_size
        # One process makes the plan and looks at what there is; the others follow it.
        shard_size = int(agree(np.asarray(shard_size, np.int32)))
        if self.lead:
            self.store.create(number, count, self.setup.shape, shard_size)
        barrier("created")
        stored = self.store.create(number, count, self.setup.shape, shard_size)
        whole = np.zeros(stored.num_shards, bool)
        if self.lead:
            found = stored.done_shards()
            whole[list(found.shards)] = True
            for line in found.warnings:
                self.say(line)
        done = agree(whole)
        pending = np.flatnonzero(~done)
        stream, turn = ("e_step", number), refresh.redrawn(self.config, number, count)
        params = self.parallel.replicate(params)
        redrawn = 0
        began = time.monotonic()
        self.clock.lap()
        label, before = f"E-step {number}", sum(int(turn[stored.indices(int(s))].sum()) for s in np.flatnonzero(done))
        with Progress(label, int(turn.sum()), "draws", done=before, quiet=not self.lead) as progress:
            for first in range(0, len(pending), processes):
                group = pending[first : first + processes]
                shard = int(group[me]) if me < len(group) else int(group[0])
                indices = np.arange(stored.indices(shard).start, stored.indices(shard).stop)
                drawn, size = turn[indices], max(int(turn[stored.indices(int(s))].sum()) for s in group)
                at = indices[drawn] if drawn.any() else indices[:1]
                x, again = drawn, 0
                if size:
                    x, again = self.draw(step, stream, params, at, size, local_batch, progress, len(group))
                redrawn += again if me < len(group) and drawn.any() else 0
                x = refresh.merged(self.store, number, indices, drawn, x)
                trouble = self._keep(stored, shard, x, number, indices, params) if me < len(group) else None
                raise_together(trouble, label, number)
                self._check_signal()
        barrier("drawn")
        if self.lead and not stored.is_complete():
            stored.finalise()
        barrier("finalised")
        self.redrawn = int(total(np.array([redrawn], np.float64))[0])
        self.compiled += self.clock.lap()
        return time.monotonic() - began

    def draw(
        self,
        step: Any,
        stream: tuple[Any, ...],
        params: Any,
        indices: np.ndarray,
        size: int,
        batch: int,
        progress: Progress,
        share: int = 1,
    ) -> tuple[np.ndarray, int]:
        """The draws of some examples; those that are not finite are drawn again, and counted."""

        def attempt(number: int, at: np.ndarray, size: int, progress: Progress | None = None) -> np.ndarray:
            again = (f"{stream[0]}_again", *stream[1:], number)
            key = stream_key(self.config.seed, *(again if number else stream))
            return self._draw(step, self.parallel.replicate(key), params, at, size, batch, progress, share)

        x = attempt(0, indices, size, progress)
        return redraw(x, lambda number, at, size: attempt(number, indices[at], size), most)

    def _keep(
        self, stored: Any, shard: int, x: np.ndarray, number: int, indices: np.ndarray, params: Any
    ) -> NonFinite | UserError | None:
        """Writes a shard; what went wrong is returned, so that all processes can stop."""
        bad = indices[not_finite(x)]
        if len(bad):
            where = "of the start"
            if number:
                key = jax.random.fold_in(stream_key(self.config.seed, "e_step", number), bad[0])
                observation = jax.tree.map(lambda a: a[0], self._observed(bad[:1]))
                host = jax.tree.map(on_host, params)
                where = broken_step(at_round(self.setup, number), self.engine.model, key, host, observation)
            step = f"step {number * self.config.m_step.steps} of the run"
            message = f"E-step {number}, {step}: {len(bad)} of {len(x)} draws are NaN or infinite, however often drawn"
            return NonFinite(
                f"{message}; the first is that of example {bad[0] % self.problem.num_examples}, {where}",
                number,
                draws=True,
            )
        try:
            write_shard(stored, shard, x)
        except UserError as error:
            return error
        return None

    def _observed(self, indices: np.ndarray) -> Any:
        """The observations of some rows of the store."""
        return rows(self.problem.observations, indices % self.problem.num_examples)

    def _draw(
        self,
        step: Any,
        key: Any,
        params: Any,
        indices: np.ndarray,
        size: int,
        batch: int,
        progress: Progress | None,
        share: int,
    ) -> np.ndarray:
        """The draws of some examples, in padded batches of one shape: nothing is dropped, nothing re-traced."""
        parts, waiting = [], None
        for first in range(0, size, batch):
            padded = indices[np.arange(first, first + batch) % len(indices)]
            observations, numbers = self.parallel.shard((self._observed(padded), padded.astype(np.int32)))
            with jax.transfer_guard("disallow"):
                result = step(key, params, observations, numbers)
            # One batch is computed while the one before it comes back to the host.
            if waiting is not None:
                parts.append(self.parallel.gather(waiting))
                if progress:
                    progress.advance(min(batch, size - first + batch) * share)
            waiting = result
        parts.append(self.parallel.gather(waiting))
        if progress:
            progress.advance(max(0, min(batch, size - (len(parts) - 1) * batch)) * share)
        return np.concatenate(parts)[: len(indices)]

    # M-step ----------------------------------------------------------------------------------------------------------

    def m_step(self, number: int, state: EMState, course: Course | None = None) -> tuple[EMState, float, float]:
        """Trains on the reconstructions of round number - 1; returns the state, the mean loss and the seconds."""
        m, began, course = self.config.m_step, time.monotonic(), course or Course()
        count, read = training_rows(self.problem, self.store, number)
        updates = Updates(
            label=f"M-step {number}",
            number=number,
            first_step=(number - 1) * m.steps,
            steps=m.steps,
            dispatch=self.engine.dispatch,
            batch_size=m.batch_size,
            every=self.config.checkpoint.every_steps,
            m_step=self.engine.m_step,
            read=read,
            attach=operator_rows(self.problem, number, course.done),
            batches=index_stream(self.config.seed, number, count, m.batch_size, course.done),
            save=lambda state, course: self._save_rolling(number, state, course),
            stop=lambda: self.stop_signal,
            note=lambda done, losses: self._note(number, done, losses),
        )
        key = stream_key(self.config.seed, "m_step", number)
        self.clock.lap()
        state, course = run_updates(updates, self.parallel, key, state, course)
        self.compiled += self.clock.lap()
        return state, course.mean, time.monotonic() - began

    def _note(self, number: int, done: int, losses: np.ndarray) -> None:
        if self.lead:
            self.estimate.updates(number, done, len(losses))
            if self.writers is not None:
                self.writers.losses((number - 1) * self.config.m_step.steps + done, float(losses.mean()))

    def _save_rolling(self, number: int, state: EMState, course: Course) -> None:
        path = self.workdir.latest / f"round_{number:05d}_update_{course.done:09d}"
        record = {"round": number, "done": course.done, "loss_sum": course.total, "loss_count": course.counted}
        checkpoints.save(path, state._asdict(), record)
        for older in checkpoints.written(self.workdir.latest)[:-2]:
            checkpoints.remove(older)

    def fresh_state(self) -> EMState:
        """The state before the first update."""
        params = self.warm_params
        if params is None:
            params = self.engine.model.denoiser.init(stream_key(self.config.seed, "init"))
        return em.make_state(jax.tree.map(jnp.asarray, params), self.setup.optimizer)

    def carry(self, state: EMState, number: int) -> EMState:
        """What a round takes over from the one before it."""
        kind = self.config.m_step.carry
        if kind == "nothing":
            params = self.engine.model.denoiser.init(stream_key(self.config.seed, "init", number))
            return em.make_state(params, self.setup.optimizer)._replace(round=state.round)
        if kind == "params":
            return em.make_state(jax.tree.map(jnp.asarray, state.params), self.setup.optimizer)._replace(
                round=state.round
            )
        return state

    # The rounds ------------------------------------------------------------------------------------------------------

    def restore(self) -> tuple[int, EMState]:
        """The last finished round and its state; round 0 and a fresh state where there is none."""
        like = jax.eval_shape(self.fresh_state)._asdict()
        path = checkpoints.latest(self.workdir.rounds, self.say)
        if path is None:
            return 0, self.fresh_state()
        return checkpoints.metadata(path)["round"], EMState(**checkpoints.load(path, like))

    def restore_rolling(self, number: int) -> tuple[EMState, Course] | None:
        """The rolling checkpoint of an interrupted M-step of this round."""
        path = checkpoints.latest(self.workdir.latest, self.say)
        if path is None or checkpoints.metadata(path)["round"] != number:
            return None
        record, like = checkpoints.metadata(path), jax.eval_shape(self.fresh_state)._asdict()
        self.say(f"continuing round {number} from update {record['done']} of {self.config.m_step.steps}")
        course = Course(record["done"], record["loss_sum"], record["loss_count"])
        return EMState(**checkpoints.load(path, like)), course

    def rounds(self) -> None:
        """Runs what is left of the rounds."""
        last, state = self.restore()
        if last == 0:
            self.finish_round(0, {}, self.start, self.start_step)
        else:
            self.say(f"continuing after round {last} of {self.config.rounds}")
            self.finish_round(last, {}, state.ema_params, self.engine.e_step_of(last))
            # What an earlier process was killed before it could drop.
            self._drop_rolling(last)
            self._drop_old(last)
            self._drop_draws(last)
        for number in range(last + 1, self.config.rounds + 1):
            if agree(np.array(stopping.of_run(self.workdir.records(), self.config).end)):
                break
            rolling = self.restore_rolling(number)
            begun, course = rolling or (self.carry(state, number), Course())
            state, loss, seconds = self.m_step(number, begun, course)
            state = state._replace(round=jnp.asarray(number, jnp.int32))
            record = {"step": number * self.config.m_step.steps, "loss": loss, "m_step_seconds": seconds}
            checkpoints.save(self.workdir.round_checkpoint(number), state._asdict(), {"round": number, **record})
            self._drop_rolling(number)
            self.finish_round(number, record, state.ema_params, self.engine.e_step_of(number))
            # Only now is the round known to be good: were its draws not finite, the run would go back to the one before.
            self._drop_old(number)
            last = number
        self._finish(last, state.ema_params)

    def _finish(self, number: int, params: Any) -> None:
        """After the last round: what the stopping rule picked, and the page."""
        found = stopping.stop_record(self.workdir.records(), self.config)
        if self.lead and found is not None and found not in self.workdir.records():
            self.workdir.log(found)
            self.say(f"stop: {found['reason']}")
        if number and not (self.workdir.samples / "spread.png").exists():
            self._spread(number, params, self.engine.e_step_of(number))
        if self.lead:
            report.write(self.workdir)

    def _spread(self, number: int, params: Any, step: Callable[..., Any]) -> None:
        """The picture of several draws an observation, by one process alone; a run does not end for want of it."""
        if process_count() == 1:
            path = self.workdir.samples / "spread.png"
            with contextlib.suppress(UserError):  # draws that are not finite are what the E-step tells
                evaluate.spread_picture(self.problem, step, self.parallel, params, path, f"round {number}")

    def finish_round(self, number: int, record: dict[str, Any], params: Any, step: Callable[..., Any]) -> None:
        """The E-step of a round, its metrics and its picture; only what an interrupted run left undone."""
        path = self.workdir.samples / f"round_{number:05d}.png"
        known = [r for r in self.workdir.records() if r.get("round") == number and r.get("kind") == "round"]
        complete = self.store.holds(number) and self.store.round(number).is_complete()
        if agree(np.asarray(bool(complete and known and path.exists()))):
            return
        if number and not record:
            saved = checkpoints.metadata(self.workdir.round_checkpoint(number))
            record = {name: saved[name] for name in ("step", "loss", "m_step_seconds")}
        seconds = self.e_step(number, params, step)
        held = self.held_out(step, params) if self.held_out else {}
        if self.lead:
            draws = self.store.round(number).open().rows
            every = self.config.eval.every
            due = number % every == 0 or number == self.config.rounds
            measured = self.measure(number, draws) if due else {}
            evaluate.picture(self.problem, draws, path, f"round {number}" if number else "start")
            if number and due:
                self._spread(number, params, step)
            entry = {
                "kind": "round",
                "round": number,
                **(record or {"step": 0}),
                "e_step_seconds": seconds,
                "redrawn": self.redrawn,
                "compile_seconds": self.compiled,
                **measured,
                **held,
            }
            self.compiled = 0.0
            self.workdir.log(entry)
            self.say(round_line(number, entry))
            self.estimate.round(number, entry)
            if self.writers is not None:
                self.writers.round(entry, path)
            report.write(self.workdir)
            self._drop_draws(number)
        barrier("round finished")

    def _drop_draws(self, number: int) -> None:
        if self.lead:
            self.store.drop_older(number, [stopping.of_run(self.workdir.records(), self.config).picked])

    def _drop_rolling(self, number: int) -> None:
        for path in checkpoints.written(self.workdir.latest):
            if int(path.name.split("_")[1]) <= number:
                checkpoints.remove(path)
        checkpoints.sweep(self.workdir.latest)

    def _drop_old(self, number: int) -> None:
        keep = self.config.checkpoint.keep_rounds
        if keep:
            best = stopping.of_run(self.workdir.records(), self.config).picked
            for old in range(1, number - keep + 1):
                if old != best and self.workdir.round_checkpoint(old).exists():
                    checkpoints.remove(self.workdir.round_checkpoint(old))

    def _check_signal(self) -> None:
        if stop := most(self.stop_signal):
            raise Preempted(signal.Signals(stop).name)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Notes SIGTERM; the loop ends at its next safe point."""
        del frame
        self.stop_signal = number
