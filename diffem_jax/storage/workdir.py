"""The work directory of a run: its paths, its lock, its configuration and its log of metrics."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffem_jax.config.values import differences, flatten
from diffem_jax.errors import UserError
from diffem_jax.networks.embedding import NETWORK_VERSION
from diffem_jax.storage import checkpoints
from diffem_jax.storage.files import Place, sweep_temporaries, write_atomically, write_json

_VERSION = "network_version"
Record = dict[str, Any]


class Workdir:
    """Paths under one folder."""

    def __init__(self, root: Place):
        self.root = Path(root).expanduser()
        self.config = self.root / "config.json"
        self.data = self.root / "data.json"  # the fingerprint of own observations
        self.metrics = self.root / "metrics.jsonl"
        self.start = self.root / "start"  # the fitted start
        self.rounds = self.root / "rounds"  # one checkpoint per round
        self.latest = self.root / "latest"  # rolling checkpoints, inside an M-step
        self.reconstructions = self.root / "reconstructions"
        self.samples = self.root / "samples"  # pictures
        self.prior = self.root / "prior"
        self.report = self.root / "report.html"

    def round_checkpoint(self, number: int) -> Path:
        """rounds/round_00003."""
        return self.rounds / f"round_{number:05d}"

    def picture(self, number: int) -> Path:
        """samples/round_00003.png."""
        return self.samples / f"round_{number:05d}.png"

    def last_round(self) -> Path:
        """The newest whole checkpoint of a round; UserError where no round is finished."""
        if (path := checkpoints.latest(self.rounds)) is None:
            raise UserError(f"{self.rounds}: no finished round; train first: --mode=train --workdir={self.root}")
        return path

    def create(self) -> None:
        """Makes the folder; UserError where it cannot be made or written to."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.samples.mkdir(exist_ok=True)
        except OSError as error:
            expected = "a folder to write to; correct the path"
            raise UserError(f"--workdir: {self.root} cannot be made ({error.strerror}); expected {expected}") from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process while it lives, or UserError names the one that does; removes half-written files."""
        with (self.root / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                found = f"{self.root} is in use by {file.read().strip() or 'unknown'}"
                cure = "expected no other run in it; wait for it, stop it, or give another folder"
                raise UserError(f"--workdir: {found}; {cure}") from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            sweep_temporaries(self.root)
            yield

    def compare_config(self, config: ConfigDict, override: bool) -> None:
        """UserError where the folder has a config that differs, or, override or not, a run of another version of the networks."""
        if not self.config.exists():
            return
        stored = self.stored_config(network=True)
        if changed := [] if override else differences(config, stored):
            found = "\n  ".join(["this folder holds a run with another configuration:", *changed])
            cure = "give another --workdir, the stored values, or --override to go on with the new ones"
            raise UserError(f"{self.config}: {found}\nexpected the same; {cure}")

    def check_config(self, config: ConfigDict, override: bool, compared: ConfigDict | None = None) -> None:
        """Writes the config, with the version of the networks, after ``compare_config``, of ``compared`` in its place if given."""
        self.compare_config(config if compared is None else compared, override)
        flat = flatten(config)
        if flat.get("data.name") == "observations":
            flat["data.path"] = self._portable(flat["data.path"])
        write_json(self.config, {**flat, _VERSION: NETWORK_VERSION}, indent=1)

    def _portable(self, path: str) -> str:
        """A path relative to the folder where both can be moved together, else an absolute one."""
        found, root, here = Path(path).expanduser().resolve(), self.root.resolve(), Path.cwd().resolve()
        beside = found.is_relative_to(root.parent) or (found.is_relative_to(here) and root.is_relative_to(here))
        return os.path.relpath(found, root) if beside else str(found)

    def stored_config(self, network: bool = False) -> dict[str, Any]:
        """The flattened config of the run; UserError where there is none, or ``network`` and its parameters are of another version."""
        try:
            stored = json.loads(self.config.read_text())
            found = stored.pop(_VERSION, 1)  # earlier runs do not say
        except FileNotFoundError:
            cure = "train one first, or correct the path"
            raise UserError(f"--workdir: {self.root} holds no run (no config.json); {cure}") from None
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{self.config}: not JSON ({error}); restore it, or give another --workdir") from error
        path = stored.get("data.path")
        if stored.get("data.name") == "observations" and isinstance(path, str) and path:
            beside = (self.root.resolve() / path).resolve()
            # Earlier versions stored what was typed, relative to the folder that the command was typed in.
            stored["data.path"] = str(beside if beside.exists() or not Path(path).exists() else path)
        if network and found != NETWORK_VERSION:
            why = "since networks of another version load its parameters but draw wrongly with them"
            cure = "train again in another --workdir, or install the version of diffem-jax that made it"
            raise UserError(f"{self.config}: network version {found}; expected {NETWORK_VERSION}, {why}; {cure}")
        return stored

    def records(self) -> list[Record]:
        """The records of metrics.jsonl; lines that a crash or an editor has damaged are passed over."""
        return _read_records(self.metrics)[0]

    def log(self, record: Record) -> None:
        """Appends a record, in place of an earlier one of the same round and kind; damaged lines move to metrics.jsonl.corrupt."""
        (records, damaged), same = _read_records(self.metrics), (record.get("round"), record.get("kind"))
        if damaged:
            with self.metrics.with_name(self.metrics.name + ".corrupt").open("ab") as file:
                file.write(b"".join(line + b"\n" for line in damaged))
        place = next((i for i, r in enumerate(records) if (r.get("round"), r.get("kind")) == same), len(records))
        records[place : place + 1] = [record]
        write_atomically(self.metrics, "".join(json.dumps(r) + "\n" for r in records))


def _read_records(path: Path) -> tuple[list[Record], list[bytes]]:
    """The records, and the lines that are none: not JSON, not UTF-8, no object, or a round without its number."""
    records: list[Record] = []
    damaged: list[bytes] = []
    for line in filter(None, path.read_bytes().split(b"\n")) if path.exists() else ():
        try:
            record = json.loads(line.decode())
            whole = isinstance(record, dict) and (record.get("kind") != "round" or type(record["round"]) is int)
        except (ValueError, RecursionError, KeyError):
            whole = False
        if whole:
            records.append(record)
        else:
            damaged.append(line)
    return records, damaged
