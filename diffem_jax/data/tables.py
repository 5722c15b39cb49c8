"""Tables with missing entries as observations: columns scaled, categories as one-hot groups that share a mask, and back.

table = encode_table({"age": [31.0, nan, 58.0], "colour": ["red", "blue", None]})
table.save("obs.npz")                     # y and mask, for --config=own_data:table
table.decode(draws["x"])                  # columns as they were, from draws [..., D]
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffem_jax.data.npz import existing, read_arrays
from diffem_jax.errors import UserError
from diffem_jax.storage.files import write_arrays, write_json


class Column(NamedTuple):
    """How one column is written: numbers as (value - offset) / scale, categories as 1 for the own one and -1 for the others.

    Attributes:
        name: the column's name.
        offset: the mean of the values that are there; 0 for categories.
        scale: their standard deviation; 1 for categories.
        categories: in order; () for numbers.
    """

    name: str
    offset: float = 0.0
    scale: float = 1.0
    categories: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """The entries of x that it takes."""
        return len(self.categories) or 1


class Table(NamedTuple):
    """A table as observations.

    Attributes:
        y: [N, D] float32, 0 where missing.
        mask: [N, D] float32, 1 where there.
        columns: how y is read.
    """

    y: np.ndarray
    mask: np.ndarray
    columns: tuple[Column, ...]

    @property
    def groups(self) -> tuple[int, ...]:
        """The sizes of the groups that are missing together: ``corruption.groups`` of 'group_mask'."""
        return tuple(column.width for column in self.columns)

    def decode(self, x: Any) -> dict[str, np.ndarray]:
        """Columns [...] in their own units from x [..., D]: numbers scaled back, the likeliest category.

        Raises:
            UserError: x has another width.
        """
        x, width = np.asarray(x), sum(self.groups)
        if x.shape[-1:] != (width,):
            raise UserError(f"x: {x.shape}; expected [..., {width}], the width of this table; pass draws of it")
        parts = np.split(x, np.cumsum(self.groups)[:-1], axis=-1)
        return {
            c.name: np.asarray(c.categories)[part.argmax(-1)] if c.categories else part[..., 0] * c.scale + c.offset
            for c, part in zip(self.columns, parts, strict=True)
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the .npz that ``load_observations`` reads, and beside it PATH.columns.json."""
        write_arrays(path, {"y": self.y, "mask": self.mask})
        write_json(_columns(path), [column._asdict() for column in self.columns], indent=1)


def load_table(path: str | os.PathLike[str]) -> Table:
    """What ``Table.save`` wrote.

    Raises:
        UserError: one of the two files is missing or damaged.
    """
    arrays, beside = (
        read_arrays(path, ("y", "mask")),
        existing(_columns(path), "what Table.save writes beside the .npz"),
    )
    try:
        found = [Column(**{**c, "categories": tuple(c["categories"])}) for c in json.loads(beside.read_text())]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{beside}: damaged ({error}); expected what Table.save writes; save it again") from None
    return Table(np.asarray(arrays["y"]), np.asarray(arrays["mask"]), tuple(found))


def _columns(path: str | os.PathLike[str]) -> Path:
    return Path(path).with_suffix(".columns.json")


MISSING = frozenset(("", "?", "na", "n/a", "nan", "none", "null", "<na>", "nat"))
"""Texts that stand for a missing entry, in lower case."""
MOST_CATEGORIES = 50
"""A column of texts with more categories than this, and more than half as many as entries, is taken for identifiers."""


def is_missing(value: Any) -> bool:
    """Whether a value stands for a missing entry: None, NaN, a masked entry, pandas' NA or a text of ``MISSING``."""
    return value is None or value is np.ma.masked or str(value).strip().lower() in MISSING


