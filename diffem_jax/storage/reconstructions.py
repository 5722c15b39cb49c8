"""Reconstructions of a round in shards on disk, resumable by shard, and the stream of batch indices over them.

A round's folder holds ``shard-00000-of-00004.npy``, one sidecar ``shard-00000-of-00004.json`` each (rows, shape,
checksum), and ``manifest.json``, first with the plan and finally with all sidecars. Several hosts may write different
shards of one round: no two files are written by two hosts, apart from the plan, which is the same from each.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffem_jax.errors import UserError
from diffem_jax.storage import rows as storage_rows
from diffem_jax.storage.files import TEMPORARY, crc32, write_atomically, write_json
from diffem_jax.storage.rows import PAGES_BYTES, RELEASE_BYTES, release, row_parts

FORMAT = "diffem_jax reconstructions 1"
_ROUND = re.compile(r"^round_(\d{5,})$")
_OURS = re.compile(
    r"^(manifest\.json|shard-\d{5,}-of-\d{5,}\.(npy|json)(\.\d+\.corrupt)?"
    rf"|\.(shard-\d{{5,}}-of-\d{{5,}}\.(npy|json)|manifest\.json)\.\w+{TEMPORARY})$"
)


class Done(NamedTuple):
    """What ``Round.done_shards`` found.

    Attributes:
        shards: the numbers of the shards that are whole.
        warnings: one line for each that was there but cut off or garbled, and is set aside.
    """

    shards: frozenset[int]
    warnings: tuple[str, ...]


class RowReader:
    """The reconstructions of a whole round; rows by index across shards.

    Memory-mapped, or in memory where they have at most ``storage_rows.IN_MEMORY_BYTES``: an M-step then gathers its batches at
    once, which for small examples is a part of its time that counts.

    Attributes:
        shape: [N, *X].
    """

    dtype = np.dtype(np.float32)

    def __init__(self, shards: list[np.ndarray], shard_size: int):
        self._shards, self._shard_size, self._read = shards, shard_size, 0
        self.shape = (sum(len(s) for s in shards), *shards[0].shape[1:])
        self._whole = np.concatenate(shards) if math.prod(self.shape) * 4 <= storage_rows.IN_MEMORY_BYTES else None

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, indices: Any) -> np.ndarray:
        """The rows [B, *X] of integer indices [B], in that order; float32."""
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
        if isinstance(index, slice):
            return self.rows(np.arange(len(self))[index])
        array = np.asarray(index)
        return self.rows(np.where(array < 0, array + len(self), array))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        return self[:].astype(dtype or np.float32, copy=False)


class Round:
    """One round's folder. Made by ``ReconstructionStore``.

    Attributes:
        folder: where it lies.
        round: its number.
        num_examples: N.
        shape: the shape of one example.
        shard_size: rows of a shard; the last one may have fewer.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]):
        self.folder, self._plan = folder, plan
        self.round, self.num_examples, self.shard_size = plan["round"], plan["num_examples"], plan["shard_size"]
        self.shape = tuple(plan["shape"])
        self.num_shards = -(-self.num_examples // self.shard_size)

    def indices(self, shard: int) -> range:
        """The examples of a shard."""
        if not 0 <= shard < self.num_shards:
            raise IndexError(f"shard {shard}; expected 0 to {self.num_shards - 1}")
        return range(shard * self.shard_size, min(self.num_examples, (shard + 1) * self.shard_size))

    def _file(self, shard: int, suffix: str) -> Path:
        return self.folder / f"shard-{shard:05d}-of-{self.num_shards:05d}.{suffix}"

    def write_shard(self, shard: int, array: np.ndarray, process: int = 0) -> None:
        """Writes the rows ``indices(shard)``, so that they are there whole or not at all; notes which process did.

        Raises:
            ValueError: the array has not the shard's shape, or holds NaN or infinity.
            UserError: the file system refused; what was written before is whole.
        """
        expected = (len(self.indices(shard)), *self.shape)
        array = np.ascontiguousarray(array, np.float32)
        if array.shape != expected:
            raise ValueError(f"shard {shard}: shape {array.shape}; expected {expected}")
        if not np.isfinite(array).all():
            raise ValueError(f"shard {shard}: {int((~np.isfinite(array)).sum())} entries are NaN or infinite")
        file, sidecar = self._file(shard, "npy"), self._file(shard, "json")
        try:
            # The sidecar goes first and comes last: rows without one are not whole yet.
            sidecar.unlink(missing_ok=True)
            write_atomically(file, lambda opened: np.save(opened, array, allow_pickle=False))
            entry = {
                "shard": shard,
                "process": process,
                "indices": [self.indices(shard).start, self.indices(shard).stop],
                "shape": list(expected),
                "bytes": file.stat().st_size,
                "crc32": crc32(file),
            }
            write_json(sidecar, entry)
        except OSError as error:
            raise UserError(
                f"{self.folder}: shard {shard} could not be written ({error}); expected free space and write permission; "
                "what was finished is whole: make space and run the same command again"
            ) from error

    def _entry(self, shard: int) -> dict[str, Any] | None:
        """The sidecar of a whole shard, else None."""
        try:
            entry = json.loads(self._file(shard, "json").read_text())
            file = self._file(shard, "npy")
            ok = entry["shape"] == [len(self.indices(shard)), *self.shape]
            ok = ok and file.stat().st_size == entry["bytes"] and crc32(file) == entry["crc32"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return entry if ok else None

    def done_shards(self, among: Iterable[int] | None = None) -> Done:
        """The shards that are whole, by their checksums.

        A shard that does not agree with its sidecar (cut off, garbled) is renamed to ``*.corrupt`` and not counted:
        write it again. Its line in ``warnings`` says so. One without a sidecar is not counted either, but left where
        it is, since another host may be about to write the sidecar.

        Args:
            among: the shards to look at, for instance a host's own; None for all.
        """
        done, warnings = set(), []
        for shard in range(self.num_shards) if among is None else among:
            if self._entry(shard) is not None:
                done.add(shard)
                continue
            if not self._file(shard, "json").exists():
                continue
            for suffix in ("npy", "json"):
                file = self._file(shard, suffix)
                if file.exists():
                    aside = file.with_name(f"{file.name}.{time.time_ns()}.corrupt")
                    file.rename(aside)
                    warnings.append(f"{file}: cut off or garbled; moved to {aside.name}; the shard is done again")
        return Done(frozenset(done), tuple(warnings))

    def finalise(self) -> None:
        """Writes the manifest of all shards; call once, on one host, after all are written.

        Raises:
            ValueError: shards are missing.
        """
        entries = [self._entry(shard) for shard in range(self.num_shards)]
        missing = [shard for shard, entry in enumerate(entries) if entry is None]
        if missing:
            raise ValueError(f"{self.folder}: shards {missing} are missing or damaged; expected all {self.num_shards}")
        manifest = {**self._plan, "complete": True, "shards": entries}
        write_json(self.folder / "manifest.json", manifest, indent=1)

    def is_complete(self) -> bool:
        """True where the manifest is final and every shard agrees with its checksum."""
        try:
            final = bool(json.loads((self.folder / "manifest.json").read_text()).get("complete"))
        except (OSError, ValueError):
            return False
        return final and all(self._entry(shard) is not None for shard in range(self.num_shards))

    def open(self) -> RowReader:
        """The rows, memory-mapped.

        Raises:
            ValueError: the round is not complete.
        """
        if not self.is_complete():
            raise ValueError(f"{self.folder}: not complete or damaged; expected every shard and a final manifest")
        files = (self._file(shard, "npy") for shard in range(self.num_shards))
        return RowReader([np.load(f, mmap_mode="r", allow_pickle=False) for f in files], self.shard_size)


class ReconstructionStore:
    """The rounds under ``reconstructions/`` of a run.

    Args:
        folder: the folder; made when the first round is created. Files that this class did not make are left alone.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)

    def _path(self, round: int) -> Path:
        return self.folder / f"round_{round:05d}"

    def create(self, round: int, num_examples: int, shape: tuple[int, ...], shard_size: int) -> Round:
        """The folder of a round, new or with what an interrupted run left in it.

        Raises:
            UserError: the folder holds the same round of other sizes.
        """
        if round < 0 or num_examples < 1 or shard_size < 1:
            raise ValueError(f"round {round}, num_examples {num_examples}, shard_size {shard_size}; expected positive")
        plan = {
            "format": FORMAT,
            "round": round,
            "num_examples": num_examples,
            "shape": list(shape),
            "shard_size": shard_size,
        }
        folder = self._path(round)
        folder.mkdir(parents=True, exist_ok=True)
        found = self._manifest(folder)
        if found is None:
            # A plan that a power cut swallows is made again: it need not wait for the disk.
            write_json(folder / "manifest.json", {**plan, "complete": False}, durable=False)
        elif differing := [k for k in plan if found.get(k) != plan[k]]:
            listed = ", ".join(f"{k} {found.get(k)} against {plan[k]}" for k in differing)
            raise UserError(f"{folder}: holds {listed}; expected the same run's; remove it or take another workdir")
        return Round(folder, plan)

    @staticmethod
    def _manifest(folder: Path) -> dict[str, Any] | None:
        try:
            found = json.loads((folder / "manifest.json").read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("format") == FORMAT else None

    def rounds(self) -> list[int]:
        """The rounds that have a folder with a manifest, in order."""
        if not self.folder.is_dir():
            return []
        found = ((_ROUND.match(f.name), f) for f in self.folder.iterdir())
        return sorted(int(m.group(1)) for m, f in found if m and self._manifest(f) is not None)

    def holds(self, round: int) -> bool:
        """Whether the round has a folder with a manifest."""
        return self._manifest(self._path(round)) is not None

    def round(self, round: int) -> Round:
        """An existing round.

        Raises:
            UserError: there is none of that number.
        """
        manifest = self._manifest(self._path(round))
        if manifest is None:
            raise UserError(
                f"{self._path(round)}: no manifest; expected reconstructions of round {round}; "
                f"there are {self.rounds()}"
            )
        return Round(self._path(round), manifest)

    def drop_older(self, keep_round: int, besides: Iterable[int | None] = ()) -> list[int]:
        """Removes the files of all rounds before ``keep_round``, but for ``besides``; returns the rounds removed.

        Only files that this class writes, in folders that hold its manifest; a folder with anything else in it stays.
        """
        dropped = [r for r in self.rounds() if r < keep_round and r not in set(besides)]
        for r in dropped:
            folder = self._path(r)
            files = [f for f in folder.iterdir() if _OURS.match(f.name) and f.is_file() and not f.is_symlink()]
            for file in sorted(files, key=lambda f: f.name == "manifest.json"):
                file.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
        return dropped


def index_stream(
    seed: int, round: int, num_examples: int, batch_size: int, start_step: int = 0
) -> Iterator[np.ndarray]:
    """Batches of indices: one permutation after the other, cut into batches, nothing dropped.

    The permutation of an epoch depends on (seed, round, epoch) alone, and a batch may straddle epochs. Starting at
    step k costs no more than starting at 0 and yields bit for bit what the stream from 0 yields from step k on.

    Args:
        seed: the run's seed, >= 0.
        round: the round.
        num_examples: N.
        batch_size: indices per batch; may be larger than N.
        start_step: the number of batches to skip.

    Returns:
        An endless iterator of int64 [batch_size].
    """
    if num_examples < 1 or batch_size < 1 or start_step < 0:
        raise ValueError(f"num_examples {num_examples}, batch_size {batch_size}, start_step {start_step}; expected > 0")
    stream = zlib.crc32(b"index_stream")

    def permutation(epoch: int) -> np.ndarray:
        sequence = np.random.SeedSequence([stream, seed, round, epoch])
        return np.random.Generator(np.random.Philox(sequence)).permutation(num_examples).astype(np.int64)

    def batches() -> Iterator[np.ndarray]:
        epoch, offset = divmod(start_step * batch_size, num_examples)
        order = permutation(epoch)
        while True:
            batch = np.empty(batch_size, np.int64)
            filled = 0
            while filled < batch_size:
                if offset == num_examples:
                    epoch, offset = epoch + 1, 0
                    order = permutation(epoch)
                take = min(batch_size - filled, num_examples - offset)
                batch[filled : filled + take] = order[offset : offset + take]
                filled, offset = filled + take, offset + take
            yield batch

    return batches()
