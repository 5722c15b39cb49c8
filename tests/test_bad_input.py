"""Bad inputs, most through the command: exit code 2, the field or file named, no traceback, nothing on disk changed."""

import contextlib
import io
import re
import struct
import zipfile
import zlib
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pytest
from faults.command import command, refused, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffem_jax import config as configuration
from diffem_jax import usage
from diffem_jax.config import default, flatten, validate
from diffem_jax.errors import UserError
from diffem_jax.storage.workdir import Workdir

FIELDS = flatten(default())
CHOICES = {name: field.choices for name, field in configuration.FIELDS.items() if field.choices}
RANGES = {name: field.range for name, field in configuration.FIELDS.items() if field.range}
# A word alone is a name, or a list of one name.
TYPED = [name for name, value in FIELDS.items() if configuration.FIELDS[name].kind not in (str, tuple[str, ...])]


@pytest.fixture(autouse=True)
def no_compute(monkeypatch):
    """A bad input that is let through fails here instead of training."""
    monkeypatch.setattr("diffem_jax.run.train.make_run", lambda *args: pytest.fail("compute began"))


def _train(tmp_path, *argv, config="digits"):
    before = snapshot(tmp_path)
    ended = command(f"--config={config}", f"--workdir={tmp_path / 'run'}", *argv)
    assert snapshot(tmp_path) == before
    return ended


def load(name, **fields):
    """What the command makes of flags, before it looks for data; some of each kind go through the command below."""
    config = usage.load_config(name, list(fields.items()))
    validate(config, training=True)
    return config


@contextlib.contextmanager
def little_memory(megabytes=300):
    """What is done inside takes no more memory at its peak, by the kernel's own count."""

    def kilobytes(name):
        return int(next(line for line in Path("/proc/self/status").open() if line.startswith(name)).split()[1])

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now
    except OSError:
        pytest.skip("needs Linux's /proc")
    before = kilobytes("VmRSS")
    yield
    assert kilobytes("VmHWM") - before < megabytes * 1024


# Names -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--num_samples=0", "--sample_seed=x", "--override=maybe", "stray"])
def test_wrong_flag_is_named(tmp_path, flag):
    refused(_train(tmp_path, flag), flag.strip("-").partition("=")[0])


@pytest.mark.parametrize("name", [n for n in FIELDS if not re.match("(data_)?corruption|network", n)])
def test_misspelled_field_suggests_nearest_name(name):
    wrong = name[:-1] + ("q" if name[-1] != "q" else "z") if len(name.split(".")[-1]) > 3 else name + "q"
    with pytest.raises(UserError, match=rf"{re.escape(wrong)}.*did you mean"):
        load("digits", **{wrong: "1"})


@pytest.mark.parametrize(
    ("config", "word"), [("digit", "digits"), ("missing/file.py", "no such file"), ("", "--config"), ("../digits", "")]
)
def test_unknown_config_is_named(tmp_path, config, word):
    refused(_train(tmp_path, config=config), config, word)


IMPORT = "from diffem_jax.config import default"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("def get_config(:\n", "SyntaxError"),
        ("import nothing_of_that_name\n", "nothing_of_that_name"),
        ("x = 1\n", "get_config"),
        ("def get_config():\n    return 1 / 0\n", "division"),
        ("def get_config():\n    return 3\n", "config"),
        (f"{IMPORT}\ndef get_config():\n    c = default()\n    c.runds = 3\n", "runds"),
        (f"{IMPORT}\ndef get_config():\n    c = default()\n    c.rounds = 'x'\n", "rounds"),
        ("from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'rounds': 1})\n", "missing"),
    ],
)
def test_broken_config_file_is_refused_with_the_reason(tmp_path, text, word):
    path = tmp_path / "broken.py"
    path.write_text(text)
    refused(_train(tmp_path, config=str(path)), word)


def test_config_and_workdir_must_be_given(tmp_path):
    refused(command("--workdir=" + str(tmp_path / "run")), "--config", "digits")
    refused(command("--config=digits"), "--workdir")
    assert not (tmp_path / "run").exists()


