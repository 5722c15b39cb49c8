"""Tables as people bring them: what is missing, what is a number, and what is refused."""

import datetime

import numpy as np
import pytest

from diffem_jax.data import encode_table
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
