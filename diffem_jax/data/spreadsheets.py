"""Tables from .csv files (and .parquet where pandas is installed), and draws written as such files again."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffem_jax.data.npz import existing
from diffem_jax.data.tables import Column, Table, encode_like, encode_table
from diffem_jax.errors import UserError
from diffem_jax.storage.files import write_atomically


def is_spreadsheet(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a table by its suffix."""
    return Path(path).suffix.lower() in (".csv", ".parquet")


def read_spreadsheet(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Name -> values of the columns of a file, as texts or as the file's own types.

    Raises:
        UserError: no such file, no header, rows of other lengths than the header, two columns of one name, or parquet without
            pandas.
    """
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


def load_spreadsheet(
    path: str | os.PathLike[str], categories: Sequence[str] = (), columns: Sequence[Column] | None = None
) -> tuple[Table, str]:
    """A file as observations, and a sentence on which columns are numbers and which are categories.

    Args:
        path: a .csv or .parquet file.
        categories: columns of numbers that are categories.
        columns: how an earlier table was written, to write this one alike; None finds it.

    Raises:
        UserError: as for ``read_spreadsheet`` and ``encode_table``, naming the file.
    """
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
