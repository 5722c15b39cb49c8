"""One long series, the rows of a .csv, as observations: windows that overlap, cut out of it and joined again."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diffem_jax.data.tables import Column, encode_like, encode_table, read_spreadsheet
from diffem_jax.errors import UserError
from diffem_jax.storage.files import Place


class Series(NamedTuple):
    """Windows y, mask [N, W, C] of a series of T rows, float32, 0 where missing; how its columns are written, and its times."""

    y: np.ndarray
    mask: np.ndarray
    columns: tuple[Column, ...]
    level: np.ndarray  # [N, 1, C]: what was taken from each window, its mean with gaps interpolated
    times: dict[str, Any]  # the columns that only grow, as they were
    window: np.ndarray  # [T]: which window each row of a draw comes from
    place: np.ndarray  # [T]: and which of its rows

    def decode(self, x: Any) -> dict[str, np.ndarray]:
        """Columns [T] in their own units from draws x [N, W, C] of the windows: a gap comes from the one in whose middle it lies."""
        rows = (np.asarray(x) + self.level)[self.window, self.place]
        return self.times | {c.name: rows[:, i] * c.scale + c.offset for i, c in enumerate(self.columns)}


def load_series(path: Place, length: int, columns: Sequence[Column] | None = None) -> tuple[Series, str]:
    """The windows of ``length`` rows of a file, an eighth of that apart, and a sentence on its columns.

    Every column is one of numbers, but for those without gaps whose values only grow: these are times. ``columns`` is how an
    earlier series was written, whose run is to draw for this one. UserError for texts, other columns or too few rows.
    """
    given = read_spreadsheet(path)
    known = [column.name for column in columns or ()]
    times = {name: np.asarray(values) for name, values in given.items() if name not in known and _grows(values)}
    rest = {name: values for name, values in given.items() if name not in times}
    try:
        table = encode_table(rest) if columns is None else encode_like(rest, columns)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if texts := [column.name for column in table.columns if column.categories]:
        raise UserError(f"{path}: columns[{texts[0]!r}]: texts; expected the numbers of a series; leave it out")
    count = len(table.y)
    if length > count:
        raise UserError(f"config.data.window: {length}; {path} has {count} rows; lower it")
    starts = np.unique([*range(0, count - length, max(1, length // 8)), count - length])
    rows = starts[:, None] + np.arange(length)
    y, mask, filled = (part[rows] for part in (table.y, table.mask, _interpolated(table.y, table.mask)))
    # Windows of a series that drifts are alike but for their level.
    level = filled.mean(axis=1, keepdims=True)
    if columns is None:
        spread = np.sqrt(np.mean((filled - level) ** 2, axis=(0, 1))) + 1e-6
        y, level = y / spread, level / spread
        columns = [c._replace(scale=c.scale * float(s)) for c, s in zip(table.columns, spread, strict=True)]
    y = np.where(mask > 0, y - level, 0.0).astype(np.float32)
    window = np.abs(starts[:, None] + (length - 1) / 2 - _middles(table.mask.min(axis=1) == 0, length)).argmin(axis=0)
    series = Series(y, mask, tuple(columns), level, times, window, np.arange(count) - starts[window])
    names = ", ".join(column.name for column in table.columns)
    return series, f"{path}: {len(y)} windows of {length} rows of {names}; times {', '.join(times) or 'none'}"


def _grows(values: Sequence[Any]) -> bool:
    """Whether all is there and each value is more than the one before: numbers, or else texts, as dates from the year on are."""
    texts = np.array([str(value) for value in values])
    try:
        return bool((np.diff(texts.astype(float)) > 0).all())
    except ValueError:
        return bool((texts[1:] > texts[:-1]).all() and texts[0] != "")


def _interpolated(y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Columns [T, C] with gaps filled by straight lines; one without any entry by 0."""
    rows, filled = np.arange(len(y)), np.zeros_like(y)
    for i in np.flatnonzero(mask.any(axis=0)):
        seen = mask[:, i] > 0
        filled[:, i] = np.interp(rows, rows[seen], y[seen, i])
    return filled


def _middles(missing: np.ndarray, length: int) -> np.ndarray:
    """For each row the middle of the gap that it lies in, where half a window holds that; elsewhere the row itself."""
    middles = np.arange(len(missing), dtype=float)
    for first, after in np.flatnonzero(np.diff(missing, prepend=False, append=False)).reshape(-1, 2):
        if after - first <= length // 2:
            middles[first:after] = (first + after - 1) / 2
    return middles
