"""Every corruption of the registry trains through the command, by its default denoiser."""

import json

import numpy as np
import pytest
from faults.command import command

from diffem_jax.corruptions import CORRUPTIONS
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir

TINY = {
    "data.num_examples": 32,
    "network.features": "(8,)",
    "network.embedding": 8,
    "rounds": 2,
    "m_step.steps": 4,
    "m_step.batch_size": 16,
    "m_step.updates_per_dispatch": 2,
    "e_step.batch_size": 32,
    "e_step.steps": 3,
    "start.iterations": 2,
    "start.rank": 2,
    "eval.metrics": "('psnr',)",
    "eval.images": 0,
}
NONLINEAR = [name for name in CORRUPTIONS if not CORRUPTIONS[name](shape=(8, 8, 1)).is_linear]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_two_rounds_by_flags(name, tmp_path):
    fields = TINY | {"corruption.name": name} | ({"denoiser.preconditioning": "edm"} if name in NONLINEAR else {})
    ended = command(
        "--config=digits", *(f"--config.{key}={value}" for key, value in fields.items()), f"--workdir={tmp_path}"
    )
    assert ended.code == 0, ended.out + ended.err
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses and np.isfinite(losses).all()
    store = ReconstructionStore(Workdir(tmp_path).reconstructions)
    assert np.isfinite(store.round(2).open().rows(np.arange(32))).all()
