"""The state cut over the devices: the same numbers, a share of the memory, and checkpoints that know no device."""

import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from faults.command import ROOT, python

from diffem_jax.build.muon import muon
from diffem_jax.em import make_m_step, make_state
from diffem_jax.parallel import make_parallel, on_host, snapshot

UPDATES, BATCH, WIDTH, ADAM = 3, 16, 32, optax.adam(1e-2)


def loss(params, key, x):
    noisy = x + 0.1 * jax.random.normal(key, x.shape)
    return jnp.mean((jnp.tanh(noisy @ params["in"] + params["bias"]) @ params["out"] - x) ** 2)


def train(way, calls=2, inner=ADAM):
    """The state after some calls, on the devices, and the losses."""
    parallel = make_parallel(way)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), inner)
    step = parallel.map_m_step(make_m_step(loss, optimizer, ema_decay=0.9, mean=parallel.mean))
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"in": jax.random.normal(keys[0], (6, WIDTH)) / 2, "out": jax.random.normal(keys[1], (WIDTH, 6)) / 6}
    params["bias"] = jnp.zeros(WIDTH)
    state = parallel.place(make_state(params, optimizer))
    slots = parallel.shard(np.tile(np.arange(BATCH, dtype=np.int32), (UPDATES, 1)), 1)
    losses = []
    for number in range(calls):
        x = np.random.default_rng(number).normal(size=(UPDATES, BATCH, 6)).astype(np.float32)
        with jax.numpy_dtype_promotion("standard"):  # optax promotes integers by itself
            state, info = step(parallel.replicate(jax.random.key(1)), state, parallel.shard(x, 1), slots)
        losses.append(np.asarray(info["loss"]))
    return state, np.concatenate(losses)


def share(state):
    leaves = jax.tree.leaves(state)
    return sum(leaf.addressable_data(0).nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves)


def compare(devices):
    """Raises where fsdp differs from jit by more than round-off, or a device holds more than its share and the scalars."""
    assert jax.device_count() == devices
    (cut, cut_losses), (whole, losses) = train("fsdp"), train("jit")
    np.testing.assert_allclose(cut_losses, losses, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(snapshot(cut)), jax.tree.leaves(snapshot(whole)), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert share(whole) == 1.0 and 1 / devices <= share(cut) < 1.03 / devices
    return share(cut)


def test_a_cut_state_gives_the_same_numbers():
    assert compare(2) < 0.52


def test_muon_gives_the_same_numbers_on_all_layouts():
    """Its matrices are cut over the devices under fsdp, and its products are of whole ones."""
    (whole, expected), *others = (train(way, inner=muon(lambda count: 1e-2)) for way in ("jit", "pmap", "fsdp"))
    for state, losses in others:
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
        for a, b in zip(jax.tree.leaves(snapshot(state.params)), jax.tree.leaves(snapshot(whole.params)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert share(others[1][0]) < 0.52


def test_on_eight_devices_each_holds_an_eighth():
    code = "import jax; jax.config.update('jax_num_cpu_devices', 8)\n"
    code += "from tests import test_parallel; print('share', test_parallel.compare(8))"
    assert "share 0.12" in python(code, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")


def test_a_snapshot_outlives_its_state():
    state, _ = train("fsdp")
    kept, before = snapshot(state), [np.array(on_host(leaf)) for leaf in jax.tree.leaves(state)]
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    for a, b in zip(jax.tree.leaves(kept), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_devices_that_factorise_at_once_do_not_wait_for_each_other_for_ever():
    code = """
import jax, jax.numpy as jnp, numpy as np
import diffem_jax.parallel

def step(x):
    def turn(i, x):
        gram = jnp.einsum("bij,bkj->bik", x, x) / 99 + jnp.eye(24)
        return jnp.tanh(jnp.einsum("bij,bjk->bik", jnp.linalg.cholesky(gram), x))
    return jax.lax.fori_loop(0, 10, turn, x)

x = np.ones((2, 64, 24, 99), np.float32)
results = [jax.pmap(step)(x) for _ in range(8)]
assert all(np.isfinite(np.asarray(r)).all() for r in results)
"""
    # Without the tests' own flag, which keeps kernels to one thread each, and as on two cores.
    with mock.patch.dict(os.environ):
        for name in ("XLA_FLAGS", "PJRT_NPROC", "NPROC"):
            os.environ.pop(name, None)
        python(code, JAX_NUM_CPU_DEVICES="2")
