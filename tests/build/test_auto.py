"""What is 'auto': chosen from shapes and the corruption, trained by flags alone, and with draws as wide as they should be."""

import re
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults.command import command, complete, refused
from faults.harness import small

from configs import own_data
from diffem_jax.build.auto import choose, explain, fit_to_file, recommended
from diffem_jax.build.methods import make_model
from diffem_jax.build.parts import DRAWS, LEAST, MOST, draw_width
from diffem_jax.build.problem import load_problem, stored_config
from diffem_jax.config import AUTO, AUTOMATIC, FIELDS, flatten, override, validate
from diffem_jax.config.values import differences
from diffem_jax.corruptions import CORRUPTIONS, PixelMask
from diffem_jax.data import array_shapes, save_observations
from diffem_jax.denoisers.losses import Example
from diffem_jax.run import train
from diffem_jax.run.start import standard_normal
from diffem_jax.storage.workdir import Workdir
from diffem_jax.usage import load_config, shipped_configs

PAGE = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text()
SHOWN = map(shlex.split, re.findall(r"^diffem (--config=own_data .*corruption\.name=.*)$", PAGE, re.M))
COMMANDS = {next(w.partition("=")[2] for w in words if "corruption.name=" in w): words for words in SHOWN}
"""The command of each corruption, as docs/own_data.md shows it."""
FOLLOWS = {"projection": {"measurements": 24}, "compressed_sensing": {"ratio": 0.4}, "multicoil_fourier": {"coils": 2}}
"""Fields that follow from the file, so that they need no flag."""


def set_by(words):
    return [tuple(word.removeprefix("--config.").split("=", 1)) for word in words if word.startswith("--config.")]


def fields(name):
    c = own_data.get_config()
    override(c, set_by(COMMANDS[name]))
    return {key: c.corruption[key] for key in c.corruption if key != "name"}


def corruption_of(name, shape):
    return CORRUPTIONS[name](shape=shape, **{**fields(name), **FOLLOWS.get(name, {})})


def write(path, corruption, count=24):
    x = np.random.default_rng(0).normal(size=(count, *corruption.shape)).cumsum(1) * 0.4
    x = jnp.asarray(np.clip(x, -2, 2), jnp.float32)
    observations = jax.jit(jax.vmap(corruption.sample))(jax.random.split(jax.random.key(0), count), x)
    save_observations(path, observations, corruption)
    return path


def config(*flags):
    c = own_data.get_config()
    override(c, [("data.path", "x.npz"), *(tuple(flag.split("=", 1)) for flag in flags)])
    return c


def chosen(shape, count, *flags, corruption=None):
    return choose(config(*flags), shape, count, corruption or PixelMask(shape=shape, noise_std=0.1))


def test_nothing_is_left_open_and_the_given_config_stays_as_it_is():
    given = config()
    before = flatten(given)
    assert {name for name, value in before.items() if value == AUTO} == set(AUTOMATIC)
    validate(given, training=True)
    for shape in ((8, 8, 1), (28, 28, 1), (64, 64, 3), (13,), (128, 1)):
        for count in (0, 40, 5000):
            found = choose(given, shape, count, PixelMask(shape=shape, noise_std=0.1))
            validate(found, training=True)
            assert AUTO not in flatten(found).values() and flatten(given) == before
            assert differences(choose(found, shape, count, PixelMask(shape=shape)), flatten(found)) == []


@pytest.mark.parametrize("name", AUTOMATIC)
def test_flag_wins_over_what_would_be_chosen(name):
    field = FIELDS[name]
    choice = next((c for c in field.choices if c not in ("unet", "base")), None)
    other = choice or {int: 8, float: 0.5}.get(field.kind, [[2.0, 2.0]])
    assert flatten(chosen((28, 28, 1), 5000, f"{name}={other}"))[name] == other


def test_image_network_beyond_twelve_by_twelve():
    assert chosen((12, 12, 1), 0).network.name == "mlp"
    assert chosen((13,), 0).network.name == "mlp" and chosen((4096, 1), 0).network.name == "mlp"
    shapes = (16, 16, 3), (28, 28, 1), (64, 64, 3), (25, 25, 1), (17, 13, 1)
    widths = (16, 32), (16, 32, 64), (32, 64, 64), (16, 32, 64), (16, 32)
    for shape, channels in zip(shapes, widths, strict=True):
        found = chosen(shape, 0)
        assert found.network.name == "unet" and found.network.channels == channels
        assert found.denoiser.base == "start_moments" and found.network.patch == 1 + (shape[0] >= 48)
        assert found.start.name == "stationary" and "fill_iterations" not in found.corruption
        assert chosen(shape, 0, "start.name=gaussian").corruption.fill_iterations > 0


