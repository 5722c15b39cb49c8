"""Tables of a user: what is read, scaled, encoded, drawn and given back in the table's own units."""

import numpy as np
import pytest
from faults.command import command

from diffem_jax.data import tables
from diffem_jax.types import UserError

CSV = """age,colour,height
31,red,1.7
,blue,1.8
45,,1.6
NA,red,?
52,green,1.75
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    return path


def test_columns_are_scaled_categories_are_groups_and_all_comes_back(table):
    observation, columns = tables.load_table(table)
    y, mask = observation
    assert columns.names == ("age", "colour", "height") and columns.groups == (1, 3, 1)
    assert columns.levels[1] == ("blue", "green", "red")
    assert np.array_equal(mask[:, 0], [1, 0, 1, 0, 1]) and np.array_equal(mask[:, 4], [1, 1, 1, 0, 1])
    assert np.array_equal(mask[:, 1:4], np.repeat([[1], [1], [0], [1], [1]], 3, 1))
    for column in (0, 4):
        seen = y[mask[:, column] > 0, column]
        assert np.isclose(seen.mean(), 0, atol=1e-6) and np.isclose(seen.std(), 1, atol=1e-5)
    assert np.array_equal(y[0, 1:4], [-1, -1, 1]) and not y[mask == 0].any()
    back = tables.decode(columns, y)
    assert np.allclose(back[[0, 2, 4], 0], [31, 45, 52]) and np.allclose(back[[0, 1, 2, 4], 2], [1.7, 1.8, 1.6, 1.75])
    assert [columns.levels[1][int(back[i, 1])] for i in (0, 1, 3, 4)] == ["red", "blue", "red", "green"]
    assert tables.from_json(tables.as_json(columns)) == columns


def test_new_rows_are_encoded_as_in_training(table, tmp_path):
    _, columns = tables.load_table(table)
    new = tmp_path / "new.csv"
    new.write_text("age,colour,height\n31,green,1.7\n")
    (y, _), _ = tables.load_table(new, columns)
    assert np.array_equal(y, tables.load_table(table)[0].y[[0]] * [1, 1, -1, -1, 1])
    for wrong, message in (
        ("age,colour\n31,red\n", "as in training"),
        ("age,colour,height\n31,pink,1.7\n", "'pink'.*blue, green, red"),
        ("age,colour,height\nold,red,1.7\n", "holds text"),
    ):
        new.write_text(wrong)
        with pytest.raises(UserError, match=message):
            tables.load_table(new, columns)


def test_an_npz_is_the_same_table(tmp_path):
    y = np.array([[31.0, 2, 1.7], [np.nan, 0, 1.8], [45, 1, 1.6], [50, 2, 9]])
    mask = np.ones_like(y)
    mask[3, 2] = 0
    np.savez(tmp_path / "t.npz", y=y, mask=mask, categorical=[1], names=["age", "colour", "height"])
    (encoded, seen), columns = tables.load_table(tmp_path / "t.npz")
    assert columns.names[0] == "age" and columns.levels == ((), ("0", "1", "2"), ())
    assert np.array_equal(seen[:, 0], [1, 0, 1, 1]) and np.array_equal(seen[:, 4], [1, 1, 1, 0])
    assert np.allclose(tables.decode(columns, encoded)[seen[:, 0] > 0, 0], [31, 45, 50])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("a,b\n", "no rows"),
        ("a,b\n1,2\n3\n", "line 3 has 1 cells"),
        ("a,a\n1,2\n", "two columns of one name"),
        ("a,b\n1,\n2,\n", "nothing is seen of column 'b'"),
        ("a,b\n1,inf\n2,3\n", "infinity"),
        ("a\n" + "".join(f"word{i}\n" for i in range(101)), "101 categories"),
    ],
)
def test_what_is_no_table_is_refused(text, message, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        tables.load_table(tmp_path / "t.csv")


def test_draws_of_categories_are_summarised():
    columns = tables.Columns(("n", "c"), ((), ("a", "b")), (10.0, 0.0), (2.0, 1.0))
    x = np.array([[[0.5, 1, -1]], [[1.5, 1, -1]], [[1.0, -1, 1]], [[1.0, 1, 0]]])
    out = tables.summarise(columns, x)
    assert np.allclose(out["mean"], [[12, 0]]) and np.allclose(out["std"][0], [np.std([11, 13, 12, 12]), 0.25])
    assert list(out["categories_1"]) == ["a", "b"] and out["x"].shape == (4, 1, 2)


@pytest.mark.slow
def test_a_csv_is_trained_on_and_filled_through_the_command(tmp_path):
    rng = np.random.default_rng(0)
    size = rng.normal(170, 10, 120)
    rows = [f"{s:.1f},{'tall' if s > 170 else 'small'},{s / 2.54:.2f}".split(",") for s in size]
    for row in rows:
        row[rng.integers(3)] = ""
    (tmp_path / "t.csv").write_text("cm,kind,inch\n" + "\n".join(",".join(row) for row in rows) + "\n")
    small = {"rounds": 1, "m_step.steps": 4, "m_step.batch_size": 16, "e_step.steps": 4, "e_step.batch_size": 60}
    small |= {"start.rank": 2, "start.iterations": 30, "network.features": "(8,)"}
    argv = [f"--config.{name}={value}" for name, value in small.items()]
    run = f"--workdir={tmp_path / 'run'}"
    ended = command("--config=own_data:table", f"--config.data.path={tmp_path / 't.csv'}", run, *argv)
    assert ended.code == 0, ended
    output = tmp_path / "filled.npz"
    argv = ["--mode=sample", run, f"--observations={tmp_path / 't.csv'}", "--num_samples=6", f"--output={output}"]
    ended = command(*argv)
    assert ended.code == 0, ended
    with np.load(output) as filled:
        x, mean = filled["x"], filled["mean"]
        assert x.shape == (6, 120, 3) and list(filled["columns"]) == ["cm", "kind", "inch"]
        assert list(filled["categories_1"]) == ["small", "tall"] and set(np.unique(x[..., 1])) <= {0, 1}
    gone = np.array([row[0] == "" for row in rows])
    # Where the height is missing in centimetres, the inches tell it; where it is seen, it comes back.
    assert np.abs(mean[~gone, 0] - size[~gone]).max() < 2
    assert np.sqrt(np.mean((mean[gone, 0] - size[gone]) ** 2)) < 0.5 * size.std()
