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


def encode_table(columns: Mapping[str, Sequence[Any]]) -> Table:
    """Columns of one length as observations for the corruption 'group_mask'.

    Numbers: NaN or None is missing. Texts: None, NaN or '' is missing, every other text a category.

    Args:
        columns: name -> values.

    Raises:
        UserError: no columns, columns of different lengths, one without two different values, or infinite numbers.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if not lengths or len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise UserError(
            f"columns: lengths {lengths}; expected at least one column, all of one length > 0; correct them"
        )
    parts, masks, found = [], [], []
    for name, values in columns.items():
        there = np.array([not (v is None or v != v or (isinstance(v, str) and not v)) for v in values])
        kept = [v for v, seen in zip(values, there, strict=True) if seen]
        texts = any(isinstance(v, str) for v in kept)
        kinds = sorted({str(v) for v in kept}) if texts else sorted(set(map(float, kept)))
        if len(kinds) < 2:
            raise UserError(f"columns[{name!r}]: {kinds}; expected at least two different values; leave the column out")
        if texts:
            column = Column(name, categories=tuple(map(str, kinds)))
            known = np.array([str(v) if seen else "" for v, seen in zip(values, there, strict=True)])
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
