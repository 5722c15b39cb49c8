"""Rows of arrays on disk, converted when they are read."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

from diffem_jax.storage.files import CHUNK_BYTES

IN_MEMORY_BYTES = 128 * 2**20
"""Sets whose float32 form is at most this large are returned as plain arrays, larger ones as lazy ``Rows``."""


RELEASE_BYTES = 2 * 2**20
"""How much is read from a memory map before its pages are handed back; twice that may be mapped at once."""


PAGES_BYTES = 128 * 2**10
"""What a fault at a random row may map beyond the row itself."""


GREY_SCALE, GREY_OFFSET = 4.0 / 255.0, -2.0


def release(array: Any) -> None:
    """Hands the pages of a memory-mapped array back to the system; they are read again when needed. Else nothing."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    if array is not None and hasattr(mmap, "MADV_DONTNEED"):
        array.madvise(mmap.MADV_DONTNEED)


class Rows:
    """A read-only float32 array [N, *X] over stored rows, ``scale * stored + offset``, 0 where ``mask`` is 0.

    Index by an integer, a slice or an integer array: only those rows are read and converted. ``np.asarray`` reads all.

    Args:
        stored: an array or memory map [N, *X] of real numbers.
        scale: factor of the stored values.
        offset: added after scaling.
        mask: optional [N, *M] of zeros and ones that broadcasts to the rows; hidden entries read as 0 whatever
            they hold.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, stored: Any, scale: float = 1.0, offset: float = 0.0, mask: Any = None):
        self.stored, self.scale, self.offset, self.mask = stored, scale, offset, mask
        self._read = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, *X]."""
        return tuple(self.stored.shape)

    @property
    def ndim(self) -> int:
        """The number of axes, N included."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The size in bytes once converted."""
        return int(np.prod(self.shape, dtype=np.int64)) * 4

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, tuple):
            raise TypeError("Rows are indexed along the first axis alone")
        if isinstance(index, np.ndarray) and index.dtype.kind in "iu" and index.ndim == 1:
            parts = list(row_parts(len(index), self.nbytes // max(1, len(self))))
            if len(parts) > 1:
                out = np.empty((len(index), *self.shape[1:]), np.float32)
                for part in parts:
                    out[part] = self[index[part]]
                return out
        rows = np.asarray(self.stored[index]).astype(np.float32)
        if self.scale != 1.0 or self.offset != 0.0:
            rows = rows * np.float32(self.scale) + np.float32(self.offset)
        if self.mask is not None:
            rows = np.where(np.asarray(self.mask[index]) > 0, rows, np.float32(0))
        self._read += rows.nbytes + PAGES_BYTES * (len(rows) if rows.ndim == self.ndim else 1)
        if self._read > RELEASE_BYTES:
            self._read = 0
            release(self.stored)
            release(self.mask)
        return rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        return self[:].astype(dtype or np.float32, copy=False)

    def first(self, n: int) -> Rows:
        """The first n rows, as lazily."""
        return Rows(self.stored[:n], self.scale, self.offset, None if self.mask is None else self.mask[:n])


ArrayLike = np.ndarray | Rows


def first(x: Any, n: int | None) -> Any:
    """The first n rows of an array or of ``Rows`` without reading them; all for n = None."""
    if n is None or x is None:
        return x
    return x.first(n) if isinstance(x, Rows) else x[:n]


def as_rows(stored: np.ndarray, mask: np.ndarray | Rows | None = None) -> ArrayLike:
    """Float32 rows of a stored array: uint8 is taken for grey levels and scaled from 0..255 to [-2, 2].

    Returns:
        A plain array where its float32 form has at most ``IN_MEMORY_BYTES`` or is in memory anyway; ``Rows`` otherwise.
    """
    if stored.dtype == np.float32 and mask is None and not isinstance(stored, np.memmap):
        return stored
    grey = stored.dtype == np.uint8
    rows = Rows(stored, GREY_SCALE if grey else 1.0, GREY_OFFSET if grey else 0.0, mask)
    return np.asarray(rows) if rows.nbytes <= IN_MEMORY_BYTES else rows


def row_parts(count: int, row_bytes: int) -> Iterator[slice]:
    """Slices of ``count`` scattered rows, each few enough that their pages fit into ``RELEASE_BYTES``."""
    step = max(1, RELEASE_BYTES // (row_bytes + PAGES_BYTES))
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))


def chunks(count: int, row_bytes: int) -> Iterator[slice]:
    """Slices of about ``CHUNK_BYTES`` that cover ``count`` rows."""
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))
