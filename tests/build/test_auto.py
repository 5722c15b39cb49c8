"""What is 'auto': chosen from shapes and the corruption, and every corruption trains on a file by flags alone."""

import re
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults.command import command, refused

from configs import own_data
from diffem_jax.build.auto import choose, explain, fit_to_file, recommended
from diffem_jax.build.methods import make_model
from diffem_jax.build.problem import load_problem, stored_config
from diffem_jax.config import AUTO, AUTOMATIC, FIELDS, differences, flatten, override, validate
from diffem_jax.corruptions import CORRUPTIONS, PixelMask
from diffem_jax.data import save_observations
from diffem_jax.data.observations import array_shapes
from diffem_jax.denoisers.losses import Example
from diffem_jax.run.start import standard_normal
from diffem_jax.storage.workdir import Workdir
from diffem_jax.usage import load_config

PAGE = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text()
COMMANDS = {
    next(word.partition("=")[2] for word in words if "corruption.name=" in word): words
    for words in (
        shlex.split(line) for line in re.findall(r"^diffem (--config=own_data .*corruption\.name=.*)$", PAGE, re.M)
    )
}
"""The command of each corruption, as docs/own_data.md shows it."""
FOLLOWS = {"projection": {"measurements": 24}, "compressed_sensing": {"ratio": 0.4}, "multicoil_fourier": {"coils": 2}}
"""Fields that follow from the file, so that they need no flag."""


def set_by(words):
    """(field, value) of each flag of a field."""
    return [tuple(word.removeprefix("--config.").split("=", 1)) for word in words if word.startswith("--config.")]


def fields(name):
    """The fields that the command of a corruption sets."""
    c = own_data.get_config()
    override(c, set_by(COMMANDS[name]))
    return {key: c.corruption[key] for key in c.corruption if key != "name"}


def corruption_of(name, shape):
    """What makes the file of a corruption."""
    return CORRUPTIONS[name](shape=shape, **{**fields(name), **FOLLOWS.get(name, {})})


TINY = (
    "--config.rounds=2", "--config.m_step.steps=2", "--config.m_step.updates_per_dispatch=1", "--config.e_step.steps=2",
    "--config.e_step.draws=1", "--config.start.iterations=1", "--config.start.rank=2", "--config.eval.metrics=()",
)  # fmt: skip


def write(path, corruption, count=24):
    """A file of observations of smooth random x."""
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


def test_page_has_a_command_for_every_corruption():
    assert list(COMMANDS) == list(CORRUPTIONS)


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
    other = next((c for c in field.choices if c not in ("unet", "base")), None) or {int: 8, float: 0.5}.get(
        field.kind, ((2.0, 2.0),)
    )
    flat = flatten(chosen((28, 28, 1), 5000, f"{name}={other}"))
    assert flat[name] == (other if not isinstance(other, tuple) else [[2.0, 2.0]])


def test_image_network_beyond_twelve_by_twelve():
    assert chosen((12, 12, 1), 0).network.name == "mlp"
    assert chosen((13,), 0).network.name == "mlp" and chosen((4096, 1), 0).network.name == "mlp"
    widths = {(16, 16, 3): (32, 64), (28, 28, 1): (32, 64), (64, 64, 3): (32, 64, 96), (17, 13, 1): (32,)}
    for shape, channels in widths.items():
        found = chosen(shape, 0)
        assert found.network.name == "unet" and found.network.channels == channels
        assert found.denoiser.base == "start_moments"
        assert found.start.name == "stationary" and "fill_iterations" not in found.corruption
        assert chosen(shape, 0, "start.name=gaussian").corruption.fill_iterations > 0


def test_fields_that_are_set_choose_the_network_that_has_them():
    found = chosen((28, 28, 1), 0, "network.features=(64,64)")
    assert (found.network.name, found.network.features) == ("mlp", (64, 64))
    found = chosen((8, 8, 1), 0, "network.channels=(8,)")
    assert (found.network.name, found.network.channels, found.network.blocks) == ("unet", (8,), 1)
    assert chosen((8, 8, 1), 0, "network.name=unet").network.channels == (32,)


def test_corruption_decides_the_preconditioning():
    for name in CORRUPTIONS:
        shape = (16, 16, 3)
        corruption = corruption_of(name, shape)
        found = recommended(shape, 0, corruption, "unet")
        assert (found["denoiser.preconditioning"] == "posterior") == corruption.is_linear
        assert (found["m_step.loss_weight"] == "base") == corruption.is_linear


def test_few_observations_have_a_smaller_start_and_more_draws():
    few, many = chosen((8, 8, 1), 100), chosen((8, 8, 1), 5000)
    assert few.start.rank < many.start.rank == 24 and few.e_step.draws == 8 and many.e_step.draws == 1
    assert few.m_step.batch_size == 64 and few.m_step.steps < many.m_step.steps
    assert chosen((8, 8, 1), 1).m_step.batch_size == 1


