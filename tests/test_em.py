"""The two pure functions of EM, and that devices, batches and dispatches change nothing but the speed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffem_jax.build.engine import accumulate_gradient
from diffem_jax.em import batch_gradient, make_e_step, make_m_step, make_state, map_examples
from diffem_jax.parallel import make_parallel
from diffem_jax.samplers import VarianceExploding, dpmpp_2m_sde, log_uniform_grid
from diffem_jax.types import Observation

WAYS = [("jit", 1), ("jit", 2), ("pmap", 1), ("pmap", 2)]


def lenient(optimizer):
    """Optax itself promotes types; the project's code stays strict around it."""

    def update(*args):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args)

    return optax.GradientTransformation(optimizer.init, update)


OPTIMIZERS = {"sgd": optax.sgd(0.05, momentum=0.5), "adam": lenient(optax.adam(1e-2))}


def parallel_of(name, count):
    return make_parallel(name, jax.devices()[:count])


def bits(key, params, observation):
    return jax.random.normal(key, (3,))


def e_inputs(count=8):
    observation = Observation(jax.random.normal(jax.random.key(1), (count, 2)), jnp.ones((count, 1)))
    return observation, np.arange(100, 100 + count, dtype=np.int32)


def test_example_noise_is_bit_equal_whatever_the_batch():
    observations, indices = e_inputs()
    step = jax.jit(map_examples(bits))
    key = jax.random.key(0)
    whole = step(key, (), observations, indices)
    for rows in (slice(0, 4), slice(5, 6)):
        part = step(key, (), jax.tree.map(lambda a, rows=rows: a[rows], observations), indices[rows])
        np.testing.assert_array_equal(part, whole[rows])
    back = step(key, (), observations, indices[::-1].copy())
    np.testing.assert_array_equal(back, whole[::-1])
    assert len(np.unique(np.asarray(whole))) == whole.size
    assert not np.array_equal(step(jax.random.key(1), (), observations, indices), whole)


def test_e_step_is_the_same_on_any_devices():
    """The noise bit for bit, draws by a sampler to round-off."""
    observations, indices = e_inputs()
    schedule = VarianceExploding(0.05, 20.0)

    def bind_linear(params, observation):
        return lambda x, t: (params * observation.y + 0.3 * x) * observation.operator

    steps = [map_examples(bits), make_e_step(bind_linear, dpmpp_2m_sde(schedule), log_uniform_grid(schedule, 6), (2,))]
    results = []
    for name, count in WAYS:
        parallel = parallel_of(name, count)
        key, params = parallel.replicate(jax.random.key(0)), parallel.replicate(jnp.float32(0.5))
        given, numbers = parallel.shard(observations), parallel.shard(indices)
        results.append([parallel.gather(parallel.map_e_step(step)(key, params, given, numbers)) for step in steps])
        assert parallel.num_devices == count
    for noise, draws in results:
        np.testing.assert_array_equal(noise, results[0][0])
        np.testing.assert_allclose(draws, results[0][1], rtol=1e-5, atol=1e-5)
    assert np.std(results[0][1]) > 0.1


def params_of():
    return {"w": jnp.array([0.5, -0.2]), "b": jnp.zeros(2)}


def loss_of(params, key, x):
    return jnp.sum((params["w"] * (x + jax.random.normal(key, x.shape)) + jnp.tanh(params["b"]) - x) ** 2)


def batches(steps=4, batch=8):
    x = np.random.default_rng(0).normal(size=(steps, batch, 2)).astype(np.float32) + 1
    return x, np.tile(np.arange(batch, dtype=np.int32), (steps, 1))


def close(a, b):
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(p), np.asarray(q), rtol=2e-5, atol=2e-6)


def train(optimizer, x, slots, **options):
    step = jax.jit(make_m_step(loss_of, optimizer, ema_decay=0.9, **options))
    return jax.block_until_ready(step(jax.random.key(3), make_state(params_of(), optimizer), x, slots))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_m_step_is_the_same_on_any_devices(name):
    """With SGD a wrong scale of the gradient shows, which Adam would hide."""
    optimizer, (x, slots) = OPTIMIZERS[name], batches()
    expected = train(optimizer, x, slots)
    for way, count in WAYS:
        parallel = parallel_of(way, count)
        step = parallel.map_m_step(make_m_step(loss_of, optimizer, ema_decay=0.9, mean=parallel.mean))
        state = parallel.replicate(make_state(params_of(), optimizer))
        given = (parallel.shard(x, 1), parallel.shard(slots, 1))
        got = jax.block_until_ready(step(parallel.replicate(jax.random.key(3)), state, *given))
        close(got, expected)
    assert jnp.abs(expected[0].params["w"] - params_of()["w"]).max() > 1e-2