def test_fields_that_are_set_choose_the_network_that_has_them():
    found = chosen((28, 28, 1), 0, "network.features=(64,64)")
    assert (found.network.name, found.network.features) == ("mlp", (64, 64))
    found = chosen((8, 8, 1), 0, "network.channels=(8,)")
    assert (found.network.name, found.network.channels, found.network.blocks) == ("unet", (8,), 1)
    assert chosen((8, 8, 1), 0, "network.name=unet").network.channels == (16,)


def test_page_has_a_command_for_every_corruption_which_decides_the_preconditioning():
    assert sorted(COMMANDS) == sorted(CORRUPTIONS)
    for name in CORRUPTIONS:
        corruption = corruption_of(name, (16, 16, 3))
        found = recommended((16, 16, 3), 0, corruption, "unet")
        assert (found["denoiser.preconditioning"] == "posterior") == corruption.is_linear
        assert (found["m_step.loss_weight"] == "base") == corruption.is_linear


def test_few_observations_have_a_smaller_start_and_more_draws():
    few, many = chosen((8, 8, 1), 100), chosen((8, 8, 1), 5000)
    assert few.start.rank < many.start.rank == 24 and few.e_step.draws == 8 and many.e_step.draws == 1
    assert few.m_step.batch_size == 64 and few.m_step.steps < many.m_step.steps
    assert chosen((8, 8, 1), 1).m_step.batch_size == 1


def test_of_large_images_fewer_make_a_batch():
    sizes = {(16, 16, 3): 32, (28, 28, 1): 32, (64, 64, 3): 16, (256, 256, 3): 4}
    assert {shape: chosen(shape, 5000).m_step.batch_size for shape in sizes} == sizes
    assert chosen((256, 256, 3), 2).m_step.batch_size == 2


def test_lines_say_what_was_chosen_and_how_to_change_it():
    given = config("corruption.name=jpeg")
    found = choose(given, (16, 16, 3), 0, CORRUPTIONS["jpeg"](shape=(16, 16, 3)))
    text = " ".join(line.strip() for line in explain(given, found))
    assert "network.name unet (by the shape of x)" in text and "each is a flag" in text
    assert "preconditioning edm (as jpeg is not linear)" in text and explain(found, found) == []


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_shape_of_x_follows_from_the_file(name, tmp_path):
    """But for a projection, whose matrix has lost the shape of an image."""
    shape = (16, 16, 3)
    path, corruption, keys = tmp_path / "x.npz", corruption_of(name, shape), jax.random.split(jax.random.key(0), 3)
    one = jax.eval_shape(jax.vmap(corruption.sample), keys, jnp.zeros((3, *shape)))
    save_observations(path, jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), one), corruption)
    left = {key: value for key, value in fields(name).items() if key not in FOLLOWS.get(name, {})}
    given = config(f"corruption.name={name}", *(f"corruption.{key}={value}" for key, value in left.items()))
    found, arrays = fit_to_file(given, array_shapes(path)), array_shapes(path)
    expected = (int(np.prod(shape)),) if name == "projection" else shape
    assert (tuple(found.data.shape) or arrays["y"][1:]) == expected
    for key, value in FOLLOWS.get(name, {}).items():
        assert found.corruption[key] == pytest.approx(value, rel=0.02)
    assert "measurements" not in given.corruption and not len(given.data.shape)
    if name == "projection":
        told = fit_to_file(config(f"corruption.name={name}", f"data.shape={shape}"), arrays)
        assert tuple(told.data.shape) == shape and told.corruption.measurements == 24
        wrong = config("corruption.name=projection", "corruption.measurements=5")
        assert fit_to_file(wrong, {"y": (10, 24), "operator": (10, 24, 64)}) is wrong  # the checks refuse it


