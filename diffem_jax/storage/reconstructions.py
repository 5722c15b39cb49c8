"""Reconstructions of a round in shards on disk, resumable by shard, and the stream of batch indices over them.

A round's folder holds ``manifest.json``, the plan, and ``shard-00000-of-00004.npy``, a sidecar ``.json`` each (rows, shape, checksum).
Hosts write different shards of one round, which is complete once all are whole.
"""

import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffem_jax.errors import UserError
from diffem_jax.storage.files import TEMPORARY, Place, crc32, read_json, set_aside, write_atomically, write_json
from diffem_jax.storage.rows import ArrayLike, Rows, Shards, kept

FORMAT = "diffem_jax reconstructions 1"
_OURS = re.compile(
    r"^(manifest\.json|shard-\d{5,}-of-\d{5,}\.(npy|json)((\.\d+)?\.corrupt)?"
    rf"|\.(shard-\d{{5,}}-of-\d{{5,}}\.(npy|json)|manifest\.json)\.\w+{TEMPORARY})$"
)


class Round:
    """One round's folder, as ``ReconstructionStore`` makes it: ``num_examples`` rows of a ``shape``, ``shard_size`` in each shard but the last."""

    def __init__(self, folder: Path, plan: dict[str, Any]):
        self.folder, self.shape = folder, tuple(plan["shape"])
        self.round, self.num_examples, self.shard_size = plan["round"], plan["num_examples"], plan["shard_size"]
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
            # The sidecar is deleted first and written last: a shard without one is not complete.
            sidecar.unlink(missing_ok=True)
            write_atomically(file, lambda opened: np.save(opened, array, allow_pickle=False))
            write_json(sidecar, {**entry, "bytes": file.stat().st_size, "crc32": crc32(file)})
        except OSError as error:
            found = f"shard {shard} could not be written ({error}); expected free space and write permission"
            cure = "what was finished is whole: make space and run the same command again"
            raise UserError(f"{self.folder}: {found}; {cure}") from error

    def _is_whole(self, shard: int) -> bool:
        """Whether a shard agrees with its sidecar."""
        entry, file = read_json(self._file(shard, "json")), self._file(shard, "npy")
        try:
            fits = entry["shape"] == [len(self.indices(shard)), *self.shape] and file.stat().st_size == entry["bytes"]
            return fits and crc32(file) == entry["crc32"]
        except (OSError, KeyError, TypeError):
            return False

    def done_shards(self) -> tuple[set[int], tuple[str, ...]]:
        """The shards that are whole, by their checksums, and a line on each that is damaged.

        One that differs from its sidecar is set aside as ``*.corrupt``; one without a sidecar is left, since a host may be writing it.
        """
        done, warnings = set(), []
        for shard in range(self.num_shards):
            if self._is_whole(shard):
                done.add(shard)
            elif self._file(shard, "json").exists():
                for file in filter(Path.exists, (self._file(shard, "npy"), self._file(shard, "json"))):
                    aside = set_aside(file).name
                    warnings.append(f"{file}: cut off or garbled; moved to {aside}; the shard is drawn again")
        return done, tuple(warnings)

    def is_complete(self) -> bool:
        """Whether every shard agrees with its checksum."""
        return all(map(self._is_whole, range(self.num_shards)))

    def open(self) -> ArrayLike:
        """The rows [num_examples, *shape] of a complete round, float32: in memory where they are few, else lazy ``Rows``."""
        if not self.is_complete():
            raise ValueError(f"{self.folder}: not complete or damaged; expected all {self.num_shards} shards")
        files = (self._file(shard, "npy") for shard in range(self.num_shards))
        return kept(Rows(Shards([np.load(f, mmap_mode="r", allow_pickle=False) for f in files])))


def _manifest(folder: Path) -> dict[str, Any] | None:
    found = read_json(folder / "manifest.json")
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


class ReconstructionStore:
    """The rounds under ``reconstructions/`` of a run. Files that this class did not make are left alone."""

    def __init__(self, folder: Place):
        self.folder = Path(folder)

    def _path(self, round: int) -> Path:
        return self.folder / f"round_{round:05d}"

    def create(self, round: int, num_examples: int, shape: tuple[int, ...], shard_size: int) -> Round:
        """The folder of a round, new or with what an interrupted run left in it; UserError where that has other sizes."""
        sizes = {"num_examples": num_examples, "shape": list(shape), "shard_size": shard_size}
        plan: dict[str, Any] = {"format": FORMAT, "round": round, **sizes}
        folder = self._path(round)
        folder.mkdir(parents=True, exist_ok=True)
        if (found := _manifest(folder)) is None:
            write_json(folder / "manifest.json", plan, indent=1)
        elif differing := ", ".join(f"{k} {found.get(k)} against {plan[k]}" for k in plan if found.get(k) != plan[k]):
            raise UserError(f"{folder}: holds {differing}; expected the same run's; remove it or take another workdir")
        return Round(folder, plan)

    def rounds(self) -> list[int]:
        """The rounds that have a folder with a manifest, in order."""
        names = (f.name.removeprefix("round_") for f in self.folder.glob("round_?????*") if _manifest(f) is not None)
        return sorted(int(name) for name in names if name.isdecimal())

    def holds(self, round: int) -> bool:
        """Whether the round has a folder with a manifest."""
        return _manifest(self._path(round)) is not None

    def round(self, round: int) -> Round:
        """An existing round; UserError where there is none of that number."""
        folder = self._path(round)
        if (manifest := _manifest(folder)) is None:
            raise UserError(f"{folder}: no manifest; expected reconstructions of round {round}; found {self.rounds()}")
        return Round(folder, manifest)

    def drop_older(self, keep_round: int, besides: Iterable[int | None] = ()) -> list[int]:
        """Removes the files of all rounds before ``keep_round``, but for ``besides`` and for files of others; returns the rounds."""
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

    The permutation of an epoch depends on (seed, round, epoch) alone; ``start`` skips so many batches at no cost.
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