def _cleaned(name: str, values: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
    """The values of a column, texts without the space around them and as numbers where all are, and which are there."""
    if getattr(values, "ndim", 1) != 1:
        raise UserError(f"columns[{name!r}]: several axes; expected one value per row; give each its own column")
    masked = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    given: list[Any] = []
    for row, value in enumerate(list(values)):
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if is_missing(value) or (masked is not None and masked[row]):
            given.append(None)
        elif isinstance(value, str):
            given.append(value.strip())
        elif isinstance(value, bool | np.bool_):
            given.append(str(value))
        else:
            try:
                given.append(float(value))
            except (TypeError, ValueError, OverflowError):
                raise UserError(
                    f"columns[{name!r}]: {value!r} in row {row}; expected numbers or texts; give dates as numbers, such as days"
                ) from None
            if isinstance(value, np.datetime64 | np.timedelta64 | complex | np.complexfloating):
                raise UserError(
                    f"columns[{name!r}]: {value!r} in row {row}; expected numbers or texts; give it as numbers"
                )
    there = np.array([value is not None for value in given])
    kept = [value for value in given if value is not None]
    if kept and all(isinstance(value, str) for value in kept):
        try:
            return [None if value is None else float(value) for value in given], there
        except ValueError:
            pass
    if any(isinstance(value, str) for value in kept):
        kinds = {str(value) for value in kept}
        if len(kinds) > MOST_CATEGORIES and 2 * len(kinds) > len(kept):
            raise UserError(
                f"columns[{name!r}]: {len(kinds)} different texts in {len(kept)} entries; expected at most {MOST_CATEGORIES} "
                "categories; leave identifiers out"
            )
    return given, there


def _category(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def encode_table(columns: Mapping[str, Sequence[Any]], categories: Sequence[str] = ()) -> Table:
    """Columns of one length as observations for the corruption 'group_mask'.

    Missing are None, NaN, masked entries, pandas' NA and the texts of ``MISSING``, such as '' and '?'. A column of numbers, or of
    texts that are all numbers, is a column of numbers; every other text is a category, without the space around it.

    Args:
        columns: name -> values.
        categories: names of columns of numbers that are categories.

    Raises:
        UserError: no columns, columns of different lengths, one without two different values, infinite numbers, dates, complex
            numbers, columns of several axes, or texts nearly all of which differ, such as identifiers.
    """
    if unknown := [name for name in categories if name not in columns]:
        raise UserError(f"categories: {unknown[0]!r}; expected names of columns, {list(columns)}; correct it")
    lengths = {name: len(values) for name, values in columns.items()}
    if not lengths or len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise UserError(
            f"columns: lengths {lengths}; expected at least one column, all of one length > 0; correct them"
        )
    parts, masks, found = [], [], []
    for name, values in columns.items():
        values, there = _cleaned(name, values)
        kept = [v for v, seen in zip(values, there, strict=True) if seen]
        texts = name in categories or any(isinstance(v, str) for v in kept)
        kinds: list[Any] = sorted({_category(v) for v in kept}) if texts else sorted(set(map(float, kept)))
        if len(kinds) < 2:
            raise UserError(f"columns[{name!r}]: {kinds}; expected at least two different values; leave the column out")
        if texts:
            column = Column(name, categories=tuple(map(str, kinds)))
            known = np.array([_category(v) if seen else "" for v, seen in zip(values, there, strict=True)])
            part = np.where(known[:, None] == np.asarray(column.categories), 1.0, -1.0)
        else:
            numbers = np.array([float(v) if seen else 0.0 for v, seen in zip(values, there, strict=True)])
            if not np.isfinite(numbers).all():
                row = int(np.argmin(np.isfinite(numbers)))
                raise UserError(f"columns[{name!r}]: {numbers[row]} in row {row}; expected finite numbers; make it NaN")
            column = Column(name, float(numbers[there].mean()), float(numbers[there].std()))
            part = ((numbers - column.offset) / column.scale)[:, None]
        mask = np.repeat(there[:, None], column.width, axis=1)
        found.append(column)
        masks.append(mask.astype(np.float32))
        parts.append(np.where(mask, part, 0.0).astype(np.float32))
    return Table(np.concatenate(parts, axis=1), np.concatenate(masks, axis=1), tuple(found))


def encode_like(columns: Mapping[str, Sequence[Any]], like: Sequence[Column]) -> Table:
    """Columns written as an earlier table was, for draws of new rows by a run that was trained on that one.

    Args:
        columns: name -> values; the names of ``like``, in any order.
        like: the earlier table's columns.

    Raises:
        UserError: other columns, or a category that the earlier table did not have.
    """
    if set(columns) != {column.name for column in like}:
        raise UserError(
            f"columns: {sorted(columns)}; expected those of the training data, {[c.name for c in like]}; correct the table"
        )
    parts, masks = [], []
    for column in like:
        values, there = _cleaned(column.name, columns[column.name])
        if column.categories:
            known = [_category(v) if seen else None for v, seen in zip(values, there, strict=True)]
            if new := sorted({k for k in known if k is not None} - set(column.categories)):
                raise UserError(
                    f"columns[{column.name!r}]: {new[0]!r}; expected one of {list(column.categories)}; correct it"
                )
            part = np.where(np.array(known, object)[:, None] == np.array(column.categories, object), 1.0, -1.0)
        else:
            try:
                numbers = np.array([float(v) if seen else 0.0 for v, seen in zip(values, there, strict=True)])
            except ValueError as error:
                raise UserError(
                    f"columns[{column.name!r}]: {error}; expected numbers, as in the training data; correct it"
                ) from None
            part = ((numbers - column.offset) / column.scale)[:, None]
        mask = np.repeat(there[:, None], column.width, axis=1)
        masks.append(mask.astype(np.float32))
        parts.append(np.where(mask, part, 0.0).astype(np.float32))
    return Table(np.concatenate(parts, axis=1), np.concatenate(masks, axis=1), tuple(like))
