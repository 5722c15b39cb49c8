"""Tables of a user: columns scaled to mean 0 and std 1, categories as one-hot groups, and all of it back again.

A table is a ``.csv`` with a line of names (empty cells, NA, NaN, ? and null are missing; a column with any other text
is categorical), or an ``.npz`` with ``y`` [N, D] in its own units (NaN or ``mask`` 0 where missing) and, where there
are any, ``categorical``: the numbers of the columns whose values are codes.
"""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffem_jax.data.npz import existing, read_arrays
from diffem_jax.types import Observation, UserError

MISSING = frozenset({"", "na", "n/a", "nan", "?", "null", "none"})
MAX_LEVELS = 100


class Columns(NamedTuple):
    """What a table's columns are, and how they were scaled.

    Attributes:
        names: the columns' names.
        levels: for each column its categories, in order; () for a number.
        offset: for each column, 0 where it is categorical.
        scale: for each column, 1 where it is categorical; a number is ``offset + scale * x``.
    """

    names: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    @property
    def groups(self) -> tuple[int, ...]:
        """How many entries of x each column takes: 1 for a number, one a category otherwise."""
        return tuple(len(levels) or 1 for levels in self.levels)


Cells = list[np.ndarray]
"""One array [N] a column: float64 with NaN where missing, or text with '' where missing."""


def read_table(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], Cells]:
    """The names and the cells of a table.

    Raises:
        UserError: no such file; no rows; rows of unequal length; arrays that are no table.
    """
    where = existing(path, "a .csv or .npz file with a table")
    names, cells = _read_csv(where) if where.suffix.lower() == ".csv" else _read_npz(where)
    if not cells or len(cells[0]) == 0:
        raise UserError(f"{where}: no rows; expected a line of names and at least one row; add data")
    for name, cell in zip(names, cells, strict=True):
        if cell.dtype.kind == "f" and np.isinf(cell).any():
            raise UserError(f"{where}: column {name!r} holds infinity; expected numbers, or an empty cell; correct it")
    return names, cells


def _read_csv(where: Path) -> tuple[tuple[str, ...], Cells]:
    try:
        with where.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if line]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{where}: cannot be read as CSV ({error}); expected UTF-8 text; export it again") from None
    if not lines:
        raise UserError(f"{where}: empty; expected a line of names and at least one row; add data")
    head, body = lines[0], lines[1:]
    for number, line in enumerate(body, 2):
        if len(line) != len(head):
            raise UserError(
                f"{where}: line {number} has {len(line)} cells; expected {len(head)}, as the names; mend it"
            )
    names = tuple(name.strip() for name in head)
    if len(set(names)) < len(names):
        raise UserError(f"{where}: two columns of one name; expected each once; rename one")
    return names, [_column([line[i].strip() for line in body]) for i in range(len(head))]


def _column(texts: list[str]) -> np.ndarray:
    """Numbers where every cell that is there is one; text otherwise."""
    kept = ["" if text.lower() in MISSING else text for text in texts]
    try:
        return np.array([float(text) if text else math.nan for text in kept])
    except ValueError:
        return np.array(kept)


def _read_npz(where: Path) -> tuple[tuple[str, ...], Cells]:
    arrays = read_arrays(where, ("y", "mask", "categorical", "names"))
    y, mask = arrays.get("y"), arrays.get("mask")
    if y is None or y.ndim != 2 or y.dtype.kind not in "fiu":
        said = "no 'y'" if y is None else f"'y' of shape {y.shape} and dtype {y.dtype}"
        raise UserError(f"{where}: {said}; expected a table y [N, D] of numbers; see docs/own_data.md")
    values = np.array(y, np.float64)
    if mask is not None:
        if mask.shape != y.shape or not np.isin(mask, (0, 1)).all():
            raise UserError(f"{where}: 'mask' of shape {mask.shape}; expected zeros and ones {y.shape}; correct it")
        values[np.asarray(mask) == 0] = np.nan
    names = [str(name) for name in arrays["names"]] if "names" in arrays else [str(i) for i in range(y.shape[1])]
    if len(names) != y.shape[1]:
        raise UserError(f"{where}: {len(names)} 'names'; expected {y.shape[1]}, one a column; correct them")
    coded = {int(i) for i in np.asarray(arrays.get("categorical", ())).reshape(-1)}
    if not coded <= set(range(y.shape[1])):
        raise UserError(f"{where}: 'categorical' holds {sorted(coded)}; expected columns from 0 to {y.shape[1] - 1}")
    cells = []
    for i, column in enumerate(values.T):
        text = ["" if math.isnan(v) else f"{v:g}" for v in column]
        cells.append(np.array(text) if i in coded else column.copy())
    return tuple(names), cells


