"""The rounds of a run, each resumable where it was interrupted.

    restore
    for each round:  run_m_step -> save -> run_e_step -> record_round -> drop what is old

Round 0 has no M-step: the start draws. Keys are derived from (seed, stream, round, example), shards and checkpoints are
written whole or not at all, so a run that was killed anywhere goes on by the same command and, on a CPU, ends with the same bits.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax import em
from diffem_jax.parallel import agree, barrier, process_index
from diffem_jax.run import stopping
from diffem_jax.run.context import Record, Run, decision, drawing_of, is_finished
from diffem_jax.run.e_step import run_e_step
from diffem_jax.run.m_step import ROLLING, Training, round_batches, train
from diffem_jax.run.record import end, record_round
from diffem_jax.storage import checkpoints
from diffem_jax.types import EMState, stream_key


def run_rounds(run: Run) -> None:
    """Runs what is left of the rounds, and ends with the page of the run."""
    last, state = restore(run)
    finish_round(run, last, state)
    for number in range(last + 1, run.problem.setup.config.rounds + 1):
        if agree(np.array(decision(run).end)):
            break
        state, record = run_m_step(run, number, state)
        checkpoints.save(run.workdir.round_checkpoint(number), state._asdict(), {"round": number, **record})
        finish_round(run, number, state)
        last = number
    end(run, last, state)


def finish_round(run: Run, number: int, state: EMState) -> None:
    """The E-step of a round, its record and its pictures: only what an interrupted run left undone."""
    if not is_finished(run, number):
        drawing = drawing_of(run, number, state)
        drawing = drawing._replace(step=run.profile.watch(drawing.step)) if number else drawing
        record = run_e_step(run.problem, run.store, drawing, number, run.stop, run.say)
        if run.problem.setup.config.stop.rule == stopping.HELD_OUT:
            record |= stopping.score(stopping.predict(run.problem, drawing, *stopping.SCORED, run.stop.check))
        record_round(run, number, record, state)
        barrier("round finished")
    # Only now is the round known to be good: were its draws not finite, the run would go back to the one before.
    drop_old(run, number)


def restore(run: Run) -> tuple[int, EMState]:
    """The last finished M-step's round and its state; round 0 and a fresh state where there is none."""
    if (path := checkpoints.latest(run.workdir.rounds, run.say)) is None:
        return 0, fresh_state(run)
    number = checkpoints.metadata(path)["round"]
    run.say(f"continuing after round {number} of {run.problem.setup.config.rounds}")
    return number, EMState(**checkpoints.load(path, jax.eval_shape(lambda: fresh_state(run))._asdict()))


def fresh_state(run: Run, *places: int) -> EMState:
    """The state before the first update."""
    setup = run.problem.setup
    params = run.params
    if params is None or places:
        # Compiled as a whole: without, every operation of the network is compiled and run by itself, a minute on a GPU.
        params = jax.jit(run.engine.model.denoiser.init)(stream_key(setup.config.seed, "init", *places))
    return em.make_state(jax.tree.map(jnp.asarray, params), setup.optimizer)


def carry_over(run: Run, state: EMState, number: int) -> EMState:
    """What round ``number`` takes over from the one before it, by config.m_step.carry."""
    setup = run.problem.setup
    kind = setup.config.m_step.carry
    if kind == "all" or number == 1:
        return state
    if kind == "nothing":
        return fresh_state(run, number)._replace(round=state.round)
    params = state.ema_params if kind == "ema" else state.params
    return em.make_state(jax.tree.map(jnp.array, params), setup.optimizer)._replace(round=state.round)


def run_m_step(run: Run, number: int, state: EMState) -> tuple[EMState, Record]:
    """Trains on the reconstructions of round ``number`` - 1."""
    config, began = run.problem.setup.config, time.monotonic()
    m, first_step = config.m_step, (number - 1) * config.m_step.steps

    def note(done: int, losses: np.ndarray) -> None:
        run.profile.note("updates", len(losses))
        run.writers.losses(first_step + done, float(losses.mean()))

    training = Training(
        label=f"M-step {number}", number=number, first_step=first_step, steps=m.steps, batch_size=m.batch_size,
        dispatch=run.engine.dispatch, every=config.checkpoint.every_steps, m_step=run.engine.m_step,
        batches=round_batches(run.problem, run.engine.model, run.store, number), folder=run.workdir.latest,
        record={"round": number}, note=note,
    )  # fmt: skip
    key = stream_key(config.seed, "m_step", number)
    state, loss = train(training, run.engine.parallel, key, lambda: carry_over(run, state, number), run.stop, run.say)
    state = state._replace(round=jnp.asarray(number, jnp.int32))
    return state, {"step": number * m.steps, "loss": loss, "m_step_seconds": time.monotonic() - began}


def drop_old(run: Run, number: int) -> None:
    """Removes rolling checkpoints, reconstructions and rounds that no later command needs."""
    for path in checkpoints.written(run.workdir.latest, ROLLING):
        if int(path.name.split("_")[1]) <= number:
            checkpoints.remove(path)
    checkpoints.sweep(run.workdir.latest)
    picked = decision(run).picked
    if process_index() == 0:
        run.store.drop_older(number, [picked])
    keep = run.problem.setup.config.checkpoint.keep_rounds
    for old in range(1, number - keep + 1) if keep else ():
        if old != picked and run.workdir.round_checkpoint(old).exists():
            checkpoints.remove(run.workdir.round_checkpoint(old))