# Values ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TYPED)
def test_value_of_another_type_on_the_command_line(name):
    for value in ("x!", "nan", "inf") if isinstance(FIELDS[name], float) else ("x!",):
        with pytest.raises(UserError, match=re.escape(name)):
            load("digits", **{name: value})


@pytest.mark.parametrize("name", FIELDS)
def test_value_of_another_type_in_a_file(name):
    for value in (None, {str: 3, bool: "yes", int: 1.5, float: "1", list: "psnr"}[type(FIELDS[name])]):
        config, (*sections, last) = load("digits"), name.split(".")
        with config.unlocked(), config.ignore_type():
            reduce(getitem, sections, config)[last] = value
        with pytest.raises(UserError, match=rf"config\.{re.escape(name)}"):
            validate(config, training=True)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("end", [0, 1])
def test_number_out_of_range(name, end):
    low, high = RANGES[name]
    value = (low - 1 if low <= 0 or isinstance(FIELDS[name], int) else low / 10, high * 10 + 1)[end]
    value = int(value) if isinstance(FIELDS[name], int) else float(value)
    with pytest.raises(UserError, match=rf"config\.{re.escape(name)}.*expected"):
        load("digits", **{name: str(value)})


@pytest.mark.parametrize("name", CHOICES)
def test_unknown_choice_suggests_nearest(name):
    right = CHOICES[name][0]
    with pytest.raises(UserError, match=rf"config\.{re.escape(name)}.*{right}"):
        load("digits", **{name: f"{right}x"})


DO_NOT_FIT = """
schedule.sigma_min=200.0 m_step.accumulate=3 start.name=checkpoint data.name=digitz data.name=tfds: data.split=tset
data.num_examples=100000 data.shape=(8,-8,1) data.shape=('a',) data.shape=(8.5,8) m_step.time_law_beta=((0.0,1.0),)
m_step.time_law_beta=((1.0,),) m_step.time_law_beta=() m_step.time_law_beta=(3.0,3.0) m_step.time_law_beta=(('a','b'),)
m_step.time_law_log_normal=(1.0,) m_step.time_law_log_normal=(0.0,-1.0) m_step.time_law_log_normal=('a',1.0)
m_step.augment=('flipp',) m_step.augment=('hue',) m_step.augment=(1,) eval.metrics=('psnrr',) eval.metrics=(1,)
eval.metrics=('sinkhorn',) corruption.name=pixel_maks corruption.name= corruption.name=:x corruption.name=json:nothing
corruption.rate=1.0 corruption.rate=-0.1 corruption.rate=nan corruption.rate=half corruption.noise_std=-1.0
corruption.noise_std=inf corruption.rat=0.3 network.name=mpl network.features=(0,) network.features=(-4,)
network.features=('a',) network.depth=3 network.embedding=-2 network.embedding=6.5 network.normalize=maybe
network.features=(64,'a') schedule.rho=2 e_step.sampler=ddpmm e_step.sampler=json:dumps
prior.sampler=dimm e_step.batch_size=63 m_step.batch_size=63
"""


@pytest.mark.parametrize("field", DO_NOT_FIT.split())
def test_value_that_does_not_fit(tmp_path, field):
    refused(_train(tmp_path, f"--config.{field}"), field.partition("=")[0].split(".")[-1])


DO_NOT_FIT_EACH_OTHER = {
    "e_step.guidance=2.0": "m_step.condition_dropout",
    "method=em_mmps e_step.guidance=2.0": "does not use it",
    "method=ambient m_step.augment=('flip',)": "m_step.augment",
    "data.name=observations": "data.path",
    "data.name=folder": "data.path",
    "data.name=arrays data.path=/nowhere/x.npy": "/nowhere/x.npy",
    "data.name=folder data.path=/nowhere": "/nowhere",
}


@pytest.mark.parametrize("fields", DO_NOT_FIT_EACH_OTHER)
def test_fields_that_do_not_fit_each_other(tmp_path, fields):
    refused(_train(tmp_path, *(f"--config.{field}" for field in fields.split())), DO_NOT_FIT_EACH_OTHER[fields])


