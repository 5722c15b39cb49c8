"""Checks and measures everything that an accelerator could do differently from a CPU; on a CPU the same in small.

    python -m benchmarks.accelerator [--minutes=9] [--output=FILE] [--page]

First the checks, then figures of the CIFAR-10 U-Net and the manifold's MLP, in the order of importance. Every item is tried
by itself: one that fails is recorded with its error, those for which the minutes are not enough are named as not run, and the
file is written after each. ``--page`` puts the file's figures on docs/accelerators.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a check starts a second process on the same device

import argparse
import importlib.metadata
import json
import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks import accelerator_checks as checks
from benchmarks import accelerator_figures as figures

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = Path(__file__).parent / "accelerator.json"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
Item = tuple[str, Callable[[bool], Any]]


def items() -> list[Item]:
    """(name, small -> figures), the most important first."""
    # A program takes a GPU half a minute to compile: quick checks and the figure that matters most come first.
    quick, slow, first = checks.ITEMS[:2], checks.ITEMS[2:], figures.ITEMS[:5]
    return [*quick, *first, *slow, *figures.ITEMS[5:]]


def machine() -> dict[str, Any]:
    """The card, its driver and the versions that compute."""
    device = jax.devices()[0]
    found: dict[str, Any] = {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "backend": jax.default_backend(),
        "platform": device.client.platform_version.strip(),
        "versions": {},
    }
    for name in ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu", "flax", "optax", "numpy"):
        try:
            found["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        found["driver"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        found["driver"] = "not asked: no nvidia-smi"
    return found


def run(minutes: float, output: Path, wanted: str = "") -> dict[str, Any]:
    """Tries the items whose names contain ``wanted`` as long as the minutes last; writes the file after each."""
    began = time.monotonic()
    small = jax.default_backend() == "cpu"
    result: dict[str, Any] = {"machine": machine(), "small": small, "items": {}, "failed": {}, "not run": []}
    output.parent.mkdir(parents=True, exist_ok=True)
    for name, item in items():
        if wanted not in name:
            continue
        if time.monotonic() - began > 60 * minutes:
            result["not run"].append(name)
            continue
        start = time.monotonic()
        try:
            result["items"][name] = {**item(small), "seconds": round(time.monotonic() - start, 2)}
            print(f"{name}: {json.dumps(result['items'][name])}", flush=True)
        except Exception as error:  # whatever goes wrong on a card is a result
            result["failed"][name] = f"{type(error).__name__}: {str(error)[:600]}"
            print(f"FAILED {name}", flush=True)
            traceback.print_exc()
        result["seconds"] = round(time.monotonic() - began, 1)
        output.write_text(json.dumps(result, indent=1) + "\n")
    output.write_text(json.dumps(result, indent=1) + "\n")
    return result


def page(result: dict[str, Any]) -> str:
    """The figures of a file as Markdown."""
    m = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    lines = [f"{m['devices']} x {m['device']} ({m['driver']}); {versions}."]
    for heading, part in (("Checks", dict(checks.ITEMS)), ("Figures", dict(figures.ITEMS))):
        lines += ["", f"### {heading}", "", "| | |", "|---|---|"]
        for name in part:
            if name in result["items"]:
                found = result["items"][name]
                text = "; ".join(f"{key} {_short(value)}" for key, value in found.items() if key != "seconds")
                lines.append(f"| {name} | {text} |")
    for heading, missing in (("Failed", result["failed"]), ("Not run", dict.fromkeys(result["not run"], ""))):
        if missing:
            lines += ["", f"### {heading}", ""]
            lines += [f"* {name}{': ' + text.splitlines()[0][:200] if text else ''}" for name, text in missing.items()]
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_page(output: Path, place: Path = ROOT / "docs" / "accelerators.md") -> None:
    """Puts the figures between the page's markers."""
    text = place.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    place.write_text(f"{head}{BEGIN}\n\n{page(json.loads(output.read_text()))}\n\n{END}{tail}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--only", default="", help="items whose name contains this")
    parser.add_argument("--page", action="store_true", help="run nothing: put the file's figures on the page")
    options = parser.parse_args()
    if options.page:
        write_page(options.output)
        return
    result = run(options.minutes, options.output, options.only)
    print(page(result), flush=True)


if __name__ == "__main__":
    main()
