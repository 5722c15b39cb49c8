"""Tables with missing entries as observations: columns scaled, categories as one-hot groups that share a mask, and back.

They come from .csv files (and .parquet where pandas is installed), and draws are written as .csv again. In Python:

table = encode_table({"age": [31.0, nan, 58.0], "colour": ["red", "blue", None]})
np.savez("obs.npz", y=table.y, mask=table.mask)  # for --config=own_data:table
table.decode(draws["x"])                         # columns as they were, from draws [..., D]
"""

import contextlib
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffem_jax.data.npz import existing
from diffem_jax.errors import UserError
from diffem_jax.storage.files import Place, write_atomically

MISSING = frozenset(("", "?", "na", "n/a", "nan", "none", "null", "<na>", "nat"))  # texts, in lower case
MOST_CATEGORIES = 50  # with more, and more than half as many as entries, texts are taken for identifiers
NO_NUMBERS = (np.datetime64, np.timedelta64, complex, np.complexfloating)


class Column(NamedTuple):
    """How one column is written: numbers as (value - offset) / scale, categories as 1 for the own one and -1 for the others."""

    name: str
    offset: float = 0.0  # the mean of the numbers that are there
    scale: float = 1.0  # their standard deviation
    categories: tuple[str, ...] = ()  # () for numbers

    @property
    def width(self) -> int:
        """The entries of x that it takes."""
        return len(self.categories) or 1


class Table(NamedTuple):
    """A table as observations: y [N, D] float32, 0 where missing; mask [N, D] float32, 1 where there; how y is read."""

    y: np.ndarray
    mask: np.ndarray
    columns: tuple[Column, ...]

    @property
    def groups(self) -> tuple[int, ...]:
        """The sizes of the groups that are missing together: ``corruption.groups`` of 'group_mask'."""
        return tuple(column.width for column in self.columns)

    def decode(self, x: Any) -> dict[str, np.ndarray]:
        """Columns [...] in their own units from x [..., D]: numbers scaled back, the likeliest category."""
        x, width = np.asarray(x), sum(self.groups)
        if x.shape[-1:] != (width,):
            raise UserError(f"x: {x.shape}; expected [..., {width}], the width of this table; pass draws of it")
        parts = np.split(x, np.cumsum(self.groups)[:-1], axis=-1)
        return {
            c.name: np.asarray(c.categories)[part.argmax(-1)] if c.categories else part[..., 0] * c.scale + c.offset
            for c, part in zip(self.columns, parts, strict=True)
        }


def encode_table(columns: Mapping[str, Any], categories: Sequence[str] = ()) -> Table:
    """Columns of one length, name -> values, as observations for the corruption 'group_mask'.

    Missing are None, NaN, masked entries, pandas' NA and the texts of ``MISSING``. A column of numbers, or of texts that are all
    numbers, is one of numbers unless ``categories`` names it; every other text is a category, without the space around it.
    UserError for no columns, different lengths, a column without two different values, infinite or complex numbers, dates,
    several axes, or texts nearly all of which differ, such as identifiers.
    """
    if unknown := [name for name in categories if name not in columns]:
        raise UserError(f"categories: {unknown[0]!r}; expected names of columns, {list(columns)}; correct it")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise UserError(f"columns: lengths {lengths}; expected at least one column, all of one length > 0; correct it")
    cleaned = {name: _clean(name, values) for name, values in columns.items()}
    return _encode(cleaned, [_fit_column(name, values, name in categories) for name, values in cleaned.items()])


def encode_like(columns: Mapping[str, Any], like: Sequence[Column]) -> Table:
    """Columns, in any order, written as an earlier table was, whose run is to draw for them; UserError for others."""
    if set(columns) != {column.name for column in like}:
        expected = f"those of the training data, {[c.name for c in like]}"
        raise UserError(f"columns: {sorted(columns)}; expected {expected}; correct the table")
    return _encode({name: _clean(name, values) for name, values in columns.items()}, like)


def is_missing(value: Any) -> bool:
    """Whether a value stands for a missing entry: None, NaN, a masked entry, pandas' NA or a text of ``MISSING``."""
    return value is None or value is np.ma.masked or str(value).strip().lower() in MISSING


def _clean(name: str, values: Sequence[Any]) -> list[Any]:
    """The values of a column: None where missing, texts without the space around them, numbers where all are."""
    if getattr(values, "ndim", 1) != 1:
        raise UserError(f"columns[{name!r}]: several axes; expected one value per row; give each its own column")
    cleaned = [_clean_value(name, row, value) for row, value in enumerate(list(values))]
    texts = [value for value in cleaned if isinstance(value, str)]
    if len(texts) + cleaned.count(None) == len(cleaned):
        with contextlib.suppress(ValueError):
            return [None if value is None else float(value) for value in cleaned]
    kept, kinds = len(cleaned) - cleaned.count(None), {str(value) for value in cleaned if value is not None}
    if texts and len(kinds) > MOST_CATEGORIES and 2 * len(kinds) > kept:
        found = f"columns[{name!r}]: {len(kinds)} different texts in {kept} entries"
        raise UserError(f"{found}; expected at most {MOST_CATEGORIES} categories; leave identifiers out")
    return cleaned


