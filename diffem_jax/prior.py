"""The prior p(x): an unconditional denoiser trained on the last reconstructions, as published."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffem_jax import checkpoints, em
from diffem_jax.build import UNCONDITIONAL, Setup, edm, make_loss, make_model, make_optimizer, make_setup
from diffem_jax.data import ReconstructionStore, index_stream
from diffem_jax.denoisers import Denoiser
from diffem_jax.parallel import make_parallel
from diffem_jax.progress import Progress
from diffem_jax.round_zero import load_start
from diffem_jax.stopping import picked_round
from diffem_jax.types import UserError, stream_key
from diffem_jax.workdir import Workdir

Say = Callable[[str], None]


def train_prior(setup: Setup, workdir: Workdir, say: Say) -> None:
    """Trains the unconditional denoiser on the run's last reconstructions; done at most once a run.

    Source: Hosseintabar et al. 2025, arXiv 2510.12691, section 3 (the last step of the algorithm).
    """
    config = setup.config
    path = workdir.prior / "final"
    if not config.prior.steps or (path.exists() and checkpoints.fault(path) is None):
        return
    store = ReconstructionStore(workdir.reconstructions)
    picked = picked_round(workdir.records())
    reader = store.round(store.rounds()[-1] if picked is None else picked).open()
    began = time.monotonic()
    parallel = make_parallel(config.parallel)
    denoiser = edm(setup, None)
    optimizer = make_optimizer(config.m_step, config.prior.steps)
    m_step = em.make_m_step(
        make_loss(setup, denoiser, None), optimizer, ema_decay=config.m_step.ema_decay, mean=parallel.mean
    )
    dispatch = max(d for d in range(1, config.m_step.updates_per_dispatch + 1) if config.prior.steps % d == 0)
    mapped = parallel.map_m_step(m_step)
    state = parallel.replicate(em.make_state(denoiser.init(stream_key(config.seed, "prior_init")), optimizer))
    key = parallel.replicate(stream_key(config.seed, "prior"))
    slots = parallel.shard(np.tile(np.arange(config.m_step.batch_size, dtype=np.int32), (dispatch, 1)), 1)
    batches = index_stream(config.seed, 2**31, len(reader), config.m_step.batch_size)
    with Progress("prior", config.prior.steps, "updates") as progress:
        for _ in range(config.prior.steps // dispatch):
            chunk = np.stack([next(batches) for _ in range(dispatch)])
            x = reader.rows(chunk.reshape(-1)).reshape(*chunk.shape, *setup.shape)
            state, info = mapped(key, state, parallel.shard(x, 1), slots)
            progress.advance(dispatch, f"loss {float(np.mean(np.asarray(info['loss']))):.4f}")
    host = jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), state)
    seconds = time.monotonic() - began
    checkpoints.save(path, {"ema_params": host.ema_params}, {"seconds": seconds})
    say(f"prior: trained in {seconds:.1f} s")


def load_prior(workdir: Workdir, config: ConfigDict) -> tuple[Setup, Denoiser, Any]:
    """The prior of a run: the unconditional network, or the conditional one where it was trained with condition dropout.

    Raises:
        UserError: the run has neither.
    """
    setup = make_setup(config, tuple(int(n) for n in checkpoints.metadata(workdir.start / "fit")["shape"]))
    path = workdir.prior / "final"
    if path.exists():
        return setup, edm(setup, None), checkpoints.load(path)["ema_params"]
    if config.method in (*UNCONDITIONAL, "ambient") or config.m_step.condition_dropout > 0:
        model = make_model(setup, load_start(workdir))
        return setup, model.denoiser, checkpoints.load(workdir.last_round())["ema_params"]
    raise UserError(
        f"{workdir.root}: this run has no prior; expected config.prior.steps > 0 or config.m_step.condition_dropout > 0 in "
        "training (run the training command again with --config.prior.steps=2000), or give --observations for posterior draws"
    )
