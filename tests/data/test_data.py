"""Sources and a user's own observations: what is promised of good files, and what is said of bad ones."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.command import python
from PIL import Image
from sklearn.datasets import load_digits, load_wine

from diffem_jax import data
from diffem_jax.build.parts import make_corruption
from diffem_jax.corruptions import CompressedSensing, Denoising, PixelMask, Projection, VaryingNoise
from diffem_jax.data import images, npz
from diffem_jax.errors import UserError
from diffem_jax.storage import rows


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


SMALL: dict[str, Any] = {
    "manifold": {"num_examples": 2000},
    "digits": {},
    "patches": {"num_examples": 600, "shape": (16, 16, 3)},
    "breast_cancer": {},
    "wine": {},
    "series": {"num_examples": 300},
    "volumes": {"num_examples": 64},
}


@pytest.mark.parametrize("name", SMALL)
def test_sources_are_deterministic_and_scaled(name, cache):
    one, two = (data.load(name, cache_dir=cache, **SMALL[name]) for _ in range(2))
    assert np.array_equal(one.x, two.x)
    assert one.x.dtype == np.float32 and one.x.shape[1:] == one.shape == one.test_x.shape[1:]
    assert 0.3 < np.std(one.x) < 1.6
    if name not in ("wine", "breast_cancer"):
        assert np.abs(one.x).max() <= 2
    if one.labels is not None:
        assert one.labels.shape == (len(one.x),) and one.test_labels.shape == (len(one.test_x),)


@pytest.mark.parametrize("name", ["manifold", "series", "volumes", "patches", "wine"])
def test_fewer_examples_are_the_first_ones(name, cache):
    kwargs = {**SMALL[name], "num_examples": 40}
    assert np.array_equal(data.load(name, **kwargs).x, data.load(name, **{**kwargs, "num_examples": 60}).x[:40])


def test_digits_are_scikit_learns(cache):
    ours = data.load("digits", split="all", cache_dir=cache)
    grey = np.round((ours.x[..., 0] + 2) * 4).astype(int)
    truth = load_digits()
    key = sorted((label, *image.ravel()) for image, label in zip(grey, ours.labels, strict=True))
    assert key == sorted((label, *image.ravel()) for image, label in zip(truth.images, truth.target, strict=True))
    assert data.load("digits", split="test", cache_dir=cache).x.shape[0] == 297


@pytest.mark.parametrize("size", [16, 32])
def test_patches_of_tests_share_no_pixels_with_training(size):
    train, test = images.patches("train", None, (size, size, 3)), images.patches("test", None, (size, size, 3))
    assert len(train) > 50_000
    # A crop's left column and right column: were the regions to overlap, textured columns would appear in both.
    textured = lambda columns: columns[columns.std((1, 2)) > 20]  # noqa: E731
    columns = lambda x: {c.tobytes() for side in (0, size // 2) for c in textured(x[:, :, side])}  # noqa: E731
    assert not columns(train) & columns(test) and len(columns(test)) > 100


def test_tables_are_standardised():
    table = data.load("wine", split="all")
    assert np.allclose(table.x.mean(0), 0, atol=1e-5) and np.allclose(table.x.std(0), 1, atol=1e-4)
    columns = load_wine().data
    back = table.x * columns.std(0) + columns.mean(0)
    assert np.allclose(np.sort(back, 0), np.sort(columns, 0), rtol=1e-3, atol=1e-3)


def test_arrays_are_mapped_and_grey_levels_scaled(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(size=(50, 4, 4, 1)).astype(np.float32)
    np.savez(tmp_path / "plain.npz", x=x, labels=np.arange(50))
    np.savez_compressed(tmp_path / "packed.npz", x=x)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    np.save(tmp_path / "grey.npy", np.arange(256, dtype=np.uint8).reshape(64, 4))
    plain = data.load("arrays", path=tmp_path / "plain.npz")
    assert np.array_equal(plain.x, x) and np.array_equal(plain.labels, np.arange(50))
    for other in ("packed.npz", "x.npy"):
        assert np.array_equal(data.load("arrays", path=tmp_path / other).x, plain.x)
    whole = data.load("arrays", path=tmp_path / "grey.npy").x
    monkeypatch.setattr(rows, "IN_MEMORY_BYTES", 0)
    lazy = data.load("arrays", path=tmp_path / "grey.npy", num_examples=60).x
    assert isinstance(lazy, data.Rows) and lazy.shape == (60, 4)
    lazy_floats = data.load("arrays", path=tmp_path / "plain.npz").x
    assert isinstance(lazy_floats.stored, np.memmap) and np.array_equal(lazy_floats[4:9], x[4:9])
    assert whole.min() == -2 and np.isclose(whole.max(), 2)
    assert np.array_equal(lazy[np.array([3, 1])], whole[[3, 1]]) and np.array_equal(lazy[-1], whole[59])
    assert np.array_equal(np.asarray(lazy), whole[:60]) and np.array_equal(lazy[2:4], whole[2:4])


def _write_images(folder, count, shape):
    folder.mkdir()
    for i in range(count):
        levels = np.random.default_rng(i).integers(0, 256, shape, np.uint8)
        Image.fromarray(levels).save(folder / f"{i:03d}.png")


def test_folder_is_converted_once_and_again_when_damaged(tmp_path, cache):
    _write_images(tmp_path / "photos", 5, (20, 16, 3))
    load = lambda **k: data.load("folder", path=tmp_path / "photos", cache_dir=tmp_path / "c", **k)  # noqa: E731
    x = np.array(load().x)
    assert x.shape == (5, 20, 16, 3)
    with Image.open(tmp_path / "photos" / "002.png") as image:
        assert np.allclose((x[2] + 2) * 255 / 4, np.asarray(image), atol=1e-3)
    assert load(shape=(8, 8, 1)).x.shape == (5, 8, 8, 1)
    (entry,) = [f for f in (tmp_path / "c" / "images").iterdir() if np.load(f / "x.npy").shape == (5, 20, 16, 3)]
    (entry / "x.npy").write_bytes((entry / "x.npy").read_bytes()[:-7] + b"damaged")
    assert np.array_equal(load().x, x) and [f for f in entry.parent.iterdir() if f.name.endswith(".corrupt")]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "manifold", "shape": (5, 5)}, r"\(D,\)"),
        ({"name": "wine", "num_examples": 10_000}, "has 143"),
        ({"name": "series", "num_examples": 0}, "at least 1"),
        ({"name": "patches", "shape": (16, 8, 3)}, "S, S, 3"),
        ({"name": "tfds:../etc"}, "tfds name"),
        ({"name": "tfds:cifar10", "cache_dir": "no/cache"}, "python -m diffem_jax.data.prepare cifar10"),
    ],
)
def test_wrong_requests_say_what_to_do(kwargs, message):
    with pytest.raises(UserError, match=message):
        data.load(**kwargs)


# A user's own observations.

N, SHAPE = 12, (6, 5, 3)
MASKED = PixelMask(shape=SHAPE)


def _good():
    rng = np.random.default_rng(1)
    mask = rng.integers(0, 2, (N, 6, 5, 1)).astype(np.float32)
    mask[:, 0, 0] = 1
    return {"y": rng.normal(size=(N, *SHAPE)).astype(np.float32), "mask": mask}


def _load(folder, arrays, corruption=MASKED):
    np.savez(folder / "o.npz", **arrays)
    return data.load_observations(folder / "o.npz", corruption=corruption)


def _changed(**changes):
    arrays = _good()
    for name, change in changes.items():
        arrays[name] = change(arrays.get(name))
    return {k: v for k, v in arrays.items() if v is not None}


def _set(index, value):
    def change(array):
        array = array.copy()
        array[index] = value
        return array

    return change


def test_large_files_stay_on_disk(tmp_path, monkeypatch):
    arrays = {"y": _good()["y"].astype(np.float64), "mask": _good()["mask"].astype(bool)}
    whole = _load(tmp_path, arrays)
    monkeypatch.setattr(rows, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(rows, "CHUNK_BYTES", 1000)
    lazy = _load(tmp_path, arrays)
    assert isinstance(lazy.y, data.Rows) and isinstance(lazy.operator, data.Rows)
    index = np.array([7, 0, 3])
    assert np.array_equal(lazy.y[index], whole.y[index]) and np.array_equal(lazy.operator[index], whole.operator[index])
    seen = _load(tmp_path, {"y": _good()["y"]}, Denoising(shape=SHAPE)).y
    assert isinstance(seen, data.Rows) and np.array_equal(seen[index], _good()["y"][index])


def test_memory_does_not_grow_with_the_file(tmp_path):
    code = """