def test_lines_say_what_was_chosen_and_how_to_change_it():
    given = config("corruption.name=jpeg")
    found = choose(given, (16, 16, 3), 0, CORRUPTIONS["jpeg"](shape=(16, 16, 3)))
    text = " ".join(line.strip() for line in explain(given, found))
    for words in (
        "network.name unet (by the shape of x)",
        "preconditioning edm (as jpeg is not linear)",
        "each is a flag",
    ):
        assert words in text
    assert explain(found, found) == []


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_shape_of_x_follows_from_the_file(name, tmp_path):
    """But for a projection, whose matrix has lost the shape of an image."""
    shape = (16, 16, 3)
    path = write(tmp_path / "x.npz", corruption_of(name, shape), 3)
    given = config(
        f"corruption.name={name}",
        *(f"corruption.{key}={value}" for key, value in fields(name).items() if key not in FOLLOWS.get(name, {})),
    )
    found, arrays = fit_to_file(given, array_shapes(path)), array_shapes(path)
    expected = (int(np.prod(shape)),) if name == "projection" else shape
    assert (tuple(found.data.shape) or arrays["y"][1:]) == expected
    for key, value in FOLLOWS.get(name, {}).items():
        assert found.corruption[key] == pytest.approx(value, rel=0.02)
    assert "measurements" not in given.corruption and not len(given.data.shape)
    if name == "projection":
        told = fit_to_file(config(f"corruption.name={name}", f"data.shape={shape}"), arrays)
        assert tuple(told.data.shape) == shape and told.corruption.measurements == 24


def test_file_that_fits_no_shape_is_left_to_the_checks(tmp_path):
    given = config("corruption.name=projection", "corruption.measurements=5")
    assert fit_to_file(given, {"y": (10, 24), "operator": (10, 24, 64)}) is given


@pytest.fixture
def quick(monkeypatch):
    """Nothing is drawn."""
    for name in ("picture", "spread_picture"):
        monkeypatch.setattr(f"diffem_jax.run.record.{name}", lambda *args, **kwargs: None)
    monkeypatch.setattr("diffem_jax.report.page.write", lambda folder: None)


def write_own(name, folder, monkeypatch):
    """The file of the command of a corruption, in the current folder."""
    monkeypatch.chdir(folder)
    write(folder / f"{name}.npz", corruption_of(name, (8, 8, 3) if name == "grayscale" else (8, 8, 1)))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_command_of_the_page_builds_what_fits_the_corruption(name, tmp_path, monkeypatch):
    """Loss and denoiser are traced on the file's observations; slow tests train."""
    write_own(name, tmp_path, monkeypatch)
    config = load_config("own_data", set_by(COMMANDS[name]))
    problem = load_problem(config)
    assert f"(as {name}" in " ".join(explain(config, problem.setup.config))
    model = make_model(problem.setup, standard_normal(problem.setup.shape))
    observation, x = jax.tree.map(lambda leaf: leaf[0], problem.observations), jnp.zeros(problem.setup.shape)
    params, key = jax.eval_shape(model.denoiser.init, jax.random.key(0)), jax.random.key(0)
    example = Example(x, **dict.fromkeys(model.takes, observation.operator)) if model.takes else x
    assert jax.eval_shape(model.loss, params, key, example).shape == ()
    x_hat = jax.eval_shape(lambda p: model.bind(p, observation)(x, jnp.float32(0.5)), params)
    assert x_hat.shape == x.shape


@pytest.mark.parametrize(
    "name",
    [name if name == "compressed_sensing" else pytest.param(name, marks=pytest.mark.slow) for name in CORRUPTIONS],
)
def test_every_corruption_trains_by_the_command_of_its_page(name, tmp_path, monkeypatch, quick):
    write_own(name, tmp_path, monkeypatch)
    ended = command(*COMMANDS[name], *TINY, "--config.network.features=(8,)")
    assert ended.code == 0, ended
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
    fields = (
        "data.path=x.npz",
        "corruption.name=own_corruption:Halved",
        "data.shape=(8,8,1)",
        "corruption.noise_std=0.1",
    )
    flags = ["--config=own_data", "--workdir=run", *(f"--config.{field}" for field in fields)]
    flags += ["--config.network.features=(8,)", *TINY]
    ended = command(*flags, "--config.rounds=1")
    assert ended.code == 0 and "as own_corruption:Halved" in ended.out, ended
    ended = command(*flags)
    assert ended.code == 0 and "round 2" in ended.out, ended
    stored = stored_config(Workdir("run"))
    assert AUTO not in flatten(stored).values() and stored.denoiser.preconditioning == "edm"
    refused(command(*flags, "--config.m_step.steps=3"), "m_step.steps: 2 -> 3")
    sys.modules.pop("own_corruption", None)


def test_automatic_is_no_value_of_other_fields(tmp_path):
    for name in ("seed", "corruption.rate", "m_step.optimizer"):
        ended = command("--config=digits", f"--workdir={tmp_path / 'run'}", f"--config.{name}={AUTO}")
        refused(ended, f"config.{name}")
