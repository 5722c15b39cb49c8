"""The table of fields: flags, the fields that classes bring, objects named as 'module:name', and stored configurations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults.command import ROOT, command, refused
from faults.harness import small

from diffem_jax import main, usage
from diffem_jax.config import FIELDS, RETIRED, class_fields, default, flatten, override, validate
from diffem_jax.config.values import differences, restore
from diffem_jax.corruptions import CORRUPTIONS
from diffem_jax.errors import UserError
from diffem_jax.networks import NETWORK_VERSION, NETWORKS
from diffem_jax.storage.workdir import Workdir

pytestmark = pytest.mark.usefixtures("quick")

SHIPPED = sorted(usage.shipped_configs())
OWN = """
import dataclasses
import jax
import jax.numpy as jnp
import numpy as np
from diffem_jax.corruptions import Mask
from diffem_jax.data.sources import Dataset

@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns(Mask):
    every: int = 2
    def draw_operator(self, key):
        seen = jnp.arange(self.shape[1]) % self.every == jax.random.randint(key, (), 0, self.every)
        return jnp.broadcast_to(seen[None, :, None], self.mask_shape).astype(jnp.float32)

class Vector:
    def sample(self, key):
        return jax.random.uniform(key, (2,))

def grid(schedule, steps, data_std):
    return jnp.linspace(1.0, 0.0, steps + 1) ** 2

def short(schedule, steps, data_std):
    return jnp.linspace(1.0, 0.0, steps)

def noise(request):
    x = np.random.default_rng(request.seed).normal(size=(request.num_examples or 64, 6, 6, 1)).astype(np.float32)
    return Dataset(x, None, x.shape[1:])