import resource, sys, pathlib
import numpy as np
from diffem_jax import data
from diffem_jax.corruptions import PixelMask
from diffem_jax.storage import rows
rows.IN_MEMORY_BYTES = 0
rows.CHUNK_BYTES, rows.RELEASE_BYTES = 2**20, 2**22
def peak(count):
    path = pathlib.Path(sys.argv[1]) / "o.npz"
    y, mask = np.zeros((count, 32, 32, 3), np.float32), np.ones((count, 32, 32, 1), np.float32)
    np.savez(path, y=y, mask=mask)
    del y, mask
    seen = data.load_observations(path, corruption=PixelMask(shape=(32, 32, 3)))
    for batch in np.random.default_rng(0).permutation(count).reshape(-1, 50):
        seen.y[batch], seen.operator[batch]
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) * 1024
small, large = peak(500), peak(10_000)
print(large - small)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    assert int(python(code, tmp_path)) < 40e6  # the file is 164 MB


def test_one_operator_for_all_of_projections_and_none_for_a_corruption_without_one(tmp_path):
    corruption = Projection(shape=(5,), measurements=2)
    matrix = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    observation = _load(tmp_path, {"y": np.zeros((N, 2), np.float32), "operator": matrix}, corruption)
    assert observation.operator.shape == (N, 2, 5) and np.array_equal(observation.operator[4], matrix)
    with pytest.raises(UserError, match="Denoising draws no operator"):
        _load(tmp_path, _good(), Denoising(shape=SHAPE))


