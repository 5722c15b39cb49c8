"""Every config that ships: checked, its full-size model traced, one E-step and M-step lowered for TPU and GPU."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults.command import complete
from ml_collections import ConfigDict

from diffem_jax import em
from diffem_jax.build.engine import make_engine
from diffem_jax.build.methods import METHODS, make_model, make_setup, prior_model
from diffem_jax.build.parts import check_noise, make_optimizer
from diffem_jax.build.problem import load_problem
from diffem_jax.config import FIELDS, default, flatten, override, validate
from diffem_jax.config.values import differences
from diffem_jax.denoisers.losses import Example
from diffem_jax.errors import UserError
from diffem_jax.gaussians import Gaussian, Mixture
from diffem_jax.gaussians.factor_analysis import em_iteration
from diffem_jax.gaussians.starts import make_start_draw
from diffem_jax.parallel import make_parallel
from diffem_jax.run.start import standard_normal
from diffem_jax.samplers import SAMPLERS
from diffem_jax.types import stream_key

CONFIGS = """
digits 8,8,1 mask50 mask75 mask90 projection jpeg phase paper mask50_paper mask75_paper mask90_paper projection_paper
manifold 5 best quick published paper
patches 16,16,3 mask50 mask90 blur jpeg paper mask50_paper mask90_paper blur_paper jpeg_paper
cifar10 32,32,3 mask50 mask75 mask90 blur jpeg20 jpeg50 jpeg70 noisy
cifar10 32,32,3 mask50_paper mask75_paper mask90_paper blur_paper jpeg20_paper jpeg50_paper jpeg70_paper
celeba 64,64,3 mask50 mask75 mask50_paper mask75_paper
own_data 28,28,1 auto
own_data 16,16,3 small images paper
own_data 13 table
fourier 8,8,1 digits
fourier 16,16,3 patches
fourier 320,320,1 knee
tables 30 breast_cancer30 breast_cancer50
tables 13 wine30 wine50
series 128,1 gaps
volumes 8,8,8,1 mask50
"""
"""Config, shape of x at full size, variants."""
SHAPES = {
    (name, variant): tuple(map(int, shape.split(",")))
    for name, shape, *variants in map(str.split, CONFIGS.strip().splitlines())
    for variant in variants
}
NAMES = sorted({name for name, _ in SHAPES})
REPEATS = """
digits:mask75 digits:mask50_paper digits:mask75_paper digits:mask90_paper patches:mask90 patches:mask50_paper
patches:mask90_paper cifar10:mask75 cifar10:mask90 cifar10:jpeg50 cifar10:jpeg70 cifar10:mask75_paper cifar10:mask90_paper
cifar10:jpeg50_paper cifar10:jpeg70_paper cifar10:noisy celeba:mask75 celeba:mask75_paper tables:breast_cancer50 tables:wine50
"""
"""Variants whose programs are those of the one before them, but for a rate or a quality."""
KINDS = [kind for kind in SHAPES if ":".join(kind) not in REPEATS.split()]


@pytest.fixture(autouse=True)
def library_promotion():
    """Optax's schedules promote integer counts to floats, and Flax promotes in bfloat16."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def load(name: str, variant: str) -> ConfigDict:
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    if config.data.name in ("observations", "arrays"):
        config.data.path = "given-on-the-command-line.npz"
    return config


def examples(setup, model) -> object:
    """One update's batch of two: x, and the operators beside each that the loss takes; or observations."""
    key = jax.random.key(0)
    operator = jax.eval_shape(setup.corruption.draw_operator, key)
    one = jax.ShapeDtypeStruct(setup.shape, jnp.float32)
    tree = Example(one, **dict.fromkeys(model.takes, operator)) if model.takes else one
    if model.trains_on == "observations":
        tree = jax.eval_shape(setup.corruption.sample, key, one)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, 2, *a.shape), a.dtype), tree)


SEEN: set[tuple] = set()


@pytest.mark.parametrize(("name", "variant"), SHAPES)
def test_config_is_valid_and_its_parts_fit_at_full_size(name, variant):
    config = load(name, variant)
    validate(config)
    assert tuple(config.data.shape) in ((), SHAPES[name, variant])
    setup = make_setup(config, SHAPES[name, variant])
    check_noise(config, setup.corruption)
    observation = jax.eval_shape(setup.corruption.sample, stream_key(0, "test"), jnp.zeros(setup.shape))
    assert jax.tree.leaves(observation)
    network = (str(config.network), setup.shape, jax.eval_shape(setup.corruption.condition, observation).shape)
    new = network not in SEEN  # one network of many variants is traced once
    SEEN.add(network)

    def parameters(key):
        model = make_model(setup, standard_normal(setup.shape))
        return model.denoiser.init(key) if new else ()

    assert bool(jax.tree.leaves(jax.eval_shape(parameters, stream_key(0, "test")))) == new


