"""Muon: equal steps in all directions of a matrix, whatever its axes; Adam for what is no matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.build.muon import ADAM_SHARE, SCALE, muon
from diffem_jax.build.parts import make_optimizer
from diffem_jax.config import default
from diffem_jax.networks.mlp import MLP
from diffem_jax.networks.unet import UNet

RATE = 0.1
KERNELS = {
    "dense/kernel": ((6, 4), (6, 4)),
    "conv/kernel": ((3, 3, 2, 8), (18, 8)),
    "attention/query/kernel": ((8, 2, 3), (8, 6)),
    "attention/out/kernel": ((2, 3, 8), (6, 8)),
}
"""Name -> its shape, and that of the matrix it stands for."""


def first_update(params):
    optimizer = muon(lambda count: RATE)
    gradient = jax.tree.map(lambda a: jax.random.normal(jax.random.key(a.size), a.shape), params)
    with jax.numpy_dtype_promotion("standard"):  # optax promotes integers by itself
        update, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    return gradient, update


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_moves_equally_far_in_all_directions(name):
    """-U V^T of the gradient, scaled; the Newton-Schulz iterations leave singular values between 0.6 and 1.3."""
    shape, matrix = KERNELS[name]
    *modules, leaf = name.split("/")
    params = {leaf: jnp.zeros(shape)}
    for module in reversed(modules):
        params = {module: params}
    gradient, update = (np.asarray(jax.tree.leaves(tree)[0]).reshape(matrix) for tree in first_update(params))
    u, _, v = np.linalg.svd(gradient, full_matrices=False)
    along = -np.diag(u.T @ update @ v.T) / (RATE * SCALE * max(matrix) ** 0.5)
    assert along.min() > 0.6 and along.max() < 1.3
    np.testing.assert_allclose(np.linalg.svd(update)[1], np.sort(np.abs(np.diag(u.T @ update @ v.T)))[::-1], rtol=1e-3)


def test_what_is_no_matrix_takes_adam_at_a_fifth_of_the_rate():
    params = {"bias": jnp.zeros(5), "attention": {"bias": jnp.zeros((2, 3))}, "scale": jnp.ones(())}
    gradient, update = first_update(params)
    for g, u in zip(jax.tree.leaves(gradient), jax.tree.leaves(update), strict=True):
        np.testing.assert_allclose(u, -ADAM_SHARE * RATE * np.sign(g), rtol=1e-4)


@pytest.mark.parametrize("network", [MLP(features=(8,)), UNet(channels=(4,), blocks=1, heads=((0, 2),), embedding=8)])
def test_a_config_chooses_it_for_every_network(network):
    x = jax.random.normal(jax.random.key(0), (4, 4, 4, 1))
    params = jax.jit(network.init)(jax.random.key(1), x, jnp.zeros(4))
    m_step = default().m_step
    m_step.optimizer, m_step.learning_rate = "muon", 3e-2
    optimizer = make_optimizer(m_step, 40)

    def loss(params):
        return jnp.mean((network.apply(params, x, jnp.zeros(4)) - x) ** 2)

    def update(carry, _):
        value, gradient = jax.value_and_grad(loss)(carry[0])
        change, state = optimizer.update(gradient, carry[1], carry[0])
        return (jax.tree.map(jnp.add, carry[0], change), state), value

    with jax.numpy_dtype_promotion("standard"):
        _, losses = jax.jit(lambda p: jax.lax.scan(update, (p, optimizer.init(p)), None, length=40))(params)
    assert losses[-1] < 0.5 * losses[0]