def _clean_value(name: str, row: int, value: Any) -> str | float | None:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if is_missing(value):
        return None
    if isinstance(value, str | bool | np.bool_):
        return str(value).strip()
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, NO_NUMBERS):
        found = f"columns[{name!r}]: {value!r} in row {row}"
        raise UserError(f"{found}; expected numbers or texts; give dates as numbers, such as days")
    return number


def _fit_column(name: str, values: list[Any], categorical: bool) -> Column:
    """How cleaned values are written."""
    kept = [value for value in values if value is not None]
    if categorical or any(isinstance(value, str) for value in kept):
        column = Column(name, categories=tuple(sorted({_category(value) for value in kept})))
        kinds: Sequence[Any] = column.categories
    else:
        numbers = np.array(kept, float)
        if not np.isfinite(numbers).all():
            row = next(i for i, value in enumerate(values) if value is not None and not np.isfinite(value))
            raise UserError(f"columns[{name!r}]: {values[row]} in row {row}; expected finite numbers; make it NaN")
        kinds = sorted(set(kept))
        column = Column(name, float(numbers.mean()), float(numbers.std())) if kept else Column(name)
    if len(kinds) < 2:
        raise UserError(f"columns[{name!r}]: {list(kinds)}; expected at least two different values; leave it out")
    return column


def _encode(cleaned: Mapping[str, list[Any]], columns: Sequence[Column]) -> Table:
    there = [[value is not None for value in cleaned[column.name]] for column in columns]
    mask = np.repeat(np.transpose(there), [column.width for column in columns], axis=1)
    y = np.where(mask, np.concatenate([_entries(c, cleaned[c.name]) for c in columns], axis=1), 0.0)
    return Table(y.astype(np.float32), mask.astype(np.float32), tuple(columns))


def _entries(column: Column, values: list[Any]) -> np.ndarray:
    """The entries [N, width] of a column's cleaned values; any where one is missing."""
    where = f"columns[{column.name!r}]"
    if column.categories:
        known = [None if value is None else _category(value) for value in values]
        if new := sorted({value for value in known if value is not None} - set(column.categories)):
            raise UserError(f"{where}: {new[0]!r}; expected one of {list(column.categories)}; correct it")
        return np.where(np.array(known, object)[:, None] == np.array(column.categories, object), 1.0, -1.0)
    try:
        numbers = np.array([0.0 if value is None else float(value) for value in values])
    except ValueError as error:
        raise UserError(f"{where}: {error}; expected numbers, as in the training data; correct it") from None
    return ((numbers - column.offset) / column.scale)[:, None]


def _category(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_spreadsheet(path: Place) -> bool:
    """Whether a path names a table by its suffix."""
    return Path(path).suffix.lower() in (".csv", ".parquet")


def read_spreadsheet(path: Place) -> dict[str, Any]:
    """Name -> values of the columns of a file, as texts or as the file's own types; UserError for a file that is no table."""
    file = existing(path, "a .csv or .parquet file")
    if file.suffix.lower() == ".parquet":
        try:
            import pandas
        except ImportError:
            raise UserError(f"{file}: pandas is missing; expected it for parquet; pip install pandas pyarrow") from None
        frame = pandas.read_parquet(file)
        return {str(name): list(frame[name]) for name in frame.columns}
    try:
        lines = [line for line in csv.reader(io.StringIO(file.read_text(encoding="utf-8-sig"))) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: not a readable .csv ({error}); expected text in UTF-8; save it again") from None
    if len(lines) < 2:
        raise UserError(f"{file}: {len(lines)} lines; expected a header and rows; save it again")
    header, *rows = lines
    if len(set(header)) < len(header):
        raise UserError(f"{file}: columns {header}; expected each name once; rename them")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            found = f"row {number} has {len(row)} entries"
            raise UserError(f"{file}: {found}; expected {len(header)}, as the header; correct it")
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def load_spreadsheet(path: Place, categories: Sequence[str], columns: Sequence[Column] | None) -> tuple[Table, str]:
    """A file as observations, by ``encode_table`` or, given columns, by ``encode_like``, and a sentence on the kinds of columns."""
    given = read_spreadsheet(path)
    try:
        table = encode_table(given, categories) if columns is None else encode_like(given, columns)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    numbers = ", ".join(c.name for c in table.columns if not c.categories) or "none"
    kinds = ", ".join(f"{c.name} ({len(c.categories)})" for c in table.columns if c.categories) or "none"
    note = f"numbers {numbers}; categories {kinds}; config.data.categories names numbers that are categories"
    return table, f"{path}: {note}"


def write_spreadsheet(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Writes columns [N] as a .csv, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{value:.7g}" if isinstance(value, float | np.floating) else value for value in row])
    write_atomically(path, text.getvalue())