@pytest.mark.parametrize(
    ("section", "size", "accumulate", "words"),
    [("e_step", 301, 1, "devices, 2"), ("m_step", 255, 1, "devices, 2"), ("m_step", 256, 256, "accumulate, 2 x 256")],
)
def test_batch_that_the_devices_do_not_divide_is_refused(section, size, accumulate, words):
    config = load("digits", "mask50")
    config[section].batch_size, config.m_step.accumulate = size, accumulate
    setup = make_setup(config, (8, 8, 1))
    with pytest.raises(UserError, match=rf"config\.{section}\.batch_size: {size}; .*{words}; change it$"):
        make_engine(setup, make_parallel("jit")._replace(num_devices=2), standard_normal(setup.shape))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_starts_again_in_each_round(schedule):
    """Also where the optimiser is carried over, whose count goes on."""
    m_step = default().m_step
    m_step.optimizer, m_step.learning_rate_schedule, m_step.warmup_steps = "sgd", schedule, 1
    optimizer = make_optimizer(m_step, 5)
    state, rates = optimizer.init(jnp.zeros(())), []
    for _ in range(10):
        update, state = optimizer.update(jnp.ones(()), state)
        rates.append(-float(update))
    assert rates[5:] == rates[:5] and rates[0] == 0 and rates[1] == pytest.approx(m_step.learning_rate)
    assert rates[4] < rates[1] or schedule == "constant"


def test_assumed_and_true_corruption_are_two_sections():
    config = load("digits", "mask50")
    setup = make_setup(config, (8, 8, 1))
    assert setup.data_corruption is setup.corruption
    with config.unlocked():
        config.data.num_examples = 200
        config.data_corruption = {"name": "pixel_mask", "rate": 0.9, "noise_std": 0.3}
    validate(config)
    problem = load_problem(config)
    assert problem.setup.corruption == setup.corruption and problem.setup.corruption.rate == 0.5
    y, seen = problem.observations.y, problem.observations.operator > 0
    # 12,800 pixels: five standard errors.
    assert abs(seen.mean() - 0.1) < 5 * (0.1 * 0.9 / seen.size) ** 0.5
    assert 0.25 < (y - problem.truth)[seen].std() < 0.35


@pytest.mark.parametrize(("name", "variant"), [("patches", "mask50"), ("digits", "mask50")])
def test_every_run_can_train_a_prior(name, variant):
    """Also one whose loss is weighted by the base of its denoiser, which a prior has not."""
    setup = make_setup(load(name, variant), SHAPES[name, variant])
    model = prior_model(setup, standard_normal(setup.shape))
    params = jax.eval_shape(model.denoiser.init, stream_key(0, "test"))
    x = jax.ShapeDtypeStruct(setup.shape, jnp.float32)
    value = jax.eval_shape(model.loss, params, stream_key(0, "loss"), x)
    assert value.shape == ()


@pytest.mark.parametrize(
    ("name", "variant", "blocks"),
    [
        *(("cifar10", variant, 1) for variant in ("mask75", "mask75_paper")),
        ("manifold", "best", 0),
        *(pytest.param(*k, 0, marks=pytest.mark.slow) for k in KINDS),
    ],
)
def test_steps_lower_for_accelerators(name, variant, blocks):
    """Nothing in an M-step and an E-step is for CPUs alone. Slow tests lower every config whole; here a U-Net is small."""
    config = load(name, variant)
    config.network.update({"blocks": blocks, "channels": (64, 128)} if blocks else {})
    lower(config, SHAPES[name, variant])


PAIRS = {"analytic_2m": "diffem", "ddpm": "diffem", "ddim": "em_mmps", "heun": "em_pigdm", "pc": "em_dps"}
PAIRS |= {"dpmpp_2m": "oracle", "dpmpp_2m_sde": "ambient"}


@pytest.mark.parametrize(("sampler", "method"), PAIRS.items())
def test_steps_of_every_method_and_sampler_lower_for_accelerators(method, sampler):
    """On small digits. The prior's steps are those of the unconditional methods."""
    assert set(PAIRS.values()) == set(METHODS) == set(FIELDS["method"].choices) - {"module:name"}
    assert set(PAIRS) == set(SAMPLERS)
    config = load("digits", "mask50")
    config.method, config.e_step.sampler, config.network.features = method, sampler, (16,)
    lower(config, (8, 8, 1))