def write_own(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    write(folder / f"{name}.npz", corruption_of(name, (8, 8, 3) if name == "grayscale" else (8, 8, 1)))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_command_of_the_page_builds_what_fits_the_corruption(name, tmp_path, monkeypatch):
    """The loss is traced, and in it the denoiser; slow tests train."""
    write_own(name, tmp_path, monkeypatch)
    config = load_config("own_data", set_by(COMMANDS[name]))
    problem = load_problem(config)
    assert f"(as {name}" in " ".join(explain(config, problem.setup.config))

    def loss(key, operator):
        model, x = make_model(problem.setup, standard_normal(problem.setup.shape)), jnp.zeros(problem.setup.shape)
        example = Example(x, **dict.fromkeys(model.takes, operator)) if model.takes else x
        return model.loss(model.denoiser.init(key), jax.random.clone(key), example)

    operator = jax.tree.map(lambda leaf: leaf[0], problem.observations).operator
    assert jax.eval_shape(loss, jax.random.key(0), operator).shape == ()


@pytest.mark.slow  # each is built by the test above, and one of ones own trained by the one below
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_trains_by_the_command_of_its_page(name, tmp_path, monkeypatch, quick):
    write_own(name, tmp_path, monkeypatch)
    ended = complete(*COMMANDS[name], *small(rounds=2))
    assert [r["round"] for r in Workdir(f"runs/{name}").records() if r["kind"] == "round"] == [0, 1, 2]
    assert "chosen" in ended.out


OWN = '''
import dataclasses
from diffem_jax.corruptions import AdditiveNoise

@dataclasses.dataclass(frozen=True, kw_only=True)
class Halved(AdditiveNoise):
    """Every second row is lost and values are squared: neither the shape of y is that of x, nor is it linear."""
    every: int = 2
    def draw_operator(self, key):
        return ()
    def forward(self, x, operator):
        return x[:: self.every] ** 2
'''


def test_corruption_of_ones_own_trains_by_flags_alone_and_goes_on(tmp_path, monkeypatch, quick):
    (tmp_path / "own_corruption.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own = pytest.importorskip("own_corruption").Halved(shape=(8, 8, 1), noise_std=0.1)
    write(tmp_path / "x.npz", own)
    fields = {"data__path": "x.npz", "data__shape": "(8,8,1)", "corruption__name": "own_corruption:Halved"}
    flags = ["--config=own_data", "--workdir=run", *small(rounds=2, corruption__noise_std=0.1, **fields)]
    ended = complete(*flags, "--config.rounds=1")
    assert "as own_corruption:Halved" in ended.out, ended
    ended = complete(*flags)
    assert "round 2" in ended.out, ended
    stored = stored_config(Workdir("run"))
    assert AUTO not in flatten(stored).values() and stored.denoiser.preconditioning == "edm"
    refused(command(*flags, "--config.m_step.steps=3"), "m_step.steps: 2 -> 3")
    sys.modules.pop("own_corruption", None)


@pytest.mark.parametrize("name", ["seed", "corruption.rate", "m_step.optimizer"])
def test_automatic_is_no_value_of_other_fields(tmp_path, name):
    refused(command("--config=digits", f"--workdir={tmp_path}/run", f"--config.{name}={AUTO}"), f"config.{name}")


OURS = [
    *("digits", "digits:mask75", "digits:mask90", "digits:projection", "digits:jpeg", "digits:phase"),
    *("fourier", "fourier:patches", "fourier:knee", "manifold", "manifold:quick", "patches", "patches:mask90"),
    *("own_data", "own_data:images", "own_data:table", "series", "tables", "volumes"),
]
ERROR = np.sqrt(2 / DRAWS)


def test_width_of_shipped_configs():
    widths = {}
    for name in OURS:
        given = load_config(name, [("data.path", "x.npz")] if name.startswith("own_data") else [])
        config = choose(given, (16, 16, 3), 5000, PixelMask(shape=(16, 16, 3)))
        e_step = config.e_step
        key = (e_step.sampler, e_step.time_grid, e_step.steps, config.denoiser.sigma_data, str(config.schedule))
        widths[key] = widths[key] if key in widths else draw_width(config)
        assert LEAST - 3 * ERROR < widths[key] < MOST + 3 * ERROR, (name, widths[key])


def test_published_samplers_draw_too_narrowly():
    """The reason for ours: the published grid of 256 ancestral steps, and the same with few steps."""
    assert draw_width(load_config("digits:paper", [])) < 0.97
    few = load_config("digits:paper", [("e_step.steps", "16")])
    assert draw_width(few) < 0.6
    (line,) = train._advice(few)
    assert "ddpm in 16 steps" in line and "use e_step.sampler=analytic_2m" in line
    assert not list(train._advice(load_config("digits", [])))


def test_every_config_has_its_width_tested():
    assert {name.partition(":")[0] for name in OURS} >= set(shipped_configs()) - {"celeba", "cifar10"}
