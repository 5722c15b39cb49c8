"""Every config that ships: checked, its full-size model traced, one E-step and M-step lowered for TPU and GPU."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults.command import command
from ml_collections import ConfigDict

from diffem_jax import em
from diffem_jax.build.engine import make_engine
from diffem_jax.build.methods import METHODS, make_model, make_setup, prior_model
from diffem_jax.build.parts import make_optimizer
from diffem_jax.build.problem import load_problem
from diffem_jax.config import FIELDS, default, validate
from diffem_jax.denoisers.losses import Example
from diffem_jax.errors import UserError
from diffem_jax.gaussians.gaussians import Mixture
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.gaussians.starts import em_iteration, make_start_draw
from diffem_jax.parallel import make_parallel
from diffem_jax.run.start import standard_normal
from diffem_jax.samplers.samplers import SAMPLERS
from diffem_jax.types import stream_key

VARIANTS = {
    "digits": (
        "mask50", "mask75", "mask90", "projection", "jpeg", "phase",
        "paper", "mask50_paper", "mask75_paper", "mask90_paper", "projection_paper",
    ),
    "manifold": ("best", "quick", "published", "paper"),
    "patches": (
        "mask50", "mask90", "blur", "jpeg", "paper", "mask50_paper", "mask90_paper", "blur_paper", "jpeg_paper",
    ),
    "cifar10": ("mask75", "mask90", "blur", "jpeg20", "jpeg50", "jpeg70", "noisy"),
    "celeba": ("mask50", "mask75"),
    "own_data": ("auto", "small", "images", "paper", "table"),
    "fourier": ("digits", "patches", "knee"),
    "tables": ("breast_cancer30", "breast_cancer50", "wine30", "wine50"),
    "series": ("gaps",),
    "volumes": ("mask50",),
}  # fmt: skip
SHAPES = {
    "digits": (8, 8, 1),
    "manifold": (5,),
    "patches": (16, 16, 3),
    "cifar10": (32, 32, 3),
    "celeba": (64, 64, 3),
    "own_data": {"auto": (28, 28, 1), **dict.fromkeys(("small", "images", "paper"), (16, 16, 3)), "table": (13,)},
    "fourier": {"digits": (8, 8, 1), "patches": (16, 16, 3), "knee": (320, 320, 1)},
    "tables": {"breast_cancer30": (30,), "breast_cancer50": (30,), "wine30": (13,), "wine50": (13,)},
    "series": (128, 1),
    "volumes": (8, 8, 8, 1),
}
ALL = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]


REPEATS = {
    "digits": ("mask75", "mask50_paper", "mask75_paper", "mask90_paper"),
    "patches": ("mask90", "mask50_paper", "mask90_paper"),
    "cifar10": ("mask90", "jpeg50", "jpeg70"),
    "celeba": ("mask75",),
    "tables": ("breast_cancer50", "wine50"),
}
"""Variants whose programs are those of the one before them, but for a rate or a quality."""
KINDS = [(name, variant) for name, variant in ALL if variant not in REPEATS.get(name, ())]


@pytest.fixture(autouse=True)
def library_promotion():
    """Optax's schedules promote integer counts to floats, and Flax promotes in bfloat16."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def shape_of(name: str, variant: str) -> tuple[int, ...]:
    """The shape of x at full size."""
    shape = SHAPES[name]
    return shape[variant] if isinstance(shape, dict) else shape


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


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_config_is_valid_and_its_parts_fit_at_full_size(name, variant):
    config = load(name, variant)
    validate(config)
    assert tuple(config.data.shape) in ((), shape_of(name, variant))
    setup = make_setup(config, shape_of(name, variant))
    model = make_model(setup, standard_normal(setup.shape))
    params = jax.eval_shape(model.denoiser.init, stream_key(0, "test"))
    assert jax.tree.leaves(params)
    observation = jax.eval_shape(setup.corruption.sample, stream_key(0, "test"), jnp.zeros(setup.shape))
    assert jax.tree.leaves(observation)


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
    """Equal unless the second is given; the data then follow it, and the method knows nothing of it."""
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
    setup = make_setup(load(name, variant), shape_of(name, variant))
    model = prior_model(setup, standard_normal(setup.shape))
    params = jax.eval_shape(model.denoiser.init, stream_key(0, "test"))
    x = jax.ShapeDtypeStruct(setup.shape, jnp.float32)
    value = jax.eval_shape(model.loss, params, stream_key(0, "loss"), x)
    assert value.shape == ()


