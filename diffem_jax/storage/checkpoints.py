"""Orbax checkpoints with checksums: a damaged one is found, named and set aside, and the one before it is used.

Each checkpoint is a folder that Orbax writes under a temporary name and renames, with a ``<name>.checksums.json``
beside it, written last: a checkpoint without it was never finished. Arrays only, so nothing is executed on load.
"""

import contextlib
import functools
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from diffem_jax.errors import UserError, first_line
from diffem_jax.parallel import agree_text, barrier, on_host, process_index
from diffem_jax.storage import files
from diffem_jax.types import PyTree

# Arrays are stored whole and loaded onto the host, which is what this warning is about.
warnings.filterwarnings("ignore", message="Sharding info not provided")
_OURS = re.compile(r"^(round_\d{5,}(_update_\d{9,})?|fit|final)$")
_REFUSED = re.compile("(?i)no space|resource_exhausted|file too large|disk quota|errno|failed to write|write failed")


def _checksums(path: Path) -> Path:
    return path.with_name(path.name + ".checksums.json")


def save(path: Path, tree: PyTree, metadata: dict[str, Any]) -> None:
    """Saves a tree of arrays whole, and JSON values beside them, in place of one of that name; all processes call it.

    UserError where the file system refuses (full, read-only, too large); earlier checkpoints are untouched.
    """
    write(path, jax.tree.map(on_host, tree), metadata)


def write(path: Path, tree: PyTree, metadata: dict[str, Any]) -> None:
    """``save`` of arrays on the host. Of a single process any thread may call it; several wait for each other here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lead = process_index() == 0
    try:
        if lead:
            _checksums(path).unlink(missing_ok=True)
        sweep(path.parent)
        with _quiet():
            ocp.save_checkpointables(path.absolute(), {"state": tree}, overwrite=True)
        if lead:
            files.write_json(_checksums(path), {"metadata": metadata, "files": files.digests(path)})
        barrier("saved")
    except (OSError, ValueError) as error:
        for leftover in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*") if lead else ():
            shutil.rmtree(leftover, ignore_errors=True)
        if isinstance(error, ValueError) and not _REFUSED.search(str(error)):
            raise
        cure = "earlier checkpoints are whole: make space and run the same command again"
        found = f"could not be written ({_shorten(error)}); expected free space and write permission"
        raise UserError(f"{path}: {found}; {cure}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's threads from logging the traceback of an error that is raised here anyway."""
    _drop_late_errors()
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@functools.cache
def _drop_late_errors() -> None:
    """Prints no traceback of writes that fail a moment after the first one, when nobody waits for them any more."""
    excepthook, unraisablehook = sys.excepthook, sys.unraisablehook

    def is_late(error: BaseException | None) -> bool:
        return str(error) == "Event loop is closed"

    sys.excepthook = lambda kind, error, trace: None if is_late(error) else excepthook(kind, error, trace)
    sys.unraisablehook = lambda args: None if is_late(args.exc_value) else unraisablehook(args)


def _shorten(error: Exception) -> str:
    line = first_line(error)
    # Long ones are a path in the middle of two sentences that matter.
    return line if len(line) <= 200 else f"{line[:60]} ... {line[-130:]}"


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: unfinished, or files that are missing or differ from their checksums."""
    record = _checksums(path)
    if not path.is_dir():
        return "no such folder"
    if not record.exists():
        return "it was never finished (no checksums)"
    try:
        expected = files.read_json(record)["files"].items()
    except (KeyError, TypeError, AttributeError):
        return f"{record.name} is garbled"
    found = files.digests(path)
    wrong = [name for name, digest in expected if found.get(name) != digest]
    return f"{wrong[0]} is missing or damaged" if wrong else None


def metadata(path: Path) -> dict[str, Any]:
    """The JSON values saved with a checkpoint; UserError where there is no such checkpoint, or its record is garbled."""
    try:
        return files.read_json(_checksums(path))["metadata"]
    except (KeyError, TypeError):
        cure = "expected one that this run wrote; run the training command again"
        raise UserError(f"{path}: no whole checkpoint; {cure}") from None


def load(path: Path, like: PyTree | None = None) -> PyTree:
    """Loads a checkpoint into the structure, shapes and dtypes of ``like``; UserError where it is missing, damaged or does not fit."""
    if problem := fault(path):
        raise UserError(f"{path}: {problem}; expected a whole checkpoint; choose an earlier one of the same folder")
    if like is None:
        with _quiet():
            return ocp.load_checkpointables(path.absolute(), {"state": None})["state"]
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)
    try:
        return ocp.load_checkpointables(path.absolute(), {"state": wanted})["state"]
    except (ValueError, KeyError, TypeError) as error:
        cure = "expected the network and optimiser that wrote it; use its own config.json"
        raise UserError(f"{path}: its arrays do not fit this configuration ({_shorten(error)}); {cure}") from error


def written(folder: Path, pattern: str = "*") -> list[Path]:
    """The checkpoints of a folder, oldest first; what was set aside, half-written or made by others is not among them."""
    return sorted(p for p in folder.glob(pattern) if p.is_dir() and _OURS.match(p.name))


def sweep(folder: Path) -> None:
    """Removes what a killed process left half-written in a folder of checkpoints."""
    for path in folder.glob("*.orbax-checkpoint-tmp*") if process_index() == 0 else ():
        if _OURS.match(path.name.partition(".")[0]):
            shutil.rmtree(path, ignore_errors=True)


def latest(folder: Path, warn: Any = print, pattern: str = "*") -> Path | None:
    """The newest whole checkpoint of a folder, or None; call it on every process, the first one looks.

    Damaged ones are renamed to ``*.corrupt`` and reported through ``warn``.
    """
    found = ""
    for path in reversed(written(folder, pattern)) if process_index() == 0 else ():
        if (problem := fault(path)) is None:
            found = path.name
            break
        set_aside(path)
        warn(f"{path}: {problem}; set aside as {path.name}.corrupt, going on from the one before it")
    name = agree_text(found)
    return folder / name if name else None


def set_aside(path: Path) -> None:
    """Renames a damaged checkpoint out of the way, keeping it."""
    with contextlib.suppress(FileNotFoundError):
        files.set_aside(path)
    _checksums(path).unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Deletes a checkpoint: its checksums first, so that a crash half-way leaves an unfinished one, not a damaged one."""
    if process_index() == 0:
        _checksums(path).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
