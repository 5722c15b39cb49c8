"""The prior p(x): an unconditional denoiser trained on the last reconstructions, as published."""

import time
from typing import Any

import jax

from diffem_jax import em
from diffem_jax.build.engine import make_mapped_m_step, updates_per_dispatch
from diffem_jax.build.methods import prior_model
from diffem_jax.build.parts import make_optimizer
from diffem_jax.config import flatten
from diffem_jax.parallel import barrier
from diffem_jax.run.context import Run
from diffem_jax.run.m_step import ROLLING, Training, row_batches, train
from diffem_jax.run.stopping import picked_round
from diffem_jax.storage import checkpoints
from diffem_jax.types import EMState, stream_key

STREAM = 2**31  # in the place of a round's number: the order of the reconstructions is none of a round's


def train_prior(run: Run) -> None:
    """Trains the unconditional denoiser on the run's last reconstructions, from its own rolling checkpoint if there is one.

    Nothing is done where ``prior/final`` was trained on that round by the same settings. Raises what ``train`` does.

    Source: Hosseintabar et al. 2025, arXiv 2510.12691, section 3 (the last step of the algorithm).
    """
    setup, workdir, parallel = run.problem.setup, run.workdir, run.engine.parallel
    config, picked = setup.config, picked_round(run.workdir.records())
    if not config.prior.steps:
        return
    number = run.store.rounds()[-1] if picked is None else picked
    # The fields that the prior depends on besides the draws; others of the run cannot change or do not matter.
    loop = ("updates_per_dispatch", "condition", "carry", "accumulate")
    fields = {f"m_step.{k}": v for k, v in flatten(config.m_step).items() if not k.startswith(loop) and k != "steps"}
    settings = {"prior.steps": config.prior.steps, "prior.base": config.prior.base, **fields}
    wanted: dict[str, Any] = {"round": number, "settings": settings}
    if (final := checkpoints.latest(workdir.prior, run.say, "final")) is not None:
        found = checkpoints.metadata(final)
        if all(found.get(name) == value for name, value in wanted.items()):
            return
        run.say(f"prior: {final} is of round {found.get('round')} or of other settings; training it again")
    barrier("prior")
    reader, began = run.store.round(number).open(), time.monotonic()
    model, optimizer = prior_model(setup, run.start), make_optimizer(config.m_step, config.prior.steps)
    m_step, size = make_mapped_m_step(setup, parallel, model.loss, optimizer), config.m_step.batch_size
    training = Training(
        label="prior", number=number, first_step=number * config.m_step.steps, steps=config.prior.steps, batch_size=size,
        dispatch=updates_per_dispatch(config, config.prior.steps), every=config.checkpoint.every_steps, m_step=m_step,
        batches=row_batches(config.seed, STREAM, len(reader), size, reader.__getitem__), folder=workdir.prior, record=wanted,
    )  # fmt: skip

    def begin() -> EMState:
        return em.make_state(jax.jit(model.denoiser.init)(stream_key(config.seed, "prior_init")), optimizer)

    state, loss = train(training, parallel, stream_key(config.seed, "prior"), begin, run.stop, run.say)
    seconds = time.monotonic() - began
    checkpoints.save(workdir.prior / "final", {"ema_params": state.ema_params}, wanted | {"seconds": seconds})
    for rolling in checkpoints.written(workdir.prior, ROLLING):
        checkpoints.remove(rolling)
    run.say(f"prior: trained in {seconds:.1f} s, loss {loss:.4g}")
