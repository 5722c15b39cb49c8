"""Reconstructions of a round in shards on disk, resumable by shard, and the stream of batch indices over them.

A round's folder holds ``shard-00000-of-00004.npy``, one sidecar ``shard-00000-of-00004.json`` each (rows, shape,
checksum), and ``manifest.json``, first with the plan and finally with all sidecars. Several hosts may write different
shards of one round: no two files are written by two hosts, apart from the plan, which is the same from each.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffem_jax.errors import UserError
from diffem_jax.storage import rows as storage_rows
from diffem_jax.storage.files import TEMPORARY, crc32, read_json, set_aside, write_atomically, write_json
from diffem_jax.storage.rows import PAGES_BYTES, RELEASE_BYTES, release, row_parts

FORMAT = "diffem_jax reconstructions 1"
_ROUND = re.compile(r"^round_(\d{5,})$")
_OURS = re.compile(
    r"^(manifest\.json|shard-\d{5,}-of-\d{5,}\.(npy|json)((\.\d+)?\.corrupt)?"
    rf"|\.(shard-\d{{5,}}-of-\d{{5,}}\.(npy|json)|manifest\.json)\.\w+{TEMPORARY})$"
)


class Done(NamedTuple):
    """The numbers of the shards that are whole, and one line for each that was cut off or garbled, and is set aside."""

    shards: frozenset[int]
    warnings: tuple[str, ...]


class RowReader:
    """The reconstructions [N, *X] of a whole round, float32; rows by index across shards.

    Memory-mapped, or in memory where they have at most ``storage_rows.IN_MEMORY_BYTES``: an M-step then gathers its batches at
    once, which for small examples is a part of its time that counts.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, shards: list[np.ndarray], shard_size: int):
        self._shards, self._shard_size, self._read = shards, shard_size, 0
        self.shape = (sum(len(s) for s in shards), *shards[0].shape[1:])
        self._whole = np.concatenate(shards) if math.prod(self.shape) * 4 <= storage_rows.IN_MEMORY_BYTES else None

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, indices: Any) -> np.ndarray:
        """The rows [B, *X] of integer indices [B] from 0, in that order; float32."""
        wanted = np.asarray(indices, np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"indices {wanted.min()} to {wanted.max()}; expected 0 to {len(self) - 1}")
        if self._whole is not None:
            return self._whole[wanted]
        flat = wanted.reshape(-1)
        out = np.empty((len(flat), *self.shape[1:]), np.float32)
        # A few at a time: a row maps pages around it too, and many at once would map all of a large file.
        for part in row_parts(len(flat), math.prod(self.shape[1:]) * 4):
            shard, row = np.divmod(flat[part], self._shard_size)
            for i in np.unique(shard):
                out[part][shard == i] = self._shards[i][row[shard == i]]
            self._read += out[part].nbytes + PAGES_BYTES * len(row)
            if self._read > RELEASE_BYTES:
                self._read = 0
                for mapped in self._shards:
                    release(mapped)
        return out.reshape(*wanted.shape, *self.shape[1:])

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.rows(np.arange(len(self))[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        return self[:].astype(dtype or np.float32, copy=False)


class Round:
    """One round's folder: ``num_examples`` rows of a ``shape``, ``shard_size`` in each shard but the last. Made by ``ReconstructionStore``."""

    def __init__(self, folder: Path, plan: dict[str, Any]):
        self.folder, self._plan = folder, plan
        self.round, self.num_examples, self.shard_size = plan["round"], plan["num_examples"], plan["shard_size"]
        self.shape = tuple(plan["shape"])
        self.num_shards = -(-self.num_examples // self.shard_size)

    def indices(self, shard: int) -> range:
        """The examples of a shard."""
        return range(shard * self.shard_size, min(self.num_examples, (shard + 1) * self.shard_size))

    def _file(self, shard: int, suffix: str) -> Path:
        return self.folder / f"shard-{shard:05d}-of-{self.num_shards:05d}.{suffix}"

    def write_shard(self, shard: int, array: np.ndarray, process: int = 0) -> None:
        """Writes the rows ``indices(shard)``, finite, so that they are there whole or not at all; notes which process did."""
        indices = self.indices(shard)
        expected = (len(indices), *self.shape)
        array = np.ascontiguousarray(array, np.float32)
        if array.shape != expected:
            raise ValueError(f"shard {shard}: shape {array.shape}; expected {expected}")
        if not np.isfinite(array).all():
            raise ValueError(f"shard {shard}: {int((~np.isfinite(array)).sum())} entries are NaN or infinite")
        file, sidecar = self._file(shard, "npy"), self._file(shard, "json")
        entry = {"shard": shard, "process": process, "indices": [indices.start, indices.stop], "shape": list(expected)}
        try:
            # The sidecar goes first and comes last: rows without one are not whole yet.
            sidecar.unlink(missing_ok=True)
            write_atomically(file, lambda opened: np.save(opened, array, allow_pickle=False))
            write_json(sidecar, {**entry, "bytes": file.stat().st_size, "crc32": crc32(file)})
        except OSError as error:
            raise UserError(
                f"{self.folder}: shard {shard} could not be written ({error}); expected free space and write permission; "
                "what was finished is whole: make space and run the same command again"
            ) from error

    def _entry(self, shard: int) -> dict[str, Any] | None:
        """The sidecar of a whole shard, else None."""
        entry, file = read_json(self._file(shard, "json")), self._file(shard, "npy")
        try:
            ok = entry["shape"] == [len(self.indices(shard)), *self.shape]
            ok = ok and file.stat().st_size == entry["bytes"] and crc32(file) == entry["crc32"]
        except (OSError, KeyError, TypeError):
            return None
        return entry if ok else None

    def done_shards(self, among: Iterable[int] | None = None) -> Done:
        """The shards that are whole, by their checksums, of those to look at; None for all.

        One that does not agree with its sidecar is renamed to ``*.corrupt`` and not counted: write it again. One without a
        sidecar is not counted either, but left where it is, since another host may be about to write the sidecar.
        """
        done, warnings = set(), []
        for shard in range(self.num_shards) if among is None else among:
            if self._entry(shard) is not None:
                done.add(shard)
            elif self._file(shard, "json").exists():
                for file in (self._file(shard, "npy"), self._file(shard, "json")):
                    if file.exists():
                        aside = set_aside(file).name
                        warnings.append(f"{file}: cut off or garbled; moved to {aside}; the shard is done again")
        return Done(frozenset(done), tuple(warnings))

    def finalise(self) -> None:
        """Writes the manifest of all shards; call once, on one host, after all are written."""
        entries = [self._entry(shard) for shard in range(self.num_shards)]
        if missing := [shard for shard, entry in enumerate(entries) if entry is None]:
            raise ValueError(f"{self.folder}: shards {missing} are missing or damaged; expected all {self.num_shards}")
        write_json(self.folder / "manifest.json", {**self._plan, "complete": True, "shards": entries}, indent=1)

    def is_complete(self) -> bool:
        """True where the manifest is final and every shard agrees with its checksum."""
        final = (_manifest(self.folder) or {}).get("complete")
        return bool(final) and all(self._entry(shard) is not None for shard in range(self.num_shards))

    def open(self) -> RowReader:
        """The rows of a complete round, memory-mapped."""
        if not self.is_complete():
            raise ValueError(f"{self.folder}: not complete or damaged; expected every shard and a final manifest")
        files = (self._file(shard, "npy") for shard in range(self.num_shards))
        return RowReader([np.load(f, mmap_mode="r", allow_pickle=False) for f in files], self.shard_size)


def _manifest(folder: Path) -> dict[str, Any] | None:
    found = read_json(folder / "manifest.json")
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


class ReconstructionStore:
    """The rounds under ``reconstructions/`` of a run. Files that this class did not make are left alone."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)

    def _path(self, round: int) -> Path:
        return self.folder / f"round_{round:05d}"

    def create(self, round: int, num_examples: int, shape: tuple[int, ...], shard_size: int) -> Round:
        """The folder of a round, new or with what an interrupted run left in it; UserError where that has other sizes."""
        sizes = {"num_examples": num_examples, "shape": list(shape), "shard_size": shard_size}
        plan = {"format": FORMAT, "round": round, **sizes}
        folder = self._path(round)
        folder.mkdir(parents=True, exist_ok=True)
        found = _manifest(folder)
        if found is None:
            # A plan that a power cut swallows is made again: it need not wait for the disk.
            write_json(folder / "manifest.json", {**plan, "complete": False}, durable=False)
        elif differing := [f"{k} {found.get(k)} against {plan[k]}" for k in plan if found.get(k) != plan[k]]:
            listed = ", ".join(differing)
            raise UserError(f"{folder}: holds {listed}; expected the same run's; remove it or take another workdir")
        return Round(folder, plan)

    def rounds(self) -> list[int]:
        """The rounds that have a folder with a manifest, in order."""
        if not self.folder.is_dir():
            return []
        found = ((_ROUND.match(f.name), f) for f in self.folder.iterdir())
        return sorted(int(match.group(1)) for match, f in found if match and _manifest(f) is not None)

    def holds(self, round: int) -> bool:
        """Whether the round has a folder with a manifest."""
        return _manifest(self._path(round)) is not None

    def round(self, round: int) -> Round:
        """An existing round; UserError where there is none of that number."""
        folder = self._path(round)
        manifest = _manifest(folder)
        if manifest is None:
            raise UserError(f"{folder}: no manifest; expected reconstructions of round {round}; found {self.rounds()}")
        return Round(folder, manifest)

    def drop_older(self, keep_round: int, besides: Iterable[int | None] = ()) -> list[int]:
        """Removes the files of all rounds before ``keep_round``, but for ``besides``; returns the rounds removed.

        Only files that this class writes, in folders that hold its manifest; a folder with anything else in it stays.
        """
        dropped = [r for r in self.rounds() if r < keep_round and r not in set(besides)]
        for folder in map(self._path, dropped):
            files = [f for f in folder.iterdir() if _OURS.match(f.name) and f.is_file() and not f.is_symlink()]
            for file in sorted(files, key=lambda f: f.name == "manifest.json"):
                file.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
        return dropped


def index_stream(seed: int, round: int, num_examples: int, batch_size: int, start: int = 0) -> Iterator[np.ndarray]:
    """An endless stream of batches of indices, int64 [batch_size]: one permutation after the other, nothing dropped.

    The permutation of an epoch depends on (seed, round, epoch) alone, and a batch may straddle epochs, or be larger than one.
    From step ``start`` on it yields bit for bit what the stream from 0 yields from there on, and costs no more.
    """
    stream = zlib.crc32(b"index_stream")

    def permutation(epoch: int) -> np.ndarray:
        sequence = np.random.SeedSequence([stream, seed, round, epoch])
        return np.random.Generator(np.random.Philox(sequence)).permutation(num_examples).astype(np.int64)

    epoch, offset = divmod(start * batch_size, num_examples)
    pending = permutation(epoch)[offset:]
    while True:
        while len(pending) < batch_size:
            epoch += 1
            pending = np.concatenate([pending, permutation(epoch)])
        yield pending[:batch_size]
        pending = pending[batch_size:]