@pytest.mark.parametrize(
    ("name", "variant", "blocks"),
    [
        ("cifar10", "mask75", 1),
        ("manifold", "best", 0),
        *(pytest.param(*kind, 0, marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_steps_lower_for_accelerators(name, variant, blocks):
    """One M-step and one E-step of the full-size model for TPU and for GPU: nothing in them is for CPUs alone.

    Slow tests lower every config whole; here a U-Net has two levels of one block.
    """
    config = load(name, variant)
    config.network.update({"blocks": blocks, "channels": (64, 128)} if blocks else {})
    lower(config, shape_of(name, variant))


PAIRS = [
    ("diffem", "analytic_2m"),
    ("diffem", "ddpm"),
    ("em_mmps", "ddim"),
    ("em_pigdm", "heun"),
    ("em_dps", "pc"),
    ("oracle", "dpmpp_2m"),
    ("ambient", "dpmpp_2m_sde"),
]


@pytest.mark.parametrize(("method", "sampler"), PAIRS)
def test_steps_of_every_method_and_sampler_lower_for_accelerators(method, sampler):
    """On small digits. The prior's steps are those of the unconditional methods."""
    assert {kind[0] for kind in PAIRS} == set(METHODS) == set(FIELDS["method"].choices) - {"module:name"}
    assert {kind[1] for kind in PAIRS} == set(SAMPLERS)
    config = load("digits", "mask50")
    config.method, config.e_step.sampler, config.network.features = method, sampler, (16,)
    lower(config, (8, 8, 1))


def test_steps_of_the_start_lower_for_accelerators():
    """An iteration of its fit, and the draws of round 0."""
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
    with jax.debug_key_reuse(False):
        exported = jax.export.export(jax.jit(both), platforms=["tpu", "cuda"])(*shapes)
    assert exported.platforms == ("tpu", "cuda") and "callback" not in exported.mlir_module()
    assert exported.out_avals[-1].shape == (4, 8, 8, 1)


def lower(config, shape):
    """Both steps of a full-size model, exported for TPU and CUDA together."""
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
    with jax.debug_key_reuse(False):
        data = jax.ShapeDtypeStruct((2,), jnp.uint32)
        exported = jax.export.export(jax.jit(both), platforms=["tpu", "cuda"])(
            data, state, examples(setup, model), *shapes
        )
    assert exported.platforms == ("tpu", "cuda") and "callback" not in exported.mlir_module()
    draws = exported.out_avals[-1]
    assert draws.shape == (2, *setup.shape)


SMALL = {
    "rounds": 1,
    "data.num_examples": 64,
    "m_step.steps": 2,
    "m_step.batch_size": 16,
    "e_step.steps": 2,
    "e_step.batch_size": 32,
    "start.rank": 2,
    "start.components": 1,
    "start.iterations": 2,
    "prior.steps": 0,
    "eval.metrics": "()",
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), KINDS)
def test_small_version_trains_a_round_through_the_command(name, variant, tmp_path):
    """Corruption, preconditioning, sampler, law of t, augmentation, schedule as the config has them; all else small."""
    config, full = load(name, variant), shape_of(name, variant)
    fields: dict[str, object] = dict(SMALL)
    spatial = min(full[0], 16)
    shape = full if len(full) < 3 or len(full) > 3 else (spatial, spatial, full[-1])
    rng = np.random.default_rng(0)
    if config.network.name == "unet":
        levels = range(len(config.network.channels))
        fields |= {"network.channels": tuple(8 for _ in levels), "network.blocks": 1, "network.embedding": 16}
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
    ended = command(*argv, f"--workdir={tmp_path / 'run'}")
    assert ended.code == 0, ended
    assert (tmp_path / "run" / "rounds" / "round_00001").exists() and "round 1: " in ended.out


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_variant_is_tested_and_documented(name):
    module = importlib.import_module(f"configs.{name}")
    places = ("VARIANTS", "CORRUPTIONS", "PUBLISHED", "RATES")
    found = [variant for place in places for variant in getattr(module, place, ())]
    assert set(found) <= set(VARIANTS[name])
    assert all(variant.removesuffix("_paper") in module.__doc__ for variant in found)


def test_every_config_is_tested():
    names = {path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.py")} - {"__init__"}
    assert names == set(VARIANTS) == set(SHAPES)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_unknown_variant_is_named(name):
    with pytest.raises(ValueError, match="nonsense"):
        load(name, "nonsense")


def test_published_settings_of_images():
    """Every field of the published tables: arXiv 2510.12691, appendix."""
    for variant in VARIANTS["cifar10"]:
        c = load("cifar10", variant)
        epochs = 512 if variant == "mask90" else 256
        assert (c.data.name, c.data.num_examples, c.rounds) == ("tfds:cifar10", 50_000, 21)
        assert (c.m_step.steps, c.m_step.batch_size, c.m_step.learning_rate) == (epochs * 50_000 // 256, 256, 2e-4)
        assert (c.m_step.ema_decay, c.m_step.clip_norm, c.m_step.optimizer) == (0.9999, 1.0, "adam")
        assert c.m_step.augment == ("flip", "hue", "saturation") and c.m_step.learning_rate_schedule == "constant"
        assert (c.e_step.sampler, c.e_step.steps, c.start.name, c.start.rank) == ("ddpm", 256, "gaussian", 64)
        assert (c.prior.steps, c.prior.sampler, c.prior.sampler_steps) == (512 * 50_000 // 256, "ddim", 256)
        n = c.network
        assert (n.channels, n.blocks, n.heads, n.embedding) == ((128, 256, 384), 5, ((1, 4),), 256)
        assert n.dropout == 0.1
    for variant, rate, noise in (("mask75", 0.75, 1e-3), ("mask90", 0.9, 1e-3), ("noisy", 0.5, 0.2)):
        c = load("cifar10", variant).corruption
        assert (c.rate, c.noise_std) == (rate, noise)
    c = load("cifar10", "blur").corruption
    assert (c.std, c.noise_std) == (2.0, 1e-3)
    assert [load("cifar10", f"jpeg{q}").corruption.quality for q in (20, 50, 70)] == [20, 50, 70]
    for variant, rate, rounds in (("mask50", 0.5, 20), ("mask75", 0.75, 24)):
        c = load("celeba", variant)
        assert (c.corruption.rate, c.corruption.noise_std, c.rounds) == (rate, 1e-3, rounds)
        assert (c.m_step.steps, c.m_step.batch_size, c.m_step.learning_rate) == (64 * 202_599 // 256, 256, 1e-4)
        assert (c.m_step.ema_decay, c.m_step.clip_norm, c.m_step.augment) == (0.999, 1.0, ("flip", "shift"))
        assert (c.e_step.sampler, c.start.rank, c.prior.steps) == ("ddpm", 1024, 512 * 202_599 // 256)
        assert c.e_step.steps in (64, 256) and c.data.split == "train+validation+test"
        n = c.network
        assert (n.channels, n.blocks, n.heads, n.dropout) == ((128, 256, 384, 512), 3, ((3, 4),), 0.1)
    for name in ("cifar10", "celeba"):
        for variant in VARIANTS[name]:
            c = load(name, variant)
            assert (c.schedule.name, c.schedule.sigma_min, c.schedule.sigma_max) == ("ve", 3e-4, 100.0)
            assert (c.m_step.time_law, c.m_step.time_law_beta) == ("beta", ((3.0, 3.0),))
            assert (c.denoiser.preconditioning, c.m_step.loss_weight) == ("edm", "snr")
    c = load("manifold", "paper")
    assert (c.rounds, c.data.num_examples, c.m_step.steps) == (32, 65_536, 65_536)
    assert (c.e_step.sampler, c.e_step.steps, c.start.name) == ("pc", 4096, "gaussian")
    assert (c.schedule.sigma_min, c.schedule.sigma_max) == (1e-3, 10.0) and c.network.normalize
    assert (c.corruption.measurements, c.corruption.noise_std, c.network.features) == (2, 0.01, (256, 256, 256))
    assert c.m_step.time_law_beta == ((2.0, 5.0), (5.0, 2.0)) and c.start.rank == 5
    assert (c.m_step.learning_rate, c.m_step.learning_rate_end, c.m_step.batch_size) == (1e-3, 1e-6, 1024)
