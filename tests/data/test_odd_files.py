"""Files as people bring them: each is read right, or refused by a message that names the file, the value and the cure."""

import numpy as np
import pytest
from faults.command import command, refused, snapshot
from PIL import Image
from sklearn.datasets import load_digits

from diffem_jax import usage
from diffem_jax.build.problem import load_problem
from diffem_jax.corruptions import PixelMask
from diffem_jax.data import load_observations
from diffem_jax.errors import UserError
from diffem_jax.storage.rows import white_level

N = 40
DIGITS = (load_digits().images[:N, :, :, None] / 4 - 2).astype(np.float32)
RNG = np.random.default_rng(7)
MASK = (RNG.random((N, 8, 8, 1)) > 0.5).astype(np.float32)
Y = (DIGITS + 0.01 * RNG.normal(size=DIGITS.shape)).astype(np.float32) * MASK
COLOUR = np.concatenate([DIGITS, DIGITS[::-1], DIGITS], -1)
CHANNEL_MASK = (RNG.random(COLOUR.shape) > 0.5).astype(np.float32)
GREY = np.round((DIGITS + 2) / 4 * 255).astype(np.uint8)
K_SPACE = np.fft.fft2(DIGITS[..., 0], norm="ortho")
K_SPACE = np.stack([K_SPACE.real, K_SPACE.imag], -1).astype(np.float32)
LINES = np.ones((N, 8, 8, 1), np.float32)
RAW_TABLE = RNG.normal(size=(N, 4)) * [1, 1e-3, 1e4, 1] + [0, 0, 5e4, 3]
FOURIER = ("corruption.name=fourier_mask", "data.shape=(8,8,1)")


def problem_of(path, *fields):
    flags = [("data.path", str(path)), ("data.cache_dir", str(path.parent / "cache"))]
    return load_problem(usage.load_config("own_data", [*flags, *(tuple(f.split("=", 1)) for f in fields)]))


def seen_values(problem):
    y, mask = np.asarray(problem.observations.y), np.asarray(problem.observations.operator)
    return y[np.broadcast_to(mask > 0, y.shape)]


def hidden(y, mask, value):
    return np.where(mask > 0, y, np.float32(value))


