"""Rows of arrays on disk, converted when they are read."""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

from diffem_jax.storage.files import CHUNK_BYTES

IN_MEMORY_BYTES = 128 * 2**20  # as float32: arrays of at most so many stay in memory, larger ones are lazy ``Rows``
RELEASE_BYTES = 2 * 2**20  # read from a memory map before its pages are handed back; up to twice that is mapped
PAGES_BYTES = 128 * 2**10  # that reading a random row may map beyond the row itself
BITS = (8, 10, 12, 14, 16)  # depths of grey levels that files of 16 bits hold


class Rows:
    """A read-only float32 array [N, *X] over stored rows [N, *X] of real numbers: ``scale * stored + offset``.

    Index by an integer, a slice or an integer array: only those rows are read and converted. ``np.asarray`` reads all. Where
    ``mask``, [N, *M] of zeros and ones that broadcasts to the rows, is 0 they read as 0.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, stored: Any, scale: float = 1.0, offset: float = 0.0, mask: Any = None):
        self.stored, self.scale, self.offset, self.mask = stored, scale, offset, mask
        self.shape = tuple(stored.shape)
        self.ndim = len(self.shape)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self._read = 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, np.ndarray) and index.dtype.kind in "iu" and index.ndim == 1:
            # A few at a time: a row maps pages around it too, and many at once would map all of a large file.
            parts = list(_slices(len(index), RELEASE_BYTES // (self.nbytes // max(1, len(self)) + PAGES_BYTES)))
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
        return self[:].astype(dtype or np.float32, copy=False)


class Shards:
    """Arrays [n, *X], all but the last of one length, indexed as one."""

    def __init__(self, shards: list[np.ndarray]):
        self.shards = shards
        self.shape, self.dtype = (sum(map(len, shards)), *shards[0].shape[1:]), shards[0].dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        wanted = np.arange(self.shape[0])[index]
        shard, row = np.divmod(np.atleast_1d(wanted), len(self.shards[0]))
        out = np.empty((len(row), *self.shape[1:]), self.dtype)
        for i in np.unique(shard):
            out[shard == i] = self.shards[i][row[shard == i]]
        return out.reshape(*wanted.shape, *self.shape[1:])


ArrayLike = np.ndarray | Rows


def first(x: Any, n: int | None) -> Any:
    """The first n rows of an array or of ``Rows`` without reading them; all for n = None."""
    if n is None or x is None:
        return x
    return Rows(x.stored[:n], x.scale, x.offset, first(x.mask, n)) if isinstance(x, Rows) else x[:n]


def in_units(stored: np.ndarray, scale: float = 1.0) -> Rows:
    """Rows of x from stored numbers: grey levels 0..white become [-2, 2], others stay; a ``scale`` other than 1 multiplies both."""
    grey = scale == 1 and stored.dtype in (np.uint8, np.uint16)
    return Rows(stored, 4.0 / white_level(stored), -2.0) if grey else Rows(stored, scale)


def white_level(grey: np.ndarray) -> int:
    """255 of uint8; of uint16 the largest value of the smallest bit depth that holds all, for instance 4095 of 12 bits."""
    if grey.dtype == np.uint8:
        return 255
    largest = max(int(rows.max()) for _, rows in read_parts(grey))
    return next(2**bits - 1 for bits in BITS if largest < 2**bits)


def kept(array: ArrayLike) -> ArrayLike:
    """Float32 rows: in memory if they are already, or take at most ``IN_MEMORY_BYTES``; else lazy ``Rows``."""
    rows = array if isinstance(array, Rows) else Rows(array)
    unchanged = rows.mask is None and (rows.scale, rows.offset) == (1.0, 0.0) and rows.stored.dtype == np.float32
    if unchanged and isinstance(rows.stored, np.ndarray) and not isinstance(rows.stored, np.memmap):
        return rows.stored
    return np.asarray(rows) if rows.nbytes <= IN_MEMORY_BYTES else rows


def as_rows(stored: np.ndarray) -> ArrayLike:
    """``kept`` rows of x from what an image set stores: grey levels are scaled to [-2, 2]."""
    return kept(in_units(stored))


def release(array: Any) -> None:
    """Hands the pages of a memory-mapped array back to the system; they are read again when needed. Does nothing for others."""
    for shard in array.shards if isinstance(array, Shards) else ():
        release(shard)
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    if array is not None and hasattr(mmap, "MADV_DONTNEED"):
        array.madvise(mmap.MADV_DONTNEED)


def read_parts(array: ArrayLike) -> Iterator[tuple[int, np.ndarray]]:
    """(number of its first row, rows) over all rows, a few at a time, so that a large file never lies in memory whole."""
    for part in _slices(len(array), CHUNK_BYTES // max(1, array[:1].nbytes)):
        yield part.start, np.asarray(array[part])
        release(array)


def _slices(count: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(start, min(count, start + step)) for start in range(0, count, step))
