"""Noise of an E-step and parameters of an M-step under the devices that a process finds: the same whatever they are.

python -m tests.faults.layout OUT [host:port processes process]
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffem_jax import em, parallel

OPTIMIZERS = {"sgd": optax.sgd(0.05), "adam": optax.adam(1e-2)}
COUNT, UPDATES = 8, 3


def _noise(key, params, observation):
    return jax.random.normal(key, (3,))


def _loss(params, key, x):
    return jnp.sum((params * (x + jax.random.normal(key, x.shape)) - x) ** 2)


def results() -> dict[str, np.ndarray]:
    """Name -> array; this process's rows of the noise, and parameters after some updates."""
    out = {}
    share = COUNT // parallel.process_count()
    mine = slice(parallel.process_index() * share, (parallel.process_index() + 1) * share)
    indices = np.arange(100, 100 + COUNT, dtype=np.int32)[mine]
    slots = np.tile(np.arange(COUNT, dtype=np.int32), (UPDATES, 1))[:, mine]
    x = np.random.default_rng(0).normal(size=(UPDATES, COUNT, 2)).astype(np.float32)[:, mine] + 1
    for way in ("jit", "pmap"):
        p = parallel.make_parallel(way)
        key = p.replicate(jax.random.key(0))
        step = p.map_e_step(em.map_examples(_noise))
        out[f"noise {way}"] = p.gather(step(key, p.replicate(jnp.zeros(())), p.shard(indices), p.shard(indices)))
        for name, optimizer in OPTIMIZERS.items():
            m_step = p.map_m_step(em.make_m_step(_loss, optimizer, ema_decay=0.9, mean=p.mean))
            state = p.replicate(em.make_state(jnp.array([0.5, -0.2]), optimizer))
            state, _ = jax.block_until_ready(m_step(key, state, p.shard(x, 1), p.shard(slots, 1)))
            out[f"{name} {way}"] = np.asarray(state.params.addressable_data(0))
    return out


if __name__ == "__main__":
    if len(sys.argv) > 2:
        parallel.initialize(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    np.savez(sys.argv[1], **results())
