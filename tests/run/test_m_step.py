"""One training: rows read ahead, checkpoints written behind, the same bits wherever it is interrupted; and traces of a run."""

import gzip
import itertools
import json
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffem_jax import em
from diffem_jax.build.muon import muon
from diffem_jax.errors import Preempted, UserError
from diffem_jax.parallel import make_parallel
from diffem_jax.run import m_step
from diffem_jax.run.context import Profile
from diffem_jax.run.termination import StopRequest
from diffem_jax.storage import checkpoints

PARALLEL, OPTIMIZER, BATCH, DISPATCH, STEPS = make_parallel("jit"), optax.sgd(0.1), 4, 2, 20


def noisy_loss(w, key, x):
    return jnp.sum((w + 0.1 * jax.random.normal(key, x.shape) - x) ** 2)


STEP = PARALLEL.map_m_step(em.make_m_step(noisy_loss, OPTIMIZER, ema_decay=0.9))


def batches(first, updates, own):
    for number in itertools.count(first // updates):
        yield np.random.default_rng(number).normal(size=(updates, BATCH, 3)).astype(np.float32)


def ignored(*said):
    pass


def train(folder, read=batches, stop=None, note=ignored, step=None, state=None, say=ignored, **sizes):
    sizes = {"first_step": 0, "steps": STEPS, "dispatch": DISPATCH, "batch_size": BATCH, "every": 4} | sizes
    said = {"label": "M-step 1", "number": 1, "record": {"round": 1}, "note": note}
    training = m_step.Training(m_step=step or STEP, batches=read, folder=folder, **sizes, **said)
    state = state or em.make_state(jnp.zeros(3), OPTIMIZER)
    with jax.numpy_dtype_promotion("standard"):
        return m_step.train(training, PARALLEL, jax.random.key(0), lambda: state, stop or StopRequest(), say)


def bits(trained):
    state, mean = trained
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)], mean


class StopAfter(StopRequest):
    """A signal that comes at the n-th time of asking."""

    def __init__(self, times):
        super().__init__()
        self.left = times

    def requested(self):
        self.left -= 1
        if self.left == 0:
            self._signal = 15
        return super().requested()


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_a_stopped_training_goes_on_with_the_same_bits(tmp_path, calls):
    whole = train(tmp_path / "whole")
    with pytest.raises(Preempted):
        train(tmp_path / "stopped", stop=StopAfter(calls))
    newest = checkpoints.latest(tmp_path / "stopped")
    assert newest is not None and checkpoints.metadata(newest)["done"] == calls * DISPATCH
    assert bits(train(tmp_path / "stopped")) == bits(whole)


def test_muon_goes_on_with_the_same_bits(tmp_path):
    """Its momentum comes back, and the kernels and biases that its two parts do not train stay out."""

    def loss(params, key, x):
        return jnp.sum((x @ params["kernel"] + params["bias"] + 0.1 * jax.random.normal(key, x.shape) - 2 * x) ** 2)

    optimizer = muon(lambda count: 0.1 / (1 + count))
    params = {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}
    step = PARALLEL.map_m_step(em.make_m_step(loss, optimizer, ema_decay=0.9))
    run = partial(train, step=step, state=em.make_state(params, optimizer))
    whole = run(tmp_path / "whole")
    with pytest.raises(Preempted):
        run(tmp_path / "stopped", stop=StopAfter(3))
    assert bits(run(tmp_path / "stopped")) == bits(whole)
    assert all(np.abs(np.asarray(whole[0].params[name] - params[name])).max() > 0.01 for name in params)


def test_a_failed_write_ends_the_training_at_its_next_look(tmp_path, monkeypatch):
    failed, seen = threading.Event(), []

    def full(path, tree, metadata):
        failed.set()
        raise UserError(f"{path}: the checkpoint could not be written")

    def note(done, losses):
        # From the first checkpoint on, a call takes as long as its failure.
        if done > 4:
            failed.wait(10)
        seen.append(done)

    monkeypatch.setattr(checkpoints, "write", full)
    with pytest.raises(UserError, match="update_000000004: the checkpoint could not be written"):
        train(tmp_path, note=note)
    assert max(seen) <= 8 < STEPS


def test_a_round_that_goes_on_with_other_dispatches_has_as_many_updates(tmp_path):
    state, said, noted = em.make_state(jnp.zeros(3), OPTIMIZER), [], []
    done = {"round": 1, "done": 10, "loss_sum": 0.0, "loss_count": 0}
    checkpoints.save(tmp_path / "round_00001_update_000000010", state._asdict(), done)
    read = m_step.row_batches(0, 1, 100, BATCH, lambda indices: np.ones((len(indices), 3), np.float32))
    options = {"note": lambda done, losses: noted.append((done, len(losses))), "say": said.append, "state": state}
    state, _ = train(tmp_path, read, steps=24, dispatch=8, every=10**6, **options)
    assert "from update 10 of 24" in said[0] and int(state.step) == 14
    assert noted[-1] == (24, 2) and sum(count for _, count in noted) == 14


@pytest.mark.parametrize("at", [0, 3])
def test_what_a_reader_raises_ends_the_training_there(tmp_path, at):
    def read(*arguments):
        yield from itertools.islice(batches(*arguments), at)
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        train(tmp_path, read=read, note=lambda done, losses: seen.append(done))
    assert max(seen, default=0) <= at * DISPATCH


def test_copies_that_nobody_asked_for_are_refused_after_the_first_call(tmp_path, monkeypatch):
    """The first call traces, and on a GPU the constants of its program are copied to the host."""
    copied = []

    def step(*arguments):
        try:
            jnp.sum(np.ones(3, np.float32))
            copied.append(True)
        except Exception as error:
            assert "Disallowed" in str(error)
            copied.append(False)
        return trained(*arguments)

    trained = STEP
    monkeypatch.setitem(globals(), "STEP", step)
    train(tmp_path)
    assert copied == [True] + [False] * (STEPS // DISPATCH - 1)


def traces(folder):
    return sorted(path.relative_to(folder).parts[0] for path in folder.rglob("*.xplane.pb"))


def test_some_updates_and_one_batch_are_traced(tmp_path):
    said = []
    profile, step = Profile(tmp_path, 5, said.append), jax.jit(lambda x: jnp.sin(x).sum())
    for number in range(4):
        with jax.profiler.StepTraceAnnotation("update", step_num=7 + number):
            step(jnp.ones(100)).block_until_ready()
        profile.note("updates", 3)
        assert len(said) == (number == 3) or number < 3
    draw = profile.watch(step)
    for _ in range(3):
        draw(jnp.ones(100))
    assert traces(tmp_path) == ["e_step", "updates"] and len(said) == 2 and str(tmp_path / "updates") in said[0]
    with gzip.open(next((tmp_path / "updates").rglob("perfetto_trace.json.gz"))) as file:
        events = json.load(file)["traceEvents"]
    assert {"8", "9"} <= {str(e["args"].get("step_num")) for e in events if e.get("name") == "update" and "args" in e}


def test_an_m_step_of_fewer_updates_ends_its_trace_before_the_e_step(tmp_path):
    profile = Profile(tmp_path, 1000)
    profile.note("updates", 3)
    profile.note("updates", 3)
    draw = profile.watch(lambda x: x)
    draw(jnp.ones(1))
    draw(jnp.ones(1))
    profile.note("updates", 3)
    assert traces(tmp_path) == ["e_step", "updates"]