HUGE = """
digits network.features=(1000000,1000000) network.embedding=1000000000 m_step.batch_size=1000000000 start.rank=1000000
digits e_step.batch_size=1000000000 e_step.steps=1000000000 e_step.shard_size=1000000000000 start.components=1000000
digits rounds=1000000000000000000000
digits:projection corruption.measurements=1000000000 corruption.measurements=1000000
manifold data.num_examples=1000000000000 data.shape=(1000000000,) data.shape=(10000000,)
volumes data.num_examples=1000000000 data.shape=(10000,10000,10000,1)
"""
HUGE_FIELDS = [(name, field) for name, *fields in map(str.split, HUGE.strip().splitlines()) for field in fields]


@pytest.mark.parametrize(("config", "field"), HUGE_FIELDS)
def test_huge_sizes_are_refused_in_little_memory(tmp_path, config, field):
    with little_memory():
        refused(_train(tmp_path, f"--config.{field}", "--config.eval.metrics=()", config=config), "config.")


# Observations ----------------------------------------------------------------------------------------------------------

N = 6
Y = np.random.default_rng(0).uniform(-2, 2, (N, 8, 8, 1)).astype(np.float32)
MASK = (np.random.default_rng(1).uniform(size=(N, 8, 8, 1)) < 0.5).astype(np.float32)


def _own(tmp_path, path, *argv):
    fields = ("data.shape=(8,8,1)", "data.name=observations", f"data.path={path}", "eval.metrics=()")
    return _train(tmp_path, *(f"--config.{field}" for field in fields), *argv)


def test_a_bomb_is_refused_in_little_memory(tmp_path):
    """Other files that are no observations are in tests/data."""
    path, header = tmp_path / "obs.npz", {"descr": "<f4", "fortran_order": False, "shape": (2**24, 8, 8, 1)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("y.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(160):
            member.write(bytes(2**20))
    refused(_own(tmp_path, tmp_path / "none.npz"), "none.npz")  # imports are no part of what follows
    with little_memory(60):  # unpacked it would be 160 MB
        refused(_own(tmp_path, path), str(path))


def _png(array=None):
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8) if array is None else array).save(file, "PNG")
    return file.getvalue()


