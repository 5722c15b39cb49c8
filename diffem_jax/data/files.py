"""Files on disk: the cache folder, folders published whole or not at all, and lazily converted rows.

Everything large is stored as a plain ``.npy`` and memory-mapped; a row is converted to float32 when it is asked for,
and the pages that were read are handed back now and then, so that a process stays small however large its files.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffem_jax.types import UserError

IN_MEMORY_BYTES = 128 * 2**20
"""Sets whose float32 form is at most this large are returned as plain arrays, larger ones as lazy ``Rows``."""
CHUNK_BYTES = 4 * 2**20
RELEASE_BYTES = 2 * 2**20
"""How much is read from a memory map before its pages are handed back; twice that may be mapped at once."""
PAGES_BYTES = 128 * 2**10
"""What a fault at a random row may map beyond the row itself."""
GREY_SCALE, GREY_OFFSET = 4.0 / 255.0, -2.0
_STALE_SECONDS = 24 * 3600


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of prepared data: the argument, else $DIFFEM_DATA_DIR, else ~/.cache/diffem_jax."""
    chosen = cache_dir or os.environ.get("DIFFEM_DATA_DIR")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "diffem_jax"


def release(array: Any) -> None:
    """Hands the pages of a memory-mapped array back to the system; they are read again when needed. Else nothing."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    if array is not None and hasattr(mmap, "MADV_DONTNEED"):
        array.madvise(mmap.MADV_DONTNEED)


def check_memory(field: str, given: Any, size: int) -> None:
    """Refuses what cannot fit before anything of it is allocated.

    Args:
        field: the config's field that asks for it.
        given: its value.
        size: bytes that it needs at least.

    Raises:
        UserError: it is more than this machine's memory, where the system tells how much that is.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if size > memory:
        has = f"{size / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f}"
        raise UserError(f"{field}: {given!r} needs at least {has}; expected what fits in memory; make it smaller")


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


def write_atomic(path: Path, data: bytes, durable: bool = True) -> None:
    """Writes a small file so that it is either there whole or not at all, also after a power cut where ``durable``."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def publish(final: Path, build: Callable[[Path], Path]) -> Path:
    """Makes the folder ``final`` appear whole or not at all.

    ``build(scratch)`` fills a scratch folder beside it and returns the folder to publish (the scratch folder or one
    inside). Two processes that publish at once each build; the first to finish wins. What a killed process left
    behind is never taken for the result, and is removed after a day.
    """
    if final.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    for stale in final.parent.glob(f".{final.name}-scratch-*"):
        if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}-scratch-", dir=final.parent))
    try:
        built = build(scratch)
        built.chmod(0o755)
        try:
            built.rename(final)
        except OSError:
            if not final.exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final


def checksum(path: Path) -> int:
    """The CRC-32 of a file, read in chunks."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            value = zlib.crc32(block, value)
    return value


def cached_arrays(
    folder: Path, shape: tuple[int, ...], count: int, make: Callable[[], Iterable[tuple[np.ndarray, int]]]
) -> tuple[np.ndarray, np.ndarray]:
    """Uint8 rows and their labels, converted once and memory-mapped afterwards.

    Args:
        folder: where ``x.npy``, ``labels.npy`` and the sidecar ``info.json`` (shapes, checksums) are to live. A folder
            that does not agree with its sidecar is moved aside to ``*.corrupt`` and made anew.
        shape: the shape of one row.
        count: the number of rows.
        make: yields (row, label), called only where the folder is not there yet.

    Returns:
        (x [count, *shape] uint8 memory map, labels [count] int64).
    """

    def build(scratch: Path) -> Path:
        x = np.lib.format.open_memmap(scratch / "x.npy", mode="w+", dtype=np.uint8, shape=(count, *shape))
        labels = np.zeros(count, np.int64)
        for i, (row, label) in enumerate(make()):
            x[i], labels[i] = row, label
        x.flush()
        np.save(scratch / "labels.npy", labels, allow_pickle=False)
        info = {"shape": [count, *shape], "crc32": {n: checksum(scratch / n) for n in ("x.npy", "labels.npy")}}
        write_atomic(scratch / "info.json", json.dumps(info).encode())
        return scratch

    for _ in range(2):
        publish(folder, build)
        try:
            info = json.loads((folder / "info.json").read_text())
            if info["shape"] == [count, *shape] and all(checksum(folder / n) == c for n, c in info["crc32"].items()):
                x = np.load(folder / "x.npy", mmap_mode="r", allow_pickle=False)
                return x, np.load(folder / "labels.npy", allow_pickle=False)
        except (OSError, ValueError, KeyError):
            pass
        folder.rename(folder.with_name(f"{folder.name}.{time.time_ns()}.corrupt"))
    raise UserError(f"{folder}: the cache changes while it is read; expected a folder of this user's; remove it")