def fit_columns(names: tuple[str, ...], cells: Cells, where: str = "the table") -> Columns:
    """Categories, and the mean and standard deviation of what is seen of each column.

    Raises:
        UserError: a column of which nothing is seen, or a categorical one with too many categories.
    """
    levels, offset, scale = [], [], []
    for name, cell in zip(names, cells, strict=True):
        seen = cell[cell != ""] if cell.dtype.kind == "U" else cell[~np.isnan(cell)]
        if len(seen) == 0:
            raise UserError(f"{where}: nothing is seen of column {name!r}; expected some values; leave the column out")
        if cell.dtype.kind == "U":
            found = sorted(set(map(str, seen)), key=_order)
            if len(found) > MAX_LEVELS:
                raise UserError(
                    f"{where}: column {name!r} has {len(found)} categories such as {found[0]!r}; expected at most "
                    f"{MAX_LEVELS}; leave out names and texts, and write numbers as numbers"
                )
            levels.append(tuple(found))
            offset.append(0.0)
            scale.append(1.0)
            continue
        std = float(seen.std())
        levels.append(())
        offset.append(float(seen.mean()))
        # A constant column stays 0 whatever divides it.
        scale.append(std if std > 0 else 1.0)
    return Columns(tuple(names), tuple(levels), tuple(offset), tuple(scale))


def _order(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return math.inf, text


def encode(columns: Columns, names: tuple[str, ...], cells: Cells, where: str = "the table") -> Observation:
    """Scaled columns and one-hot groups (1 for the category, -1 for the others), with a mask shared by each group.

    Returns:
        Observation(y [N, D'] float32, mask [N, D']), D' the sum of ``columns.groups``.

    Raises:
        UserError: other columns than those of the training table, or a category that it does not have.
    """
    if names != columns.names:
        raise UserError(f"{where}: columns {', '.join(names)}; expected {', '.join(columns.names)}, as in training")
    parts, masks = [], []
    for i, cell in enumerate(cells):
        levels = columns.levels[i]
        if levels:
            text = cell if cell.dtype.kind == "U" else np.array(["" if math.isnan(v) else f"{v:g}" for v in cell])
            seen = text != ""
            unknown = sorted(set(map(str, text[seen])) - set(levels))
            if unknown:
                raise UserError(
                    f"{where}: column {names[i]!r} holds {unknown[0]!r}; expected one of {', '.join(levels)}; leave it empty"
                )
            part = np.where(text[:, None] == np.array(levels)[None], 1.0, -1.0)
        elif cell.dtype.kind == "U":
            raise UserError(f"{where}: column {names[i]!r} holds text; expected numbers, as in training; mend it")
        else:
            seen = ~np.isnan(cell)
            part = ((cell - columns.offset[i]) / columns.scale[i])[:, None]
        parts.append(np.where(seen[:, None], part, 0.0))
        masks.append(np.repeat(seen[:, None], part.shape[1], 1))
    y, mask = (np.concatenate(arrays, 1).astype(np.float32) for arrays in (parts, masks))
    return Observation(y, mask)  # type: ignore[arg-type]


def decode(columns: Columns, x: np.ndarray) -> np.ndarray:
    """[..., D'] -> [..., D] in the user's units; a categorical column is the number of its likeliest category."""
    parts = np.split(np.asarray(x, np.float64), np.cumsum(columns.groups)[:-1], axis=-1)
    out = [
        part.argmax(-1).astype(np.float64) if levels else part[..., 0] * scale + offset
        for part, levels, offset, scale in zip(parts, *columns[1:], strict=True)
    ]
    return np.stack(out, -1)


def summarise(columns: Columns, x: np.ndarray) -> dict[str, np.ndarray]:
    """Draws [S, N, D'] -> arrays for a file: x, mean and std in the user's units, the columns' names and categories.

    Of a categorical column ``mean`` is the most frequent category and ``std`` the share of draws in another one.
    """
    table = decode(columns, x)
    mean, std = table.mean(0), table.std(0)
    arrays = {"columns": np.array(columns.names)}
    for i, levels in enumerate(columns.levels):
        if levels:
            shares = np.stack([(table[..., i] == code).mean(0) for code in range(len(levels))])
            mean[:, i], std[:, i] = shares.argmax(0), 1 - shares.max(0)
            arrays[f"categories_{i}"] = np.array(levels)
    return {"x": table, "mean": mean, "std": std, **arrays}


def load_table(path: str | os.PathLike[str], columns: Columns | None = None) -> tuple[Observation, Columns]:
    """A table as observations under a mask, and how its columns were encoded.

    Args:
        path: the .csv or .npz file.
        columns: those of the training table, for new rows; None fits them to this table.
    """
    names, cells = read_table(path)
    if columns is None:
        columns = fit_columns(names, cells, str(path))
    return encode(columns, names, cells, str(path)), columns


def as_json(columns: Columns) -> dict[str, Any]:
    """The columns as plain lists."""
    return {name: list(map(list, v)) if name == "levels" else list(v) for name, v in columns._asdict().items()}


def from_json(stored: dict[str, Any]) -> Columns:
    """The inverse of ``as_json``."""
    plain = {name: tuple(stored[name]) for name in Columns._fields}
    return Columns(**{**plain, "levels": tuple(tuple(levels) for levels in stored["levels"])})
