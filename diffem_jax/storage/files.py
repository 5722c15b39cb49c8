"""Files on disk: the cache folder, folders published whole or not at all, and lazily converted rows.

Everything large is stored as a plain ``.npy`` and memory-mapped; a row is converted to float32 when it is asked for,
and the pages that were read are handed back now and then, so that a process stays small however large its files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from diffem_jax.errors import UserError

CHUNK_BYTES = 4 * 2**20
_STALE_SECONDS = 24 * 3600


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of prepared data: the argument, else $DIFFEM_DATA_DIR, else ~/.cache/diffem_jax."""
    chosen = cache_dir or os.environ.get("DIFFEM_DATA_DIR")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "diffem_jax"


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


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader, or a crash, sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