class Lines:
    def __init__(self, workdir, config, resumed):
        self.file = (workdir.root / "lines.txt").open("w")
    def scalars(self, step, values):
        self.file.write(f"{step} {sorted(values)}\\n")
    def image(self, step, name, path):
        pass
    def close(self):
        self.file.close()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A current folder that holds a module of parts; it is on no path."""
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    yield tmp_path
    sys.modules.pop("own_parts", None)


def load(name, *flags):
    return usage.load_config(name, [tuple(flag.split("=", 1)) for flag in flags])


def test_table_is_what_default_holds():
    assert flatten(default()) == {name: json.loads(json.dumps(field.default)) for name, field in FIELDS.items()}
    validate(default())


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("section", ["network", "corruption", "data_corruption"])
def test_every_class_and_field_is_set_by_flag_in_every_shipped_config(name, section):
    for choice in NETWORKS if section == "network" else CORRUPTIONS:
        fields = class_fields(section, choice)
        given = {n: field.default for n, field in fields.items() if field.default is not None}
        config = load(name, f"{section}.name={choice}", "data.path=x", *(f"{n}={value}" for n, value in given.items()))
        validate(config)
        assert dict(config[section]) == {"name": choice} | {n.partition(".")[2]: value for n, value in given.items()}


def test_another_class_drops_the_fields_of_the_one_before():
    flags = ("corruption.name=projection", "corruption.measurements=3")
    for order in (1, -1):
        config = load("own_data", "data.path=x", *flags[::order])
        assert dict(config.corruption) == {"name": "projection", "measurements": 3}
        validate(config)
    assert load("own_data", "corruption.name=pixel_mask").corruption == load("own_data").corruption
    config = load("digits", "network.name=unet", "network.channels=(8,16)")
    assert dict(config.network) == {"name": "unet", "channels": (8, 16)}
    with pytest.raises(UserError, match=r"config\.corruption\.per_channel: unknown field"):
        load("own_data", "corruption.name=projection", "corruption.per_channel=True")


def test_parts_are_found_in_the_current_folder(own):
    parts = """corruption.name=own_parts:Columns corruption.every=3 data.name=own_parts:noise data.split=train
    e_step.time_grid=own_parts:grid writers=own_parts:Lines data.num_examples=40 e_step.batch_size=40"""
    ended = command("--config=digits", "--workdir=run", *small(), *(f"--config.{part}" for part in parts.split()))
    assert ended.code == 0, ended
    assert Path("run/lines.txt").read_text() and restore(Workdir("run").stored_config()).corruption.every == 3


DOES_NOT_FIT = {
    "corruption.name=own_parts:Colums": "cannot be imported",
    "data.name=own_parts:nothing": "config.data.name",
    "m_step.time_law=own_parts:Vector": "config.m_step.time_law",
    "m_step.time_law=own_parts:grid": "config.m_step.time_law",
    "e_step.time_grid=own_parts:short": "config.e_step.time_grid",
    "eval.metrics=own_parts:nothing": "config.eval.metrics",
    "writers=own_parts:nothing": "config.writers",
}


@pytest.mark.parametrize("flag", DOES_NOT_FIT)
def test_part_that_does_not_fit_is_refused(own, flag):
    ended = command("--config=digits", "--workdir=run", "--config.eval.metrics=()", f"--config.{flag}")
    refused(ended, DOES_NOT_FIT[flag])
    assert not (own / "run").exists()


def test_parts_beside_a_config_file_are_found(own, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "beside.py").write_text(OWN.replace("class Columns", "class Rows"))
    text = "def get_config():\n    c = default()\n    c.corruption.name = 'beside:Rows'\n    return c\n"
    (folder / "mine.py").write_text(f"from diffem_jax.config import default\n{text}")
    validate(load(str(folder / "mine.py"), "corruption.every=3"))


def test_a_field_that_a_stored_config_lacks_counts_as_its_default():
    config = load("digits")
    stored = flatten(config)
    del stored["start.num_examples"], stored["stop.rule"]
    with config.unlocked():
        config.corruption.fill_order = 1  # the default of its class
        config.network.normalize = True
    assert differences(config, stored) == []
    override(config, [("corruption.rate", "0.7"), ("start.num_examples", "64")])
    assert differences(config, stored) == ["corruption.rate: 0.5 -> 0.7", "start.num_examples: 0 -> 64"]
    override(config, [("corruption.name", "denoising")])
    assert any("corruption.name" in line for line in differences(config, stored))


def test_command_runs_twice_in_one_process(tmp_path, monkeypatch):
    """As a notebook does; flags of the first are forgotten by the second."""
    for number, more in enumerate((["--config.rounds=-1", "--override"], ["--config.rounds=-2"])):
        monkeypatch.setattr(sys, "argv", ["diffem", "--config=digits", f"--workdir={tmp_path / str(number)}", *more])
        with pytest.raises(SystemExit) as end:
            main.run()
        assert end.value.code == 2 and main._OVERRIDE.value is (number == 0)


@pytest.mark.parametrize("name", RETIRED)
def test_retired_field_of_a_stored_config(name):
    stored = flatten(default())
    assert differences(default(), stored | {name: RETIRED[name]}) == []
    assert flatten(restore(stored | {name: RETIRED[name]})) == stored
    with pytest.raises(UserError, match=rf"config\.{name}: a field of earlier versions.*version that made the run"):
        restore(stored | {name: 7})
    assert differences(default(), stored | {name: 7}) == [f"{name}: 7 -> None"]


def test_stored_config_of_an_earlier_version(tmp_path):
    """Newer fields have their defaults, retired ones that changed nothing are passed over, others are refused with the reason."""
    stored = {"seed": 3, "corruption.name": "gaussian_blur", "corruption.std": 1, "recover": 0, "data.shape": [8, 8, 1]}
    config = restore(stored)
    assert (config.seed, config.corruption.std, config.data.shape, config.rounds) == (3, 1, (8, 8, 1), 4)
    folder = Workdir(tmp_path)
    folder.create()
    for wrong, words in (
        ({"e_step.picard": 8}, "a field of earlier versions"),
        ({"m_step.time_law": "matched"}, "'matched' is not known"),
        ({"corruption.rate": 0.5}, "unknown field"),
    ):
        folder.config.write_text(json.dumps(stored | wrong | {"network_version": NETWORK_VERSION}))
        refused(command(f"--workdir={tmp_path}", "--mode=evaluate"), str(folder.config), words)


def test_platform_that_is_not_there_is_refused_by_a_real_process(tmp_path):
    argv = [sys.executable, "-m", "diffem_jax.main", "--config=digits", f"--workdir={tmp_path / 'run'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "nonsense"}
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stderr.startswith("diffem: ") and "Traceback" not in ended.stderr
    assert "JAX_PLATFORMS: 'nonsense'" in ended.stderr and not list(tmp_path.iterdir())
