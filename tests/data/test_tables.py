"""Tables as people bring them: what is missing, what is a number, and what is refused."""

import datetime

import numpy as np
import pytest
from faults.command import command, refused

from diffem_jax.data import encode_table
from diffem_jax.data.tables import read_spreadsheet
from diffem_jax.errors import UserError

NAN = float("nan")
READ = {
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


@pytest.mark.parametrize("case", READ)
def test_missing_entries_and_kinds_of_columns(case):
    values, width, missing = READ[case]
    table = encode_table({"a": values, "b": np.arange(float(len(values)))})
    assert table.groups == (width, 1)
    assert list(np.flatnonzero(table.mask[:, 0] == 0)) == missing
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
    ],
    ids=["dates", "datetime64", "complex", "two axes", "identifiers", "all missing"],
)
def test_columns_that_are_no_data_are_refused(values, message):
    with pytest.raises(UserError, match=message) as error:
        encode_table({"a": values})
    assert "columns['a']" in str(error.value)


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
    small = [
        "m_step.steps=2", "m_step.batch_size=8", "start.iterations=2", "e_step.steps=2", "e_step.draws=1", "rounds=1",
    ]  # fmt: skip
    small += ["network.features=(8,)", "eval.metrics=()", "start.rank=2", f"data.path={tmp_path / 'people.csv'}"]
    flags = [f"--workdir={tmp_path / 'run'}", *(f"--config.{field}" for field in small)]
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
