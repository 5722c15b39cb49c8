"""The networks' shapes, sizes and numerics."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.build.methods import make_model, make_setup
from diffem_jax.build.parts import make_network
from diffem_jax.config import default, validate
from diffem_jax.errors import UserError
from diffem_jax.networks import MLP, NETWORKS, UNet, sinusoidal_embedding
from diffem_jax.networks.convolution import convolve
from diffem_jax.networks.unet import ResBlock, depth_to_space, space_to_depth
from diffem_jax.run.start import standard_normal

SMALL = {"channels": (4, 8), "blocks": 1, "heads": ((1, 2),), "embedding": 8, "dropout": 0.0}
PLAIN = {**SMALL, "heads": ()}


def parameter_count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def data(shape, extra=2, batch=3):
    keys = jax.random.split(jax.random.key(5), 3)
    condition = jax.random.normal(keys[1], (batch, *shape[:-1], extra))
    return jax.random.normal(keys[0], (batch, *shape)), jax.random.normal(keys[2], (batch,)), condition


def prepare(network, *inputs, train=False, seed=7):
    """Random parameters of the right shapes, without compiling the initialisation."""
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs, train=train))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / s.shape[0] ** 0.5, s.dtype), shapes)


CASES = {
    "mlp_vector": (MLP(features=(16, 16), embedding=8), (5,)),
    "mlp_plain": (MLP(features=(16, 16), embedding=8, normalize=False), (5,)),
    "mlp_image": (MLP(features=(16,), embedding=8), (4, 4, 1)),
    "unet_1d": (UNet(**PLAIN), (4, 2)),
    "unet_2d_odd": (UNet(**SMALL), (5, 7, 3)),
    "unet_3d": (UNet(**PLAIN), (4, 2, 2, 1)),
    "patched_1d": (UNet(**PLAIN, patch=2, skips="add"), (9, 2)),
    "patched_2d": (UNet(**SMALL, patch=2), (7, 6, 3)),
    "patched_3d": (UNet(**PLAIN, patch=2, skips="add"), (4, 4, 2, 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_shapes_and_independence(case):
    """An example's output depends on all of its own inputs, and on no other example."""
    network, shape = CASES[case]
    inputs = data(shape)
    variables, run = prepare(network, *inputs), jax.jit(network.apply)
    out = run(variables, *inputs)
    assert out.shape == inputs[0].shape and out.dtype == jnp.float32 and np.isfinite(out).all()
    for i, value in enumerate(inputs):
        changed = run(variables, *inputs[:i], value.at[1].add(1.0), *inputs[i + 1 :])
        moved = np.abs(np.asarray(changed - out)).reshape(3, -1).max(1)
        assert moved[1] > 1e-4 and max(moved[0], moved[2]) < 1e-5, (i, moved)


def test_without_patches_a_unet_is_as_it_was():
    """Parameters and output of the version before patches and added skips, to which stored networks belong."""
    network, inputs = UNet(**SMALL), data((5, 7, 3))
    variables = prepare(network, *inputs)
    out = jax.jit(network.apply)(variables, *inputs)
    assert (len(jax.tree.leaves(variables)), parameter_count(variables)) == (76, 6423)
    np.testing.assert_allclose(out[1, 2, 3], [0.9064437, 1.0102704, 3.0723329], rtol=1e-5)


