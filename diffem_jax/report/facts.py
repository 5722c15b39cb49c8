"""What a work directory holds, as the page of a run needs it; a missing or damaged file costs its part only."""

import contextlib
import platform
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffem_jax.parallel import process_count
from diffem_jax.report.numbers import number
from diffem_jax.report.template import Point
from diffem_jax.storage.files import read_json, write_json
from diffem_jax.storage.workdir import Workdir

ENVIRONMENT = "environment.json"
PACKAGES = ("diffem-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
CALIBRATION = {  # the start of a field's name -> what it says; the rest of the name is the level in per cent
    "held_out_coverage": "held-back measurements, intervals",
    "held_out_tarp": "held-back measurements, jointly",
    "coverage": "x, intervals",
    "tarp": "x, jointly",
}
_LEVEL = re.compile(rf"^({'|'.join(CALIBRATION)})_(\d+)$")


class Calibration(NamedTuple):
    """How often draws hold what they should: ``values`` name -> share observed at each of ``levels``, of ``round``."""

    round: int
    levels: list[float]
    values: dict[str, list[float]]


class Facts(NamedTuple):
    """What was found in a work directory."""

    workdir: Workdir
    config: dict[str, Any]  # flattened; empty where it cannot be read
    records: list[dict[str, Any]]  # of metrics.jsonl, those that name their round
    metrics: dict[str, list[Point]]  # values over the rounds
    seconds: float  # of computing in all rounds
    samples: dict[str, int]  # how many examples the last value is of; 0 where that is not known
    last: int | None  # the last round; None before the first
    calibration: Calibration | None  # of the last round that was measured so
    environment: dict[str, Any]  # command, versions and devices of the run


def read_facts(workdir: Workdir) -> Facts:
    """Everything that the page shows but pictures."""
    records: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        records = [r for r in workdir.records() if type(r.get("round")) is int and 0 <= r["round"] < 10**9]
    rounds = sorted((r for r in records if r.get("kind") == "round"), key=lambda r: r["round"])
    metrics: dict[str, list[Point]] = {}
    samples: dict[str, int] = {}
    seconds = 0.0
    for record in rounds:
        seconds += sum(max(number(record.get(f"{step}_step_seconds")) or 0.0, 0.0) for step in "me")
        for name in filter(is_measure, record):
            if (value := number(record[name])) is not None:
                error = max(number(record.get(f"{name}_se")) or 0.0, 0.0)
                metrics.setdefault(name, []).append(Point(record["round"], value, error))
                samples[name] = int(number(record.get(f"{name}_samples")) or 0)
    # The loss is the means, not the end: it stands last.
    metrics = {name: metrics[name] for name in sorted(metrics, key=lambda n: n == "loss")}
    config, environment = _read_object(workdir.config), _read_object(workdir.root / ENVIRONMENT)
    last = rounds[-1]["round"] if rounds else None
    return Facts(workdir, config, records, metrics, seconds, samples, last, read_calibration(records), environment)


def is_measure(name: str) -> bool:
    """Whether a field of a round's record is a measure to be shown by itself, and not about another or about the round."""
    if name in ("round", "step", "redrawn") or name.endswith(("_se", "_samples", "_seconds")):
        return False
    level = _LEVEL.match(name)
    return level is None or level[2] == "90"  # one level over the rounds; all are in the picture of calibration


def read_calibration(records: list[dict[str, Any]]) -> Calibration | None:
    """What the last record of a round or an evaluation that has such fields says of calibration."""
    measured = [r for r in records if r.get("kind") in ("round", "evaluation", "calibration")]
    for record in sorted(measured, key=lambda r: (r["round"], r["kind"] == "evaluation"), reverse=True):
        found: dict[str, dict[float, float]] = {}
        for match in filter(None, map(_LEVEL.match, record)):
            if (value := number(record[match[0]])) is not None:
                found.setdefault(match[1], {})[int(match[2]) / 100] = value
        levels = sorted(set().union(*found.values()))
        if len(levels) > 1:
            names = [name for name in CALIBRATION if name in found]
            shown = {CALIBRATION[name]: [found[name].get(v, float("nan")) for v in levels] for name in names}
            return Calibration(record["round"], levels, shown)
    return None


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none that can be read."""
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def note_environment(workdir: Workdir) -> None:
    """Writes environment.json, this process's command, versions and devices, for a page that is rebuilt elsewhere."""
    versions = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    found: dict[str, Any] = {"command": _command(), "versions": versions}
    devices = jax.devices()
    found |= {"device": devices[0].device_kind, "platform": devices[0].platform, "devices": len(devices)}
    with contextlib.suppress(OSError):
        write_json(workdir.root / ENVIRONMENT, found | {"processes": process_count()}, indent=1)


def _command() -> str:
    """The command of this process, with the program's name in place of its path."""
    program = Path(sys.argv[0] if sys.argv else "")
    if not program.name or program.name in ("-c", "-m") or "kernel_launcher" in program.name:
        return "diffem_jax.run.train.run_em(config, workdir), from a Python session"
    name = "diffem" if program.name == "main.py" else program.name
    return shlex.join([*(["python"] if name.endswith(".py") else []), name, *sys.argv[1:]])
