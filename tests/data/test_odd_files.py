"""Files and tables as people bring them: each is read right, or refused by a message that names the file, the value and the cure."""

import datetime

import numpy as np
import pytest
from faults.command import command, refused, snapshot
from faults.harness import small
from PIL import Image
from sklearn.datasets import load_digits

from diffem_jax import data, load, usage
from diffem_jax.build.problem import load_problem
from diffem_jax.corruptions import GroupMask
from diffem_jax.data import encode_table, load_observations
from diffem_jax.data.images import read_image
from diffem_jax.data.tables import read_spreadsheet, write_spreadsheet
from diffem_jax.errors import UserError
from diffem_jax.storage.rows import white_level

pytestmark = pytest.mark.usefixtures("quick")

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


def hidden(y, mask, value):
    return np.where(mask > 0, y, np.float32(value))


READ = {
    "plain": ({"y": Y, "mask": MASK}, (), (8, 8, 1), ""),
    "mask of bool": ({"y": Y, "mask": MASK > 0}, (), (8, 8, 1), ""),
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
    "a row": ({"y": RNG.normal(size=(7, 1, 40, 1)), "mask": np.ones((7, 1, 40, 1))}, (), (1, 40, 1), ""),
    "a series": ({"y": RNG.normal(size=(7, 48, 1)), "mask": np.ones((7, 48, 1))}, (), (48, 1), ""),
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
    "raw columns": ({"y": RAW_TABLE, "mask": np.ones((N, 4))}, ("corruption.name=group_mask",), "the .csv itself"),
    "zeros instead of a mask": ({"y": Y}, (), "no array 'mask' in it, and .*% of 'y' is exactly 0"),
    "NaN in single channels": ({"y": hidden(COLOUR, CHANNEL_MASK, np.nan)}, (), "per_channel=True"),
    "soft mask": ({"y": Y, "mask": np.maximum(MASK, 0.001)}, (), "value 0.001"),
    "mask without channel axis": ({"y": Y, "mask": MASK[..., 0]}, (), "axis of length 1"),
    "one image without N": ({"y": Y[0], "mask": MASK[0]}, (), r"may be one image.*data.shape=\(8, 8, 1\)"),
    "complex": ({"y": Y + 1j, "mask": MASK}, FOURIER, "two channels"),
    "signed integers": ({"y": np.round(Y * 500).astype(np.int16), "mask": MASK}, (), "set config.data.scale"),
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
    "tiff": (lambda i: LEVELS[i], lambda i: SEEN[i], ".tif", (), (8, 8, 1), ""),
    "16 bits": (lambda i: LEVELS[i].astype(np.uint16) * 257, lambda i: SEEN[i], ".png", (), (8, 8, 1), "0..65535"),
    "12 bits in 16": (lambda i: LEVELS[i].astype(np.uint16) * 16, lambda i: SEEN[i], ".png", (), (8, 8, 1), "0..4095"),
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
    assert np.abs(read_image(tmp_path / "000.jpg")[..., 0].astype(int) - np.rot90(LEVELS[0], -1)).mean() < 12


def test_masked_images_of_mixed_sizes_are_resized_by_single_pixels(tmp_path):
    """No pixel of the result mixes a seen and a hidden one: values stay among those of the source."""
    sizes = [(8, 8), (12, 10), (9, 16)] * 2
    grey = [RNG.integers(100, 200, size).astype(np.uint8) for size in sizes]
    mask = [RNG.integers(0, 2, size).astype(np.uint8) * 255 for size in sizes]
    spoilt = [np.where(m > 0, g, 0).astype(np.uint8) for g, m in zip(grey, mask, strict=True)]
    write_folder(tmp_path / "mine", lambda i: spoilt[i], lambda i: mask[i], ".png")
    problem = problem_of(tmp_path / "mine", "data.shape=(6,6,1)")
    y, seen = problem.observations
    assert y.shape == (6, 6, 6, 1) and np.round((y[seen > 0] + 2) * 255 / 4).min() >= 100


def test_16_bit_sets_of_clean_images_are_scaled_too(tmp_path):
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


def test_scaled_observations_come_back_in_their_units(tmp_path):
    """A run on values 0..40: its draws are in 0..40 at the seen pixels, by the command and in Python."""
    raw = hidden((DIGITS + 2) * 10, MASK, np.nan)
    np.savez(tmp_path / "obs.npz", y=raw)
    fields = small(data__path=tmp_path / "obs.npz")
    flags = ["--config=own_data", f"--workdir={tmp_path / 'run'}", *fields]
    refused(command(*flags), "obs.npz", "config.data.scale=0.05")
    assert not (tmp_path / "run").exists()
    done = command(*flags, "--config.data.scale=0.1", "--config.corruption.noise_std=0.005")
    assert done.code == 0 and "NaN are taken as hidden" in done.out
    out = tmp_path / "draws.npz"
    sample = ["--mode=sample", flags[1], f"--observations={tmp_path / 'obs.npz'}", f"--output={out}"]
    assert command(*sample, "--num_samples=2").code == 0
    draws, seen = np.load(out), np.isfinite(raw)
    assert np.abs(draws["x"][:, seen] - raw[seen]).max() < 1 and np.abs(draws["mean"][seen] - raw[seen]).max() < 1
    in_python = load(tmp_path / "run").posterior_draws(tmp_path / "obs.npz", 1)
    assert np.abs(in_python[0][seen] - raw[seen]).max() < 1


NAN = float("nan")
COLUMNS = {
    "question marks among texts": (["5.1", "?", "4.7", "6.0"], 1, [1]),
    "a question mark among numbers": ([5.1, "?", 4.7, 6.0], 1, [1]),
    "numbers as texts": (["5.1", "", " 4.7 ", "6.0"], 1, [1]),
    "NA, nan, None and N/A": (["red", "NA", "nan", "None", "N/A", "blue"], 2, [1, 2, 3, 4]),
    "space around texts": (["yes", " yes", "no", None], 2, [3]),
    "booleans": ([True, None, False, True], 2, [1]),
    "bytes": ([b"x", b"y", b"x", b"?"], 2, [3]),
    "masked array": (np.ma.masked_equal([1.0, -999.0, 3.0, 4.0], -999.0), 1, [1]),
    "NaN": ([1.0, NAN, 3.0, 4.0], 1, [1]),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_missing_entries_and_kinds_of_columns(case):
    values, width, missing = COLUMNS[case]
    table = encode_table({"a": values, "b": np.arange(float(len(values)))})
    assert table.groups == (width, 1) and list(np.flatnonzero(table.mask[:, 0] == 0)) == missing
    assert not table.y[missing, :width].any()


def test_integers_are_categories_where_asked_for():
    values = [3, 17, 3, NAN, 80]
    assert encode_table({"zip": values}).groups == (1,)
    table = encode_table({"zip": values}, categories=("zip",))
    assert table.columns[0].categories == ("17", "3", "80")
    assert list(table.decode(table.y)["zip"][[0, 1, 2, 4]]) == ["3", "17", "3", "80"]
    with pytest.raises(UserError, match="expected names of columns"):
        encode_table({"zip": values}, categories=("zap",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([datetime.date(2024, 1, 1), None, datetime.date(2024, 5, 1)], "give dates as numbers"),
        (np.array(["2024-01-01", "NaT", "2024-05-01"], "datetime64[D]"), "numbers"),
        ([1j, 2j, 3.0], "expected numbers or texts"),
        (np.arange(6.0).reshape(3, 2), "several axes"),
        ([f"P{i:05d}" for i in range(200)], "200 different texts.*leave identifiers out"),
        ([NAN, None, "?"], "two different values"),
        ([1.0, 1.0, None], "two different values"),
        ([1.0, float("inf")], "inf in row 1"),
    ],
    ids=["dates", "datetime64", "complex", "two axes", "identifiers", "all missing", "constant", "infinity"],
)
def test_columns_that_are_no_data_are_refused(values, message):
    with pytest.raises(UserError, match=message) as error:
        encode_table({"a": values})
    assert "columns['a']" in str(error.value)


def test_tables_come_back_and_groups_are_missing_together(tmp_path):
    rng = np.random.default_rng(0)
    age, colour = rng.normal(40, 10, 200), rng.choice(["red", "green", "blue"], 200)
    seen, known = rng.random((2, 200)) < 0.7
    table = encode_table({"age": np.where(seen, age, NAN), "colour": np.where(known, colour, None)})
    assert table.groups == (1, 3) and table.y.shape == (200, 4)
    np.testing.assert_array_equal(table.mask, np.stack([seen, known, known, known], -1))
    assert not table.y[table.mask == 0].any()
    assert abs(table.y[seen, 0].mean()) < 1e-4 and abs(table.y[seen, 0].std() - 1) < 1e-4
    decoded = table.decode(table.y + 0.1 * rng.standard_normal((5, 200, 4)))
    assert np.abs(decoded["age"] - age)[:, seen].max() < 0.6 * age.std()
    assert (decoded["colour"][:, known] == colour[known]).all()
    np.savez(tmp_path / "obs.npz", y=table.y, mask=table.mask)
    loaded = load_observations(tmp_path / "obs.npz", corruption=GroupMask(shape=(4,), groups=table.groups))
    np.testing.assert_array_equal(loaded.y, table.y)
    with pytest.raises(UserError, match="the width of this table"):
        table.decode(np.zeros((3, 2)))
    for columns in ({}, {"a": [1, 2], "b": [1]}):
        with pytest.raises(UserError, match="lengths"):
            encode_table(columns)


def write_people(path, count=60, unknown="?"):
    rng = np.random.default_rng(0)
    lines = ["age,city,pets"]
    for i in range(count):
        age = unknown if i % 5 == 0 else f"{40 + 10 * rng.normal():.1f}"
        city = "NA" if i % 7 == 0 else rng.choice(["Bonn", "Köln, West"])
        lines.append(f'{age},"{city}",{rng.integers(0, 3)}')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_csv_is_trained_on_and_its_draws_come_back_in_its_columns(tmp_path):
    write_people(tmp_path / "people.csv")
    before = (tmp_path / "people.csv").read_bytes()
    flags = [f"--workdir={tmp_path / 'run'}", *small(data__path=tmp_path / "people.csv")]
    refused(command("--config=own_data", *flags), "people.csv", "--config=own_data:table")
    done = command("--config=own_data:table", *flags, "--config.data.categories=('pets',)")
    assert done.code == 0 and "numbers age; categories city (2), pets (3)" in done.out, done
    write_people(tmp_path / "new.csv", 20, "")
    sample = ["--mode=sample", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out.npz'}", "--num_samples=2"]
    assert command(*sample, f"--observations={tmp_path / 'new.csv'}").code == 0
    given = read_spreadsheet(tmp_path / "new.csv")
    for name in ("draw_000", "draw_001", "mean"):
        found = read_spreadsheet(tmp_path / f"out_{name}.csv")
        assert list(found) == list(given) and len(found["age"]) == 20 and set(found["city"]) <= {"Bonn", "Köln, West"}
        for i, (age, city) in enumerate(zip(given["age"], given["city"], strict=True)):
            assert age == "" or abs(float(found["age"][i]) - float(age)) < 2
            assert city in ("NA", found["city"][i])
    (tmp_path / "new.csv").write_text("age,city,pets\n41,Rome,1\n")
    refused(command(*sample, f"--observations={tmp_path / 'new.csv'}"), "new.csv", "'Rome'", "'Bonn'")
    assert (tmp_path / "people.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n", "1 lines"), ("a,a\n1,2\n", "each name once"), ("a,b\n1,2\n3\n", "row 3 has 1 entries"), ("", "0 lines")],
)
def test_a_csv_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_spreadsheet(tmp_path / "t.csv")
    assert "t.csv" in str(error.value)


def write_series(path, length=200):
    """Days and two waves, of which the first has a gap of ten rows and the second single ones."""
    waves = {"high": np.sin(np.arange(length) / 5) * 10 + 400, "low": np.cos(np.arange(length) / 7)}
    days = [str(datetime.date(2020, 1, 1) + datetime.timedelta(i)) for i in range(length)]
    gaps = {"high": range(60, 70), "low": range(0, length, 9)}
    columns = ([str(v) if i not in gaps[name] else "" for i, v in enumerate(w)] for name, w in waves.items())
    path.write_text("\n".join(["day,high,low", *map(",".join, zip(days, *columns, strict=True))]))
    return days, waves


def test_a_series_is_cut_into_windows_and_its_draws_are_joined(tmp_path):
    path = tmp_path / "s.csv"
    days, waves = write_series(path)
    flags = [f"--workdir={tmp_path / 'run'}", *small(data__path=path, e_step__steps=8), "--config.data.window=32"]
    done = command("--config=own_data", *flags, "--config.rounds=0")
    assert done.code == 0 and "43 windows of 32 rows of high, low; times day" in done.out, done
    output = tmp_path / "out.npz"
    sample = ["--mode=sample", f"--workdir={tmp_path / 'run'}", f"--output={output}", "--num_samples=2", "--round=0"]
    assert command(*sample, f"--observations={path}").code == 0
    found = read_spreadsheet(tmp_path / "out_mean.csv")
    assert list(found) == ["day", "high", "low"] and found["day"] == days
    for name, wave in waves.items():
        seen = np.array(read_spreadsheet(path)[name]) != ""
        assert np.abs(np.array(found[name], float) - wave)[seen].max() < 0.2 * wave.std()
    # The gap lies in the middle of the one window that fills it.
    series, _ = data.load_series(path, 32)
    assert len(set(series.window[60:70])) == 1 and 8 <= series.place[60] < series.place[69] < 24
    # Windows of a series that drifts are about their own level, which comes back with the draws.
    drifting = {"low": found["low"], "up": [10.0 * i for i in range(199)] + [0.0]}
    write_spreadsheet(drift := path.with_name("drift.csv"), {k: np.array(v, float) for k, v in drifting.items()})
    series, _ = data.load_series(drift, 32)
    np.testing.assert_allclose(series.decode(series.y)["up"], drifting["up"], atol=0.05)
    assert np.abs(series.y.mean(axis=1)).max() < 1e-4
    for window, words in ((300, "config.data.window: 300; .* 200 rows"), (32, "'high'.*texts")):
        with pytest.raises(UserError, match=words):
            data.load_series(path, window)
        path.write_text(path.read_text().replace("2020-01-02,", "2020-01-02,high"))
    flags = [f"--workdir={tmp_path / 'no'}", f"--config.data.path={output}", "--config.data.window=8"]
    refused(command("--config=own_data", *flags), "a .csv")