@pytest.mark.parametrize("shape", [(7,), (8, 6), (4, 3, 2)])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_and_back(shape, patch):
    x = jax.random.normal(jax.random.key(0), (2, *shape, 3))
    packed = space_to_depth(x, patch)
    assert packed.shape == (2, *(-(-n // patch) for n in shape), 3 * patch ** len(shape))
    np.testing.assert_array_equal(depth_to_space(packed, patch, shape), x)


def test_a_patch_holds_neighbouring_pixels():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(space_to_depth(x, 2)[0, 0, 1], [2.0, 3.0, 6.0, 7.0])


@pytest.mark.parametrize("case", ["mlp", "unet", "patched"])
def test_start_and_gradients(case):
    tiny = {"channels": (4,), "blocks": 1, "heads": (), "embedding": 8}
    network = {"mlp": MLP(features=(8,)), "unet": UNet(**tiny), "patched": UNet(**tiny, patch=2, skips="add")}[case]
    inputs = data((4, 1))
    out, variables = jax.jit(network.init_with_output)(jax.random.key(0), *inputs)
    assert not np.asarray(out).any() and list(variables) == ["params"]
    gradient = jax.jit(jax.grad(lambda v: jnp.sum((network.apply(v, *inputs) - 1) ** 2)))(variables)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert any(np.asarray(g).any() for g in jax.tree.leaves(gradient))


def test_published_cifar10_size():
    x, noise, condition = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1), jnp.zeros((1, 32, 32, 4))
    shapes = jax.eval_shape(lambda: NETWORKS["unet"]().init(jax.random.key(0), x, noise, condition))
    assert 57e6 < parameter_count(shapes) < 58e6


def test_dropout_acts_in_training_alone():
    block = ResBlock(4, dropout=0.5, spatial=1)
    x, embedding = jax.random.normal(jax.random.key(0), (2, 8, 4)), jax.random.normal(jax.random.key(1), (2, 8))
    variables = prepare(block, x, embedding)
    train = jax.jit(lambda key: block.apply(variables, x, embedding, True, rngs={"dropout": key}))
    plain, quiet = (b.apply(variables, x, embedding, False) for b in (ResBlock(4, spatial=1), block))
    np.testing.assert_allclose(quiet, plain, atol=1e-6)
    one, two = train(jax.random.key(3)), train(jax.random.key(4))
    assert np.abs(one - plain).max() > 1e-3 and np.abs(one - two).max() > 1e-3


def test_a_config_chooses_bfloat16_and_remat():
    """The network alone: parameters, gradients and the loss stay float32 and the loss keeps its value."""
    config = importlib.import_module("configs.cifar10").get_config("mask75_paper")
    config.update({"network": {**PLAIN, "channels": (4,), "remat": True}})
    losses, x = {}, jax.random.normal(jax.random.key(1), (4, 4, 4, 3))
    # Flax promotes by itself.
    with jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
        for dtype in ("float32", "bfloat16"):
            config.network.dtype = dtype
            setup = make_setup(config, (4, 4, 3))
            assert setup.network.remat and setup.network.dtype == dtype
            model = make_model(setup, standard_normal(setup.shape))
            variables = prepare(setup.network, *data((4, 4, 3), extra=4))["params"]

            def mean_loss(p, model=model):
                keys = jax.random.split(jax.random.key(0), 4)
                return jnp.mean(jax.vmap(model.loss, (None, 0, 0))(p, keys, x))

            losses[dtype] = float(jax.jit(mean_loss)(variables))
            kept = jax.eval_shape(jax.value_and_grad(mean_loss), variables)
            assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
        lowered = jax.export.export(jax.jit(mean_loss), platforms=["tpu"])(variables).mlir_module()
    convolutions = [line for line in lowered.splitlines() if "stablehlo.convolution" in line]
    assert convolutions and all("xbf16>" in line and "f32>" not in line for line in convolutions)
    assert 0 < abs(losses["bfloat16"] / losses["float32"] - 1) < 0.03, losses


WRONG = {"patch": (0, "expected a number from 1 to 64"), "skips": ("ad", "'add'"), "dtype": ("float16", "expected")}


@pytest.mark.parametrize("field", WRONG)
def test_wrong_fields_of_a_unet_are_refused(field):
    config, (value, words) = default(), WRONG[field]
    with config.unlocked():
        config.network = {"name": "unet", field: value}
    with pytest.raises(UserError, match=rf"config.network.{field}: .*{words}"):
        validate(config)
        make_network(config.network)


def test_embedding_keeps_noise_levels_apart():
    embedded = np.asarray(sinusoidal_embedding(jnp.linspace(-7.0, 5.0, 64), 32))
    gaps = np.linalg.norm(embedded[:, None] - embedded[None], axis=-1)
    assert embedded.shape == (64, 32) and gaps[~np.eye(64, dtype=bool)].min() > 0.1


@pytest.mark.parametrize(
    ("sides", "window", "stride"),
    [((9,), (3,), 1), ((8, 7), (3, 3), 1), ((8, 6), (3, 3), 2), ((4, 5, 4), (3, 1, 3), 2)],
)
def test_convolution_and_its_gradients_are_xlas_own(sides, window, stride):
    """Alone, under vmap, and its gradient inside a loop; the tangent too."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (2, *sides, 3))
    kernel = jax.random.normal(keys[1], (*window, 3, 4))
    strides = (stride,) * len(sides)
    cotangent = jax.random.normal(keys[2], jax.eval_shape(lambda: convolve.fun(x, kernel, strides)).shape)

    def scalar(function, x, kernel):
        each = jax.vmap(lambda one, c: jnp.sum(function(one[None], kernel, strides)[0] * c))
        return jnp.sum(each(x, cotangent))

    def looped(function):
        def body(total, _):
            return jax.tree.map(jnp.add, total, jax.grad(scalar, (1, 2))(function, x, kernel)), None

        return jax.lax.scan(body, jax.tree.map(jnp.zeros_like, (x, kernel)), None, length=2)[0]

    np.testing.assert_allclose(scalar(convolve, x, kernel), scalar(convolve.fun, x, kernel), rtol=1e-5)
    for own, native in zip(jax.jit(looped, static_argnums=0)(convolve), looped(convolve.fun), strict=True):
        np.testing.assert_allclose(own, native, atol=1e-4)
    moved = jax.random.normal(keys[3], x.shape)
    tangent = [jax.jvp(lambda a, f=f: f(a, kernel, strides), (x,), (moved,))[1] for f in (convolve, convolve.fun)]
    np.testing.assert_allclose(*tangent, atol=1e-4)