def _empty_png(width, height):
    """A header, and hardly any pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(10_000))), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


BAD_IMAGES = {
    "text": b"hello",
    "cut off": _png()[:-30],
    "no pixels": _empty_png(0, 8),
    "a bomb": _empty_png(50_000, 50_000),
    "a small bomb": _empty_png(9_000, 9_000),
    "another size": _png(np.zeros((9, 8, 3), np.uint8)),
}


@pytest.mark.parametrize("name", ["folder", "observations"])
@pytest.mark.parametrize("case", BAD_IMAGES)
def test_images_that_do_not_decode(tmp_path, monkeypatch, case, name):
    """The last of four; refused in little memory, and nothing of the others is kept."""
    monkeypatch.setenv("DIFFEM_DATA_DIR", str(tmp_path / "cache"))
    images = tmp_path / "mine" / ("images" if name == "observations" else "")
    for folder in (images, tmp_path / "mine" / "masks")[: 1 + (name == "observations")]:
        folder.mkdir(parents=True)
        for i in range(4):
            (folder / f"{i}.png").write_bytes(_png(np.full((8, 8), 255, np.uint8) if folder != images else None))
    (images / "3.png").write_bytes(BAD_IMAGES[case])
    before = snapshot(tmp_path / "mine")
    flags = [f"--config.data.name={name}", f"--config.data.path={tmp_path / 'mine'}", "--config.eval.metrics=()"]
    with little_memory():
        refused(command("--config=own_data", *flags, f"--workdir={tmp_path / 'run'}"), str(images / "3.png"))
    assert snapshot(tmp_path / "mine") == before
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and str(path) not in before]


def test_fields_that_do_not_fit_the_observations(tmp_path):
    path = tmp_path / "obs.npz"
    np.savez(path, y=Y, mask=MASK)
    for field in ("data.num_examples=7", "corruption.name=noise", "method=oracle", "eval.metrics=('psnr',)"):
        refused(_own(tmp_path, path, f"--config.{field}"), field.partition("=")[0].split(".")[0])
    refused(_own(tmp_path, path, "--config.data.shape=(4,4,1)"), "obs.npz")


SHARED = [HealthCheck.function_scoped_fixture]
FAST = settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=SHARED)


@FAST
@given(at=st.integers(0, 10_000), flip=st.integers(1, 255), length=st.integers(1, 64))
def test_garbled_headers_never_end_in_a_traceback(tmp_path, at, flip, length):
    """Either refused, or still readable: then the wrong number of masks is refused."""
    path = tmp_path / "obs.npz"
    np.savez(path, y=Y, mask=MASK[:-1])
    data = bytearray(path.read_bytes())
    first = at % len(data)
    for i in range(first, min(len(data), first + length)):
        data[i] ^= flip
    path.write_bytes(bytes(data))
    refused(_own(tmp_path, path), str(path))


@FAST
@given(
    shape=st.lists(st.integers(0, 9), max_size=5).map(tuple).filter(lambda s: s[1:] != (8, 8, 1) or s[0] != N),
    dtype=st.sampled_from(["f2", "f4", "f8", "u1", "i4", "?", "c8", "U2"]),
)
def test_any_wrong_shape_is_refused(tmp_path, shape, dtype):
    path = tmp_path / "obs.npz"
    np.savez(path, y=np.zeros(shape, dtype), mask=MASK)
    refused(_own(tmp_path, path), str(path))


# Work directories ------------------------------------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path):
    folder = Workdir(tmp_path / "run")
    folder.create()
    folder.check_config(default(), False)
    return folder.root


@pytest.mark.parametrize("change", ["m_step.learning_rate=0.5", "seed=1", "schedule.sigma_max=10.0", "start.rank=2"])
def test_another_config_in_a_used_folder_names_the_field(tmp_path, started, change):
    ended = _train(tmp_path, "--config.eval.metrics=()", f"--config.{change}")
    refused(ended, change.split("=")[0], "->", "--override")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "\x00\x01", '{"rounds": "x"}', '{"nothing.at.all": 1}'])
@pytest.mark.parametrize("mode", ["sample", "evaluate"])
def test_garbled_config_of_a_run(tmp_path, started, text, mode):
    (started / "config.json").write_text(text)
    before = snapshot(tmp_path)
    refused(command(f"--workdir={started}", f"--mode={mode}", f"--output={tmp_path / 'o.npz'}"), "config.json")
    assert snapshot(tmp_path) == before


def test_workdir_that_is_a_file_or_below_one(tmp_path):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        before = snapshot(tmp_path)
        refused(command("--config=digits", "--config.eval.metrics=()", f"--workdir={workdir}"), str(workdir))
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("mode", ["sample", "evaluate", "report"])
def test_modes_in_an_empty_or_untrained_folder(tmp_path, started, mode):
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "obs.npz", y=Y, mask=MASK)
    before = snapshot(tmp_path)
    for folder in (tmp_path / "empty", tmp_path / "none", *([started] if mode != "report" else ())):
        flags = [f"--workdir={folder}", f"--mode={mode}", f"--output={tmp_path / 'o.npz'}"]
        refused(command(*flags, f"--observations={tmp_path / 'obs.npz'}"), str(folder))
        if folder != started:
            refused(command(*flags), str(folder))
    assert snapshot(tmp_path) == before


def test_output_that_cannot_be_written_is_refused_before_any_compute(tmp_path, started):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.npz").mkdir()
    before = snapshot(tmp_path)
    file = tmp_path / "file"
    for output in (file / "o.npz", file / "a" / "b", "/dev/null/o.npz", tmp_path / "folder.npz"):
        refused(command(f"--workdir={started}", "--mode=sample", f"--output={output}"), "--output")
    refused(command(f"--workdir={started}", "--mode=sample"), "--output")
    assert snapshot(tmp_path) == before
