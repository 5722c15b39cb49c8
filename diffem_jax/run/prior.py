"""The prior p(x): an unconditional denoiser trained on the last reconstructions, as published."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from diffem_jax import em
from diffem_jax.build.engine import make_mapped_m_step, updates_per_dispatch
from diffem_jax.build.methods import Prior, Setup, make_model, make_setup, prior_model
from diffem_jax.build.parts import make_optimizer
from diffem_jax.config import flatten
from diffem_jax.errors import UserError
from diffem_jax.parallel import barrier, make_parallel
from diffem_jax.run.batches import row_batches
from diffem_jax.run.m_step import Training, rolling_checkpoints, train
from diffem_jax.run.start import load_start
from diffem_jax.run.stopping import picked_round
from diffem_jax.run.termination import StopRequest
from diffem_jax.storage import checkpoints
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import EMState, stream_key

Say = Callable[[str], None]
STREAM = 2**31
"""In the place of a round's number: the order of the reconstructions is none of a round's."""


def train_prior(setup: Setup, workdir: Workdir, stop: StopRequest, say: Say) -> None:
    """Trains the unconditional denoiser on the run's last reconstructions, from its own rolling checkpoint if there is one.

    Nothing is done where ``prior/final`` was trained on that round by the same settings; after more rounds, or under
    other settings, it is trained again.

    Args:
        setup: the run's.
        workdir: the run's folder.
        stop: asked after every call of the M-step.
        say: takes lines for the person watching.

    Raises:
        NonFinite: a loss or a parameter.
        Preempted: the run was asked to end; the same call goes on from there.

    Source: Hosseintabar et al. 2025, arXiv 2510.12691, section 3 (the last step of the algorithm).
    """
    config = setup.config
    if not config.prior.steps:
        return
    store = ReconstructionStore(workdir.reconstructions)
    picked = picked_round(workdir.records())
    number = store.rounds()[-1] if picked is None else picked
    wanted = {"round": number, "settings": _settings(config)}
    final = checkpoints.latest(workdir.prior, say, "final")
    if final is not None:
        found = checkpoints.metadata(final)
        if all(found.get(name) == value for name, value in wanted.items()):
            return
        say(f"prior: {final} is of round {found.get('round')} or of other settings; training it again")
    barrier("prior")
    reader, began = store.round(number).open(), time.monotonic()
    parallel = make_parallel(config.parallel)
    model = prior_model(setup, load_start(workdir))
    optimizer = make_optimizer(config.m_step, config.prior.steps)
    training = Training(
        label="prior",
        number=number,
        first_step=number * config.m_step.steps,
        steps=config.prior.steps,
        dispatch=updates_per_dispatch(config, config.prior.steps),
        batch_size=config.m_step.batch_size,
        every=config.checkpoint.every_steps,
        m_step=make_mapped_m_step(setup, parallel, model.loss, optimizer),
        batches=row_batches(config.seed, STREAM, len(reader), config.m_step.batch_size, reader.rows),
        folder=workdir.prior,
        record=wanted,
    )

    def begin() -> EMState:
        return em.make_state(jax.jit(model.denoiser.init)(stream_key(config.seed, "prior_init")), optimizer)

    state, loss = train(training, parallel, stream_key(config.seed, "prior"), begin, stop, say)
    seconds = time.monotonic() - began
    checkpoints.save(workdir.prior / "final", {"ema_params": state.ema_params}, wanted | {"seconds": seconds})
    for rolling in rolling_checkpoints(workdir.prior):
        checkpoints.remove(rolling)
    say(f"prior: trained in {seconds:.1f} s, loss {loss:.4g}")


def _settings(config: ConfigDict) -> dict[str, Any]:
    """The fields that the prior depends on besides the reconstructions; others of the run cannot change or do not matter."""
    loop = ("updates_per_dispatch", "condition", "carry", "accumulate")
    m_step = {f"m_step.{k}": v for k, v in flatten(config.m_step).items() if not k.startswith(loop) and k != "steps"}
    return {"prior.steps": config.prior.steps, "prior.base": config.prior.base, **m_step}


def load_prior(workdir: Workdir, config: ConfigDict, number: int) -> tuple[Setup, Prior, Any]:
    """The prior of a run and its parameters: its own, or a round's network where this one draws without an observation too.

    Raises:
        UserError: the run has neither.
    """
    setup = make_setup(config, tuple(int(n) for n in checkpoints.metadata(workdir.start / "fit")["shape"]))
    start, path = load_start(workdir), workdir.prior / "final"
    own = path.exists()
    prior = (prior_model if own else make_model)(setup, start).prior
    if prior is not None and (own or number):
        return setup, prior, checkpoints.load(path if own else workdir.round_checkpoint(number))["ema_params"]
    raise UserError(
        f"{workdir.root}: this run has no prior; expected config.prior.steps > 0 or config.m_step.condition_dropout > 0 in "
        "training (run the training command again with --config.prior.steps=2000), or give --observations for posterior draws"
    )