def test_steps_of_the_start_lower_for_accelerators():
    shape = (8, 8, 1)
    corruption = make_setup(load("digits", "mask50"), shape).corruption
    law = Gaussian(jnp.zeros((2, *shape)), jnp.ones((2, *shape)), jnp.ones((2, 3, *shape)))
    mixture = Mixture(jnp.log(jnp.full(2, 0.5)), law)
    draw, options = em.map_examples(make_start_draw(corruption)), {"variance_floor": 1e-4, "batch_size": 2}

    def both(data, observations, indices):
        key = jax.random.wrap_key_data(data)
        weights = jnp.ones(len(indices))
        after = em_iteration(key, mixture, observations, indices, weights, corruption=corruption, **options)
        return after, draw(key, mixture, observations, indices)

    observation = jax.eval_shape(corruption.sample, stream_key(0, "test"), jnp.zeros((8, 8, 1)))
    observations = jax.tree.map(lambda a: jax.ShapeDtypeStruct((4, *a.shape), a.dtype), observation)
    shapes = jax.ShapeDtypeStruct((2,), jnp.uint32), observations, jax.ShapeDtypeStruct((4,), jnp.int32)
    assert export(both, *shapes).out_avals[-1].shape == (4, 8, 8, 1)


def lower(config, shape):
    setup = make_setup(config, shape)
    model = make_model(setup, standard_normal(setup.shape))
    key = stream_key(0, "test")
    params = jax.eval_shape(model.denoiser.init, key)
    state = jax.eval_shape(lambda p: em.make_state(p, setup.optimizer), params)
    m_step = em.make_m_step(model.loss, setup.optimizer, ema_decay=0.9)
    e_step = em.make_e_step(model.bind, setup.sampler, setup.times, setup.shape)
    if model.draw is not None:
        e_step = em.map_examples(model.draw)

    def both(data, state, x, slots, observations, indices):
        key = jax.random.wrap_key_data(data)
        return m_step(key, state, x, slots), e_step(key, state.ema_params, observations, indices)

    one = jax.eval_shape(setup.corruption.sample, key, jax.ShapeDtypeStruct(setup.shape, jnp.float32))
    observations = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype), one)
    shapes = [jax.ShapeDtypeStruct((1, 2), jnp.int32), observations, jax.ShapeDtypeStruct((2,), jnp.int32)]
    exported = export(both, jax.ShapeDtypeStruct((2,), jnp.uint32), state, examples(setup, model), *shapes)
    assert exported.out_avals[-1].shape == (2, *setup.shape)


def export(function, *shapes):
    """A program for TPU and GPU at once, without anything of the host in it."""
    with jax.debug_key_reuse(False):
        exported = jax.export.export(jax.jit(function), platforms=["tpu", "cuda"])(*shapes)
    assert exported.platforms == ("tpu", "cuda") and "callback" not in exported.mlir_module()
    return exported


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), KINDS)
def test_small_version_trains_a_round_through_the_command(name, variant, tmp_path):
    """Corruption, preconditioning, sampler, law of t, augmentation, schedule as the config has them; all else small."""
    config, full, rng = load(name, variant), SHAPES[name, variant], np.random.default_rng(0)
    fields = {"rounds": 1, "data.num_examples": 64, "m_step.steps": 2, "m_step.batch_size": 16, "e_step.steps": 2}
    fields |= {"e_step.batch_size": 32, "start.rank": 2, "start.components": 1, "start.iterations": 2}
    fields |= {"prior.steps": 0, "eval.metrics": "()"}
    shape = (*(min(side, 16) for side in full[:2]), full[-1]) if len(full) == 3 else full
    if config.network.name == "unet":
        fields |= {"network.channels": (8,) * len(config.network.channels), "network.blocks": 1}
        fields["network.embedding"] = 16
    else:
        fields["network.features"] = (16,)
    if config.data.name == "observations":
        mask = (rng.random((64, *shape[:-1], 1 if len(shape) > 1 else shape[0])) < 0.5).astype(np.float32)
        np.savez(tmp_path / "x.npz", y=rng.standard_normal((64, *shape), np.float32) * mask, mask=mask)
        fields["data.path"] = tmp_path / "x.npz"
    elif config.data.name.startswith("tfds:") or config.data.name == "arrays":
        # Random pixels stand for a set that is not here.
        np.savez(tmp_path / "x.npz", x=rng.uniform(-2, 2, (64, *shape)).astype(np.float32))
        fields |= {"data.name": "arrays", "data.path": tmp_path / "x.npz", "data.split": "train", "data.shape": shape}
    argv = [f"--config={name}:{variant}", *(f"--config.{field}={value}" for field, value in fields.items())]
    ended = complete(*argv, f"--workdir={tmp_path / 'run'}")
    assert (tmp_path / "run" / "rounds" / "round_00001").exists() and "round 1: " in ended.out


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_is_tested_and_documented_and_another_refused(name):
    module = importlib.import_module(f"configs.{name}")
    places = ("VARIANTS", "CORRUPTIONS", "PUBLISHED", "RATES")
    found = [variant for place in places for variant in getattr(module, place, ())]
    assert all((name, variant) in SHAPES for variant in found)
    assert all(variant.removesuffix("_paper") in module.__doc__ for variant in found)
    with pytest.raises(ValueError, match="nonsense"):
        load(name, "nonsense")