def test_many_updates_a_dispatch_are_one_by_one():
    optimizer, (x, slots) = OPTIMIZERS["adam"], batches()
    expected, sums = train(optimizer, x, slots)
    step = jax.jit(make_m_step(loss_of, optimizer, ema_decay=0.9))
    state, losses = make_state(params_of(), optimizer), []
    for i in range(4):
        state, info = step(jax.random.key(3), state, x[i : i + 1], slots[i : i + 1])
        losses.append(float(info["loss"][0]))
    close(state, expected)
    np.testing.assert_allclose(losses, sums["loss"], rtol=1e-5)
    assert sums["loss"].shape == sums["gradient_norm"].shape == (4,)
    assert int(state.step) == 4 and int(state.round) == 0


@pytest.mark.parametrize(("way", "count"), WAYS)
def test_accumulated_gradients_are_those_of_the_whole_batch(way, count):
    x, slots = batches()
    parallel = parallel_of(way, count)
    halves = {"gradient": lambda loss: accumulate_gradient(batch_gradient(loss), 2)}
    made = make_m_step(loss_of, OPTIMIZERS["sgd"], ema_decay=0.9, mean=parallel.mean, **halves)
    step, state = parallel.map_m_step(made), parallel.replicate(make_state(params_of(), OPTIMIZERS["sgd"]))
    given = (parallel.replicate(jax.random.key(3)), state, parallel.shard(x, 1), parallel.shard(slots, 1))
    program = step.lower(*given).compile().as_text()
    assert not re.search(r"all-gather|all-to-all|collective-permute", program)
    close(jax.block_until_ready(step(*given)), train(OPTIMIZERS["sgd"], x, slots))


def test_steps_and_slots_draw_their_own_randomness():
    """With nothing to learn, equal data and a loss that is its own noise, every (step, slot) gives another number."""
    optimizer = optax.sgd(0.0)
    step = jax.jit(make_m_step(lambda params, key, x: jax.random.normal(key) + 0 * params, optimizer, ema_decay=0.9))
    state, x = make_state(jnp.zeros(()), optimizer), jnp.zeros((3, 1, 2))
    seen = [step(jax.random.key(0), state, x, jnp.full((3, 1), slot))[1]["loss"] for slot in range(3)]
    assert len(np.unique(seen)) == 9


def test_moving_average():
    x, slots = batches(steps=1)
    optimizer = optax.sgd(0.1)
    step = jax.jit(make_m_step(loss_of, optimizer, ema_decay=0.5, ema_warmup=False))
    state, _ = step(jax.random.key(0), make_state(params_of(), optimizer), x, slots)
    close(state.ema_params, jax.tree.map(lambda a, b: (a + b) / 2, params_of(), state.params))
    # Warming up, the first average is mostly the new parameters.
    step = jax.jit(make_m_step(loss_of, optimizer, ema_decay=0.9999))
    warm, _ = step(jax.random.key(0), make_state(params_of(), optimizer), x, slots)
    moved = jnp.abs(warm.params["w"] - params_of()["w"]).max()
    assert jnp.abs(warm.ema_params["w"] - warm.params["w"]).max() < 0.2 * moved


@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_devices_exchange_the_gradients_and_nothing_else(way):
    """An update all-reduces 4 bytes a parameter, its loss and its norms: what docs/scaling.md counts."""
    parallel, optimizer = parallel_of(way, 2), optax.sgd(0.1)
    params = {"w": jnp.ones((500, 2)), "b": jnp.zeros(2)}

    def loss(params, key, x):
        return jnp.sum((params["w"] @ x + params["b"].sum() + jax.random.normal(key)) ** 2)

    x, slots = batches(steps=1)
    step = parallel.map_m_step(make_m_step(loss, optimizer, ema_decay=0.9, mean=parallel.mean))
    inputs = (jax.random.key(0), make_state(params, optimizer), parallel.shard(x, 1), parallel.shard(slots, 1))
    program = step.lower(*inputs).compile().as_text()
    reduced = [
        np.prod([int(n) for n in sides.split(",") if n] or [1])
        for kind in re.findall(r"= (.*?) all-reduce(?:-start)?\(", program)
        for sides in re.findall(r"f32\[([\d,]*)\]", kind)
    ]
    assert 1002 <= sum(reduced) <= 1002 + 8, reduced
    assert not re.search(r"all-gather|all-to-all|collective-permute", program)