READ = {
    "plain": ({"y": Y, "mask": MASK}, (), (8, 8, 1), ""),
    "mask of bool": ({"y": Y, "mask": MASK > 0}, (), (8, 8, 1), ""),
    "float64": ({"y": Y.astype(np.float64), "mask": MASK.astype(np.int64)}, (), (8, 8, 1), ""),
    "float16": ({"y": Y.astype(np.float16), "mask": MASK}, (), (8, 8, 1), ""),
    "big-endian": ({"y": Y.astype(">f4"), "mask": MASK.astype(">f4")}, (), (8, 8, 1), ""),
    "hidden NaN": ({"y": hidden(Y, MASK, np.nan), "mask": MASK}, (), (8, 8, 1), ""),
    "NaN instead of a mask": ({"y": hidden(Y, MASK, np.nan)}, (), (8, 8, 1), "NaN are taken as hidden"),
    "nothing hidden, no mask": ({"y": DIGITS + 0.01}, (), (8, 8, 1), "all of 'y' is taken as seen"),
    "uint8": ({"y": GREY, "mask": MASK}, (), (8, 8, 1), ""),
    "uint16": ({"y": GREY.astype(np.uint16) * 257, "mask": MASK}, (), (8, 8, 1), "0..65535"),
    "12 bits in uint16": ({"y": GREY.astype(np.uint16) * 16, "mask": MASK}, (), (8, 8, 1), "0..4095"),
    "channels first": ({"y": Y.transpose(0, 3, 1, 2), "mask": MASK.transpose(0, 3, 1, 2)}, (), (8, 8, 1), "channels first"),
    "no channel axis": ({"y": Y[..., 0], "mask": MASK[..., 0]}, (), (8, 8, 1), "grey images"),
    "series, said so": ({"y": DIGITS[..., 0], "mask": np.ones((N, 8, 1))}, ("data.shape=(8,8)",), (8, 8), ""),
    "one image without N": ({"y": Y[0], "mask": MASK[0]}, ("data.shape=(8,8,1)",), (8, 8, 1), "without the axis N"),
    "mask per channel": ({"y": COLOUR, "mask": CHANNEL_MASK}, (), (8, 8, 3), "per_channel=True"),
    "unit range": ({"y": (DIGITS + 2) / 4, "mask": MASK}, (), (8, 8, 1), ""),
    "0..40, scaled": ({"y": (Y + 2) * 10, "mask": MASK}, ("data.scale=0.05",), (8, 8, 1), ""),
    "signed integers, scaled": ({"y": np.round(Y * 500).astype(np.int16), "mask": MASK}, ("data.scale=0.002",), (8, 8, 1), ""),
    "k-space of 1e-5, scaled": ({"y": K_SPACE * 1e-5, "mask": LINES}, (*FOURIER, "data.scale=1e5"), (8, 8, 1), ""),
    "odd and not square": ({"y": RNG.normal(size=(7, 9, 14, 1)), "mask": np.ones((7, 9, 14, 1))}, (), (9, 14, 1), ""),
    "a row": ({"y": RNG.normal(size=(7, 1, 40, 1)), "mask": np.ones((7, 1, 40, 1))}, (), (1, 40, 1), ""),
    "a series": ({"y": RNG.normal(size=(7, 48, 1)), "mask": np.ones((7, 48, 1))}, (), (48, 1), ""),
    "one example": ({"y": Y[:1], "mask": MASK[:1]}, (), (8, 8, 1), ""),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_odd_arrays_are_read_right(tmp_path, case):
    arrays, fields, shape, note = READ[case]
    np.savez(tmp_path / "obs.npz", **arrays)
    before = snapshot(tmp_path)
    problem = problem_of(tmp_path / "obs.npz", *fields)
    assert problem.setup.shape == shape and np.isfinite(problem.observations.y).all()
    assert note in " ".join(problem.notes) and bool(note) == bool(problem.notes)
    assert snapshot(tmp_path) == before
    if shape == (8, 8, 1) and "scaled" not in case and case != "unit range":
        y, mask = np.asarray(problem.observations.y), np.asarray(problem.observations.operator)
        expected = np.where(mask > 0, DIGITS[: len(y)], 0)
        assert np.abs(y - expected).max() < 0.06
        if case != "nothing hidden, no mask":
            assert np.array_equal(mask, MASK[: len(y)])


REFUSED = {
    "0..40": ({"y": (DIGITS + 2) * 10, "mask": MASK}, (), "set config.data.scale=0.05"),
    "k-space of 1e-5": ({"y": K_SPACE * 1e-5, "mask": LINES}, FOURIER, "less than the noise.*set config.data.scale="),
    "tiny, with tiny noise": ({"y": Y * 1e-4, "mask": MASK}, ("corruption.noise_std=0.000001",), "config.data.scale="),
    "raw columns": ({"y": RAW_TABLE, "mask": np.ones((N, 4))}, ("corruption.name=group_mask",), "its .csv"),
    "zeros instead of a mask": ({"y": Y}, (), "no array 'mask' in it, and .*% of 'y' is exactly 0"),
    "NaN in single channels": ({"y": hidden(COLOUR, CHANNEL_MASK, np.nan)}, (), "per_channel=True"),
    "mask of 255": ({"y": Y, "mask": (MASK * 255).astype(np.uint8)}, (), "value 255"),
    "soft mask": ({"y": Y, "mask": np.maximum(MASK, 0.001)}, (), "value 0.001"),
    "mask without channel axis": ({"y": Y, "mask": MASK[..., 0]}, (), "axis of length 1"),
    "one image without N": ({"y": Y[0], "mask": MASK[0]}, (), r"may be one image.*data.shape=\(8, 8, 1\)"),
    "complex": ({"y": Y + 1j, "mask": MASK}, FOURIER, "two channels"),
    "signed integers": ({"y": np.round(Y * 500).astype(np.int16), "mask": MASK}, (), "set config.data.scale"),
    "noise of each": ({"y": Y, "mask": MASK, "noise_std": np.ones(N)}, (), "noise_std_max=1 "),
    "pickled": ({"y": np.array([Y[0], None], object), "mask": MASK}, (), "pickled objects"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_odd_arrays_are_refused_with_the_cure(tmp_path, case):
    arrays, fields, message = REFUSED[case]
    np.savez(tmp_path / "obs.npz", **arrays)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        problem_of(tmp_path / "obs.npz", *fields)
    assert "obs.npz" in str(error.value) and snapshot(tmp_path) == before


LEVELS, SEEN = GREY[..., 0], (MASK[..., 0] * 255).astype(np.uint8)


def rgba(grey, alpha):
    return np.dstack([grey] * 3 + [alpha])


def _exif(folder):
    data = Image.Exif()
    data[0x0112] = 6
    Image.fromarray(LEVELS[0]).save(folder / "000.jpg", exif=data)


IMAGES = {
    "grey": (lambda i: LEVELS[i], lambda i: SEEN[i], ".png", (), (8, 8, 1), ""),
    "upper-case suffix": (lambda i: LEVELS[i], lambda i: SEEN[i], ".PNG", (), (8, 8, 1), ""),
    "tiff": (lambda i: LEVELS[i], lambda i: SEEN[i], ".tif", (), (8, 8, 1), ""),
    "16 bits": (lambda i: LEVELS[i].astype(np.uint16) * 257, lambda i: SEEN[i], ".png", (), (8, 8, 1), "0..65535"),
    "12 bits in 16": (lambda i: LEVELS[i].astype(np.uint16) * 16, lambda i: SEEN[i], ".png", (), (8, 8, 1), "0..4095"),
    "masks of 0 and 1": (lambda i: LEVELS[i], lambda i: SEEN[i] // 255, ".png", (), (8, 8, 1), ""),
    "masks of 1 bit": (lambda i: LEVELS[i], lambda i: SEEN[i] > 0, ".png", (), (8, 8, 1), ""),
    "opaque masks": (lambda i: LEVELS[i], lambda i: rgba(SEEN[i], np.full((8, 8), 255, np.uint8)), ".png", (), (8, 8, 1), ""),
    "opaque images": (lambda i: rgba(LEVELS[i], np.full((8, 8), 255, np.uint8)), lambda i: SEEN[i], ".png", (), (8, 8, 3), ""),
    "alpha is the mask": (lambda i: rgba(LEVELS[i], SEEN[i]), None, ".png", ("data.alpha=mask",), (8, 8, 3), ""),
    "alpha dropped": (lambda i: rgba(LEVELS[i], SEEN[i]), lambda i: SEEN[i], ".png", ("data.alpha=drop",), (8, 8, 3), ""),
    "floats": (lambda i: LEVELS[i].astype(np.float32), lambda i: SEEN[i], ".tif", (), None, "floating point"),
    "alpha": (lambda i: rgba(LEVELS[i], SEEN[i]), lambda i: SEEN[i], ".png", (), None, "data.alpha=mask"),
    "alpha in masks": (lambda i: LEVELS[i], lambda i: rgba(SEEN[i] * 0, SEEN[i]), ".png", (), None, "transparent alpha"),
    "alpha and masks": (lambda i: rgba(LEVELS[i], SEEN[i]), lambda i: SEEN[i], ".png", ("data.alpha=mask",), None, "one of them"),
    "mixed sizes": (lambda i: LEVELS[i][: 8 - i % 2], lambda i: SEEN[i][: 8 - i % 2], ".png", (), None, "set data.shape"),
}  # fmt: skip


def write_folder(root, image, mask, suffix):
    for name, make in (("images", image), ("masks", mask)):
        if make is not None:
            (root / name).mkdir(parents=True)
            for i in range(6):
                Image.fromarray(make(i)).save(root / name / f"{i:03d}{suffix if name == 'images' else '.png'}")


@pytest.mark.parametrize("case", IMAGES)
def test_odd_image_folders(tmp_path, case):
    image, mask, suffix, fields, shape, words = IMAGES[case]
    write_folder(tmp_path / "mine", image, mask, suffix)
    before = snapshot(tmp_path / "mine")
    if shape is None:
        with pytest.raises(UserError, match=words):
            problem_of(tmp_path / "mine", *fields)
    else:
        problem = problem_of(tmp_path / "mine", *fields)
        assert problem.setup.shape == shape and words in " ".join(problem.notes)
        seen = np.broadcast_to(SEEN[:6, ..., None] > 0, (6, *shape))
        expected = np.where(seen, np.broadcast_to(LEVELS[:6, ..., None] / 255 * 4 - 2, seen.shape), 0)
        assert np.abs(np.asarray(problem.observations.y) - expected).max() < 0.02
        assert np.array_equal(np.asarray(problem.observations.operator), SEEN[:6, ..., None] > 0)
    assert snapshot(tmp_path / "mine") == before


def test_a_photograph_that_exif_turns_is_refused_beside_a_mask_and_turned_without(tmp_path):
    write_folder(tmp_path / "mine", lambda i: LEVELS[i], lambda i: SEEN[i], ".png")
    (tmp_path / "mine" / "images" / "000.png").unlink()
    _exif(tmp_path / "mine" / "images")
    with pytest.raises(UserError, match=r"000\.jpg.*EXIF.*upright"):
        problem_of(tmp_path / "mine")
    _exif(tmp_path)
    from diffem_jax.data.images import read_image

    assert np.abs(read_image(tmp_path / "000.jpg")[..., 0].astype(int) - np.rot90(LEVELS[0], -1)).mean() < 12


def test_masked_images_of_mixed_sizes_are_resized_by_single_pixels(tmp_path):
    """No pixel of the result mixes a seen and a hidden one: values stay among those of the source."""
    sizes = [(8, 8), (12, 10), (9, 16)] * 2
    grey = [RNG.integers(100, 200, size).astype(np.uint8) for size in sizes]
    mask = [RNG.integers(0, 2, size).astype(np.uint8) * 255 for size in sizes]
    spoilt = [np.where(m > 0, g, 0).astype(np.uint8) for g, m in zip(grey, mask, strict=True)]
    write_folder(tmp_path / "mine", lambda i: spoilt[i], lambda i: mask[i], ".png")
    problem = problem_of(tmp_path / "mine", "data.shape=(6,6,1)")
    levels = np.round((seen_values(problem) + 2) * 255 / 4)
    assert problem.observations.y.shape == (6, 6, 6, 1) and levels.min() >= 100


def test_16_bit_sets_of_clean_images_are_scaled_too(tmp_path):
    from diffem_jax import data

    (tmp_path / "clean").mkdir()
    for i in range(3):
        Image.fromarray(LEVELS[i].astype(np.uint16) * 257).save(tmp_path / "clean" / f"{i}.png")
    x = data.load("folder", path=tmp_path / "clean", cache_dir=tmp_path / "cache").x
    assert np.abs(np.asarray(x)[..., 0] - (LEVELS[:3] / 255 * 4 - 2)).max() < 1e-5
    np.savez(tmp_path / "x.npz", x=LEVELS.astype(np.uint16) * 257)
    assert np.abs(np.asarray(data.load("arrays", path=tmp_path / "x.npz").x) - (LEVELS / 255 * 4 - 2)).max() < 1e-5


@pytest.mark.parametrize(("top", "largest"), [(255, 200), (1023, 256), (4095, 4080), (16383, 5000), (65535, 20000)])
def test_white_is_the_range_of_the_least_depth(top, largest):
    assert white_level(np.array([[0, largest]], np.uint16)) == top


def test_the_reader_warns_where_it_is_called_from_python(tmp_path):
    np.savez(tmp_path / "obs.npz", y=hidden(Y, MASK, np.nan))
    with pytest.warns(UserWarning, match="taken as hidden"):
        load_observations(tmp_path / "obs.npz", corruption=PixelMask(shape=(8, 8, 1)))


def test_scaled_observations_come_back_in_their_units(tmp_path):
    """A run on values 0..40: its draws are in 0..40 at the seen pixels, by the command and in Python."""
    from diffem_jax import load

    raw = hidden((DIGITS + 2) * 10, MASK, np.nan)
    np.savez(tmp_path / "obs.npz", y=raw)
    small = [
        "rounds=1", "m_step.steps=2", "m_step.batch_size=8", "start.iterations=2", "start.rank=4", "e_step.steps=4",
    ]  # fmt: skip
    small += ["network.features=(16,)", "e_step.draws=1", "eval.metrics=()", f"data.path={tmp_path / 'obs.npz'}"]
    flags = ["--config=own_data", f"--workdir={tmp_path / 'run'}", *(f"--config.{field}" for field in small)]
    refused(command(*flags), "obs.npz", "config.data.scale=0.05")
    assert not (tmp_path / "run").exists()
    done = command(*flags, "--config.data.scale=0.1", "--config.corruption.noise_std=0.005")
    assert done.code == 0 and "NaN are taken as hidden" in done.out
    out = tmp_path / "draws.npz"
    sample = [
        "--mode=sample",
        f"--workdir={tmp_path / 'run'}",
        f"--observations={tmp_path / 'obs.npz'}",
        f"--output={out}",
    ]
    assert command(*sample, "--num_samples=2").code == 0
    draws, seen = np.load(out), np.isfinite(raw)
    assert np.abs(draws["x"][:, seen] - raw[seen]).max() < 1 and np.abs(draws["mean"][seen] - raw[seen]).max() < 1
    in_python = load(tmp_path / "run").posterior_draws(tmp_path / "obs.npz", 1)
    assert np.abs(in_python[0][seen] - raw[seen]).max() < 1