def test_examples_with_nothing_seen_are_counted(tmp_path):
    with pytest.warns(UserWarning, match="3 of 12 examples have nothing seen"):
        _load(tmp_path, _changed(mask=_set(slice(2, 5), 0)))


BAD = {  # further ones: tests/data/test_odd_files.py, and any shape and type: tests/test_bad_input.py
    "NaN": (lambda: _changed(y=_set((7, 0, 0, 1), np.nan)), "1 of 1080 entries are NaN.*first in example 7"),
    "infinity": (lambda: _changed(y=_set((slice(3, 5), 0, 0), np.inf)), "6 of 1080.*first in example 3"),
    "rank": (lambda: _changed(y=lambda y: y[..., 0]), r"\(12, 6, 5\); expected \('N', 6, 5, 3\)"),
    "strings": (lambda: _changed(y=lambda y: y.astype(str)), "dtype <U"),
    "ragged": (lambda: _changed(y=lambda y: np.array([y[0], None], object)), "pickled objects"),
    "huge values": (lambda: _changed(y=_set((0, 0, 0), 1e30)), "expected"),
    "bool": (lambda: _changed(y=lambda y: y > 0), "dtype bool"),
    "empty": (lambda: _changed(y=lambda y: y[:0], mask=lambda m: m[:0]), "at least one example"),
    "no y": (lambda: _changed(y=lambda y: None), "no array 'y'"),
    "mask of zeros": (lambda: _changed(mask=np.zeros_like), "nothing is seen in any of 12"),
    "mask values": (lambda: _changed(mask=_set((4, 1, 1), 0.5)), "value 0.5 in example 4"),
    "mask NaN": (lambda: _changed(mask=_set((4, 1, 1), np.nan)), "value nan in example 4"),
    "mask rank": (lambda: _changed(mask=lambda m: m[..., 0]), r"\(12, 6, 5\); expected \(12, 6, 5, 1\)"),
    "counts": (lambda: _changed(mask=lambda m: m[:9]), r"9.*expected 12"),
    "grey levels": (lambda: _changed(y=lambda y: np.abs(y) * 100), "y / 255"),
    "two operators": (lambda: _changed(operator=lambda _: np.zeros((N, 6, 5, 1))), "expected 'mask', which PixelMask"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_observations_are_refused(tmp_path, case):
    make, message = BAD[case]
    with pytest.raises(UserError, match=rf"o\.npz.*{message}"):
        _load(tmp_path, make())


def _zip(path, name, content, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)


def _npy(*shape):
    """A header that says so, and six numbers."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(24)


def _spoilt(path, change):
    np.savez_compressed(path, **_good())
    path.write_bytes(change(path.read_bytes()))


def _twice(path):
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning):
        for _ in range(2):
            archive.writestr("y.npy", _npy(2, 3))


HOSTILE = {
    "not a zip": (lambda p: p.write_bytes(b"hello"), "not an .npz"),
    "truncated": (lambda p: _spoilt(p, lambda data: data[:-300]), "not an .npz|damaged"),
    "garbled": (lambda p: _spoilt(p, lambda data: data[:1500] + bytes(200) + data[1700:]), "damaged"),
    "traversal": (lambda p: _zip(p, "../y.npy", _npy(2, 3)), "plain names"),
    "absolute": (lambda p: _zip(p, "/tmp/y.npy", _npy(2, 3)), "plain names"),
    "drive": (lambda p: _zip(p, "C:y.npy", _npy(2, 3)), "plain names"),
    "no suffix": (lambda p: _zip(p, "y", _npy(2, 3)), "o.npz"),
    "twice": (_twice, "o.npz"),
    "folder": (lambda p: p.mkdir(), "o.npz"),
    "no array": (lambda p: _zip(p, "y.npy", b"import os"), "not a readable .npy"),
    "header too large": (lambda p: _zip(p, "y.npy", _npy(10**9, 9)), "cut off"),
    "packed header": (lambda p: _zip(p, "y.npy", _npy(10**9, 9), zipfile.ZIP_DEFLATED), "not fit"),
    "missing": (lambda p: None, "no such file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(tmp_path, case):
    make, message = HOSTILE[case]
    make(tmp_path / "o.npz")
    with pytest.raises(UserError, match=message):
        data.load_observations(tmp_path / "o.npz", corruption=MASKED)


def test_files_that_would_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "MAX_BYTES", 1000)
    np.savez_compressed(tmp_path / "o.npz", **_good())
    with pytest.raises(UserError, match="declares"):
        data.load_observations(tmp_path / "o.npz", corruption=MASKED)


def test_no_pickle_is_ever_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    with pytest.raises(UserError, match="pickled objects"):
        _load(tmp_path, {"y": np.array([Trap()], dtype=object)})
    assert not (tmp_path / "trapped").exists()


def test_masks_of_a_folder_that_lack_or_are_none_are_refused(tmp_path):
    _write_images(tmp_path / "images", 5, (8, 7, 3))
    (tmp_path / "masks").mkdir()
    for i in range(4):
        Image.fromarray(np.zeros((8, 7), np.uint8)).save(tmp_path / "masks" / f"{i:03d}.png")
    corruption = PixelMask(shape=(8, 7, 3))
    with pytest.raises(UserError, match=r"no mask for 1 of 5 images, the first 004\.png"):
        data.load_observations(tmp_path, corruption=corruption, cache_dir=tmp_path / "c")
    Image.fromarray(np.full((8, 7), 99, np.uint8)).save(tmp_path / "masks" / "004.png")
    with pytest.raises(UserError, match=r"004\.png: grey levels"):
        data.load_observations(tmp_path, corruption=corruption, cache_dir=tmp_path / "c")


def test_every_observation_may_have_its_own_noise(tmp_path):
    """The file's noise_std reaches the solves; without the corruption's consent it is refused."""
    std = np.linspace(0.05, 0.4, N).astype(np.float32)
    corruption = VaryingNoise(shape=SHAPE, of=("pixel_mask", ()), noise_std=0.05)
    for given in (std, std[:, None, None, None]):
        observation = _load(tmp_path, _good() | {"noise_std": given}, corruption)
        mask, level = observation.operator
        assert np.array_equal(level, std) and np.array_equal(mask, _good()["mask"])
    r = observation.y[3]
    solved = np.asarray(corruption.solve_gram(r, (mask[3], level[3]), np.float32(1.0)))
    assert np.allclose(solved, r / (1 + std[3] ** 2), atol=1e-5)
    with pytest.raises(UserError, match=r"noise_std_max=0\.4 "):
        _load(tmp_path, _good() | {"noise_std": std})
    with pytest.raises(UserError, match="standard deviations > 0"):
        _load(tmp_path, _good() | {"noise_std": np.where(std > 0.3, 0, std)}, corruption)
    with pytest.raises(UserError, match="no array 'noise_std'"):
        _load(tmp_path, _good(), corruption)


def test_a_range_of_noise_in_the_config_wraps_the_corruption():
    section = {"name": "pixel_mask", "rate": 0.3, "noise_std": 0.01, "noise_std_max": 0.0}
    assert make_corruption("corruption", section, SHAPE) == PixelMask(shape=SHAPE, rate=0.3)
    wide = make_corruption("corruption", {**section, "noise_std_max": 0.5}, SHAPE)
    assert (wide.noise_std, wide.noise_std_max, wide.of) == (0.01, 0.5, PixelMask(shape=SHAPE, rate=0.3))
    with pytest.raises(UserError, match="linear"):
        make_corruption("corruption", {"name": "jpeg", "noise_std": 0.1, "noise_std_max": 0.5}, SHAPE)


def test_indices_of_a_file_are_checked(tmp_path):
    corruption = CompressedSensing(shape=(6,))
    good = {"y": np.ones((2, 3)), "signs": np.ones((2, 6)), "indices": np.array([[0, 1, 2], [3, 4, 5]])}
    wrong = {"from 0": good["indices"] - 1, "below 6": good["indices"] + 1, "fractions": good["indices"] + 0.5}
    for message, indices in wrong.items():
        with pytest.raises(UserError, match=message):
            _load(tmp_path, good | {"indices": indices}, corruption)
    for message, signs in (("expected 2", np.ones((3, 6))), ("NaN", np.full((2, 6), np.nan))):
        with pytest.raises(UserError, match=message):
            _load(tmp_path, good | {"signs": signs}, corruption)
