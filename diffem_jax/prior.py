"""The prior p(x): an unconditional denoiser trained on the last reconstructions, as published."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffem_jax import checkpoints, em
from diffem_jax.build import Setup, draws_prior, make_loss, make_model, make_setup, prior_denoiser
from diffem_jax.config import flatten
from diffem_jax.data import ReconstructionStore, index_stream
from diffem_jax.denoisers import Denoiser
from diffem_jax.engine import make_m_step
from diffem_jax.guards import PRIOR
from diffem_jax.parallel import barrier, make_parallel
from diffem_jax.parts import make_optimizer, make_time_law
from diffem_jax.round_zero import load_start
from diffem_jax.stopping import picked_round
from diffem_jax.types import EMState, UserError, stream_key
from diffem_jax.updates import Course, Updates, largest_divisor
from diffem_jax.updates import run as run_updates
from diffem_jax.workdir import Workdir

Say = Callable[[str], None]
STREAM = 2**31
"""In the place of a round's number: the order of the reconstructions is none of a round's."""


def train_prior(setup: Setup, workdir: Workdir, say: Say, stop: Callable[[], int] = lambda: 0) -> None:
    """Trains the unconditional denoiser on the run's last reconstructions, from its own rolling checkpoint if there is one.

    Nothing is done where ``prior/final`` was trained on that round by the same settings; after more rounds, or under
    other settings, it is trained anew.

    Args:
        setup: the run's.
        workdir: the run's folder.
        say: takes lines for the person watching.
        stop: the signal that asks the process to end, or 0.

    Raises:
        NonFinite: a loss or a parameter.
        Preempted: ``stop`` gave a signal; the same call goes on from there.

    Source: Hosseintabar et al. 2025, arXiv 2510.12691, section 3 (the last step of the algorithm).
    """
    config = setup.config
    if not config.prior.steps:
        return
    # A law matched to the posterior's loss says nothing of the prior's.
    setup = setup._replace(time_law=make_time_law(config, setup.schedule))
    store = ReconstructionStore(workdir.reconstructions)
    picked = picked_round(workdir.records())
    number = store.rounds()[-1] if picked is None else picked
    wanted = {"round": number, "settings": _settings(config)}
    # A rolling one sorts after 'final': it is what an interrupted training, of a stale 'final' too, goes on from.
    path = checkpoints.latest(workdir.prior, say)
    found = checkpoints.metadata(path) if path is not None else {}
    current = all(found.get(name) == value for name, value in wanted.items())
    if current and "done" not in found:
        return
    if not current:
        if path is not None:
            say(f"prior: {path} is of round {found.get('round')} or of other settings; training it anew")
        for rolling in _rolling(workdir):
            checkpoints.remove(rolling)
    barrier("prior")
    reader = store.round(number).open()
    began = time.monotonic()
    parallel = make_parallel(config.parallel)
    denoiser = prior_denoiser(setup, load_start(workdir))
    optimizer = make_optimizer(config.m_step, config.prior.steps)
    state, course = em.make_state(denoiser.init(stream_key(config.seed, "prior_init")), optimizer), Course()
    if current and path is not None:
        course = Course(found["done"], found["loss_sum"], found["loss_count"])
        state = EMState(**checkpoints.load(path, jax.eval_shape(lambda: state)._asdict()))
        say(f"prior: continuing from update {course.done} of {config.prior.steps}")

    def save(state: EMState, course: Course) -> None:
        rolling = workdir.prior / f"round_{number:05d}_update_{course.done:09d}"
        record = {"done": course.done, "loss_sum": course.total, "loss_count": course.counted}
        checkpoints.save(rolling, state._asdict(), wanted | record)
        for older in _rolling(workdir)[:-2]:
            checkpoints.remove(older)

    updates = Updates(
        label=PRIOR,
        number=number,
        first_step=number * config.m_step.steps,
        steps=config.prior.steps,
        dispatch=largest_divisor(
            config.prior.steps, min(config.m_step.updates_per_dispatch, config.checkpoint.every_steps)
        ),
        batch_size=config.m_step.batch_size,
        every=config.checkpoint.every_steps,
        m_step=make_m_step(setup, parallel, make_loss(setup, denoiser, None), optimizer),
        read=reader.rows,
        attach=lambda drawn, mine: drawn,
        batches=index_stream(config.seed, STREAM, len(reader), config.m_step.batch_size, course.done),
        save=save,
        stop=stop,
    )
    host, course = run_updates(updates, parallel, stream_key(config.seed, "prior"), state, course)
    seconds = time.monotonic() - began
    checkpoints.save(workdir.prior / "final", {"ema_params": host.ema_params}, wanted | {"seconds": seconds})
    for rolling in _rolling(workdir):
        checkpoints.remove(rolling)
    say(f"prior: trained in {seconds:.1f} s, loss {course.mean:.4g}")


def _rolling(workdir: Workdir) -> list[Path]:
    return [p for p in checkpoints.written(workdir.prior) if p.name != "final"]


def _settings(config: ConfigDict) -> dict[str, Any]:
    """The fields that the prior depends on besides the reconstructions; others of the run cannot change or do not matter."""
    loop = ("updates_per_dispatch", "condition", "carry", "accumulate")
    m_step = {f"m_step.{k}": v for k, v in flatten(config.m_step).items() if not k.startswith(loop) and k != "steps"}
    return {"prior.steps": config.prior.steps, "prior.base": config.prior.base, **m_step}


def load_prior(workdir: Workdir, config: ConfigDict, number: int) -> tuple[Setup, Denoiser, Any]:
    """The prior of a run: the one of its own, or that of a round's network where this one draws without an observation too.

    Raises:
        UserError: the run has neither.
    """
    setup = make_setup(config, tuple(int(n) for n in checkpoints.metadata(workdir.start / "fit")["shape"]))
    path = workdir.prior / "final"
    if path.exists():
        return setup, prior_denoiser(setup, load_start(workdir)), checkpoints.load(path)["ema_params"]
    if number and draws_prior(config):
        model = make_model(setup, load_start(workdir))
        return setup, model.denoiser, checkpoints.load(workdir.round_checkpoint(number))["ema_params"]
    raise UserError(
        f"{workdir.root}: this run has no prior; expected config.prior.steps > 0 or config.m_step.condition_dropout > 0 in "
        "training (run the training command again with --config.prior.steps=2000), or give --observations for posterior draws"
    )
