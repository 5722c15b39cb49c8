"""Files on disk: written whole or not at all, summed; and the cache of converted data, memory-mapped ``.npy``."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from diffem_jax.errors import UserError

Place = str | os.PathLike[str]  # a file or folder, as people name it
CHUNK_BYTES = 4 * 2**20
TEMPORARY = ".diffem-tmp"  # the end of the name of a file that is being written
_STALE_SECONDS = 24 * 3600


def write_atomically(path: Path, content: str | bytes | Callable[[BinaryIO], Any]) -> None:
    """Writes a file so that a reader, a crash or a power cut sees the old content or the new, never a part.

    ``content`` may be a function that writes to the open file. An OSError names ``path``, which is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Writes a value as JSON, whole or not at all."""
    write_atomically(path, json.dumps(value, indent=indent) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file; None where it is missing or garbled."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def write_arrays(path: Place, arrays: Mapping[str, Any]) -> Path:
    """Writes name -> array as an uncompressed .npz, which can be memory-mapped; returns its path, with '.npz' added where missing."""
    name = os.fspath(path)
    target = Path(name if name.endswith(".npz") else f"{name}.npz")
    write_atomically(target, lambda file: np.savez(file, **arrays))
    return target


def sweep_temporaries(folder: Path) -> None:
    """Removes what killed processes left half-written anywhere below a folder that nobody else writes to now."""
    for path in folder.rglob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Renames what is damaged to ``*.corrupt``, beside earlier ones; returns where it is now."""
    target, number = path.with_name(f"{path.name}.corrupt"), 0
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{number}.corrupt")
    return path.rename(target)


def crc32(path: Path) -> int:
    """The CRC-32 of a file, read in chunks; for files of rows, which are many and large."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            value = zlib.crc32(block, value)
    return value


def digest(path: Path) -> str:
    """32 hexadecimal digits of a file's BLAKE2b hash; for files of parameters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def digests(folder: Path) -> dict[str, str]:
    """The digest of every file below a folder, by its path there."""
    return {str(p.relative_to(folder)): digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def cache_folder(cache_dir: Place | None = None) -> Path:
    """The folder of prepared data: the argument, else $DIFFEM_DATA_DIR, else ~/.cache/diffem_jax."""
    chosen = cache_dir or os.environ.get("DIFFEM_DATA_DIR")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "diffem_jax"


def check_memory(field: str, given: Any, size: int) -> None:
    """Refuses, before anything is allocated, the value of a field that needs more bytes than this machine has, where known."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if size > memory:
        has = f"{size / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f}"
        raise UserError(f"{field}: {given!r} needs at least {has}; expected what fits in memory; make it smaller")


def publish(final: Path, build: Callable[[Path], Path]) -> Path:
    """Makes the folder ``final`` appear whole or not at all; returns it.

    ``build(scratch)`` fills a scratch folder beside it and returns the folder to publish, that or one inside. Of two processes
    the first to finish wins. What a killed one left behind is removed after a day.
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


def cached_arrays(
    folder: Path, shape: tuple[int, ...], count: int, make: Callable[[], Iterable[Any]], dtype: Any = np.uint8
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and their labels, converted once and memory-mapped afterwards: x [count, *shape], labels [count] int64.

    ``make`` yields (row, label). A folder that does not agree with its ``info.json`` (shape, checksums) is set aside and made again.
    """

    def info(of: Path) -> dict[str, Any]:
        return {"shape": [count, *shape], "crc32": {name: crc32(of / name) for name in ("x.npy", "labels.npy")}}

    def build(scratch: Path) -> Path:
        x = np.lib.format.open_memmap(scratch / "x.npy", mode="w+", dtype=dtype, shape=(count, *shape))
        labels = np.zeros(count, np.int64)
        for i, (row, label) in enumerate(make()):
            x[i], labels[i] = row, label
        x.flush()
        np.save(scratch / "labels.npy", labels, allow_pickle=False)
        write_json(scratch / "info.json", info(scratch))
        return scratch

    for _ in range(2):
        publish(folder, build)
        with contextlib.suppress(OSError, ValueError):
            if read_json(folder / "info.json") == info(folder):
                x = np.load(folder / "x.npy", mmap_mode="r", allow_pickle=False)
                return x, np.load(folder / "labels.npy", allow_pickle=False)
        set_aside(folder)
    raise UserError(f"{folder}: the cache changes while it is read; expected a folder of this user's; remove it")
