"""Arrays from files of people we do not know: .npy and .npz without pickles, bombs or paths, memory-mapped."""

import contextlib
import lzma
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from diffem_jax.errors import UserError
from diffem_jax.storage.files import Place

MAX_BYTES = 4 * 2**30  # the largest compressed member that is unpacked into memory
MAX_RATIO, RATIO_FREE_BYTES = 2000, 64 * 2**20  # the largest ratio of compression of a larger member
DAMAGED = (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)


def existing(path: Place, what: str) -> Path:
    """The path, or UserError where nothing is there."""
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"{found}: no such file or folder; expected {what}; check the path")
    return found


def read_arrays(path: Place, names: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name, those of ``names`` alone unless it is None, or of an .npy under the name 'x'.

    What is not compressed is memory-mapped, the rest unpacked after a look at the size that it declares; nothing is unpickled.
    UserError for another file, pickled objects, member names with a path, sizes beyond bounds, or a header that does not fit.
    """
    file = existing(path, "an .npz or .npy file")
    if file.is_dir():
        raise UserError(f"{file}: a folder; expected an .npz or .npy file; name the file")
    with file.open("rb") as opened:
        magic = opened.read(6)
    if magic == b"\x93NUMPY":
        return {"x": _map(file, 0, file.stat().st_size, str(file))}
    if not zipfile.is_zipfile(file):
        raise UserError(f"{file}: not an .npz (zip) or .npy file, or cut off; expected what numpy.savez writes")
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            for name in (info.filename for info in members):
                if "/" in name or "\\" in name or ".." in name or ":" in name or not name.endswith(".npy"):
                    raise UserError(f"{file}: member {name!r}; expected plain names like 'y.npy'; use numpy.savez")
            wanted = {info.filename.removesuffix(".npy"): info for info in members}
            if len(wanted) < len(members):
                raise UserError(f"{file}: two members of one name; expected each once; save with numpy.savez")
            return {n: _member(file, archive, info) for n, info in wanted.items() if names is None or n in names}
    except DAMAGED as error:
        raise UserError(f"{file}: damaged ({error}); expected what numpy.savez writes; save or copy it again") from None


def placeholders(path: Path) -> dict[str, np.ndarray]:
    """Arrays of zeros that take no memory, of the shapes and dtypes that the headers of an .npz say; {} for another file."""
    found: dict[str, np.ndarray] = {}
    with contextlib.suppress(*DAMAGED, RuntimeError), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with contextlib.suppress(UserError), archive.open(info) as member:
                shape, _, dtype = _header(member, info.filename)
                found[info.filename.removesuffix(".npy")] = np.broadcast_to(np.zeros((), dtype), shape)
        return found
    return {}


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[version](file)
    except Exception as error:  # the header is a Python literal: garbled, it fails in as many ways as a parser has
        raise UserError(f"{where}: not a readable .npy array ({error}); expected what numpy.save writes") from None
    if dtype.hasobject:
        raise UserError(f"{where}: holds pickled objects, which could run code; expected numbers; save a numeric array")
    if dtype.kind not in "fiubcUS":
        raise UserError(f"{where}: dtype {dtype}; expected numbers; save a plain numeric array")
    return tuple(shape), bool(fortran), dtype


def _map(path: Path, offset: int, available: int, where: str) -> np.ndarray:
    """The array whose .npy header starts at ``offset`` and which has ``available`` bytes, header included."""
    with path.open("rb") as file:
        file.seek(offset)
        shape, fortran, dtype = _header(file, where)
        start = file.tell()
    size, found = math.prod(shape) * dtype.itemsize, available - start + offset
    if size > found:
        expected = f"{size} for shape {shape} of {dtype}"
        raise UserError(f"{where}: cut off, {found} bytes of data; expected {expected}; copy or save the file again")
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C") if size else np.empty(shape, dtype)


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    where = f"{path}: {info.filename.removesuffix('.npy')!r}"
    if info.flag_bits & 0x1:
        raise UserError(f"{where}: encrypted; expected a plain .npz; save with numpy.savez")
    if info.compress_type == zipfile.ZIP_STORED:
        with archive.open(info):  # reads the header before the data
            start = archive.fp.tell()  # type: ignore[union-attr]
        return _map(path, start, info.file_size, where)
    size, packed = info.file_size, info.compress_size
    if size > MAX_BYTES or (size > MAX_RATIO * packed and size > RATIO_FREE_BYTES):
        found = f"{size} bytes from {packed} compressed ones; expected at most {MAX_BYTES} and a ratio of {MAX_RATIO}"
        raise UserError(f"{where}: declares {found}; save it with numpy.savez, which may be of any size")
    with archive.open(info) as member:
        shape, fortran, dtype = _header(member, where)
        count = math.prod(shape)
        if member.tell() + count * dtype.itemsize != info.file_size:
            raise UserError(f"{where}: shape {shape} of {dtype} does not fit its {info.file_size} bytes; save it again")
        data = member.read()
    return np.frombuffer(data, dtype, count).reshape(shape, order="F" if fortran else "C")