def test_every_config_is_tested():
    names = {path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.py")} - {"__init__"}
    assert names == set(NAMES)


PUBLISHED = """
cifar10 data.name=tfds:cifar10 data.num_examples=50000 rounds=21 m_step.batch_size=256 m_step.learning_rate=2e-4
cifar10 m_step.ema_decay=0.9999 m_step.clip_norm=1.0 m_step.optimizer=adam m_step.augment=('flip','hue','saturation')
cifar10 m_step.learning_rate_schedule=constant e_step.sampler=ddpm e_step.steps=256 start.name=gaussian start.rank=64
cifar10 prior.steps=100000 prior.sampler=ddim prior.sampler_steps=256 network.channels=(128,256,384) network.blocks=5
cifar10 network.heads=((1,4),) network.embedding=256 network.dropout=0.1
cifar10:mask75_paper m_step.steps=50000 corruption.rate=0.75 corruption.noise_std=1e-3
cifar10:mask90_paper m_step.steps=100000 corruption.rate=0.9 corruption.noise_std=1e-3
cifar10:noisy m_step.steps=50000 corruption.rate=0.5 corruption.noise_std=0.2
cifar10:blur_paper m_step.steps=50000 corruption.std=2.0 corruption.noise_std=1e-3
cifar10:jpeg20_paper m_step.steps=50000 corruption.quality=20
cifar10:jpeg50_paper m_step.steps=50000 corruption.quality=50
cifar10:jpeg70_paper m_step.steps=50000 corruption.quality=70
celeba data.split=train+validation+test m_step.steps=50649 m_step.batch_size=256 m_step.learning_rate=1e-4
celeba m_step.ema_decay=0.999 m_step.clip_norm=1.0 m_step.augment=('flip','shift') prior.steps=405198 start.rank=1024
celeba e_step.sampler=ddpm e_step.steps=64 network.channels=(128,256,384,512) network.blocks=3 network.heads=((3,4),)
celeba:mask50_paper corruption.rate=0.5 corruption.noise_std=1e-3 rounds=20 network.dropout=0.1
celeba:mask75_paper corruption.rate=0.75 corruption.noise_std=1e-3 rounds=24 network.dropout=0.1
cifar10,celeba schedule.name=ve schedule.sigma_min=3e-4 schedule.sigma_max=100.0 m_step.time_law=beta
cifar10,celeba m_step.time_law_beta=((3.0,3.0),) denoiser.preconditioning=edm m_step.loss_weight=snr
manifold:paper rounds=32 data.num_examples=65536 m_step.steps=65536 e_step.sampler=pc e_step.steps=4096
manifold:paper schedule.sigma_min=1e-3 schedule.sigma_max=10.0 network.normalize=True network.features=(256,256,256)
manifold:paper start.name=gaussian start.rank=5 corruption.measurements=2 corruption.noise_std=0.01
manifold:paper m_step.time_law_beta=((2.0,5.0),(5.0,2.0)) m_step.learning_rate=1e-3 m_step.learning_rate_end=1e-6
manifold:paper m_step.batch_size=1024
"""
"""Config (its published variants) or one variant of it, and fields of the published tables: arXiv 2510.12691, appendix."""


@pytest.mark.parametrize("line", PUBLISHED.strip().splitlines())
def test_published_settings(line):
    names, *fields = line.split()
    for name, _, variant in (name.partition(":") for name in names.split(",")):
        published = [v for config, v in SHAPES if config == name and v.endswith(("_paper", "noisy"))]
        for one in [variant] if variant else published:
            config = load(name, one)
            given = flatten(config)
            override(config, [tuple(field.split("=", 1)) for field in fields])
            assert differences(config, given) == []
