"""Checks and measures everything that an accelerator could do differently from a CPU; on a CPU the same in small.

    python -m benchmarks.accelerator [--minutes=9] [--output=FILE] [--page]

First the checks, then figures of the CIFAR-10 U-Net and the manifold's MLP, in the order of importance. Every item is tried
by itself: one that fails is recorded with its error, those for which the minutes are not enough are named as not run, and the
file is written after each. ``--page`` puts the file's figures on docs/accelerators.md.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a check starts a second process on the same device

import argparse
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks import accelerator_checks as checks
from benchmarks import accelerator_figures as figures
from benchmarks import common

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = Path(__file__).parent / "accelerator.json"


def items() -> list[tuple[str, Callable[[bool], Any]]]:
    """(name, small -> figures), the most important first."""
    # A program takes a GPU half a minute to compile: quick checks and the figure that matters most come first.
    return [*checks.ITEMS[:2], *figures.ITEMS[:5], *checks.ITEMS[2:], *figures.ITEMS[5:]]


def run(minutes: float, output: Path, wanted: str = "") -> dict[str, Any]:
    """Tries the items whose names contain ``wanted`` as long as the minutes last; writes the file after each."""
    began, small = time.monotonic(), jax.default_backend() == "cpu"
    result: dict[str, Any] = {"machine": common.machine(), "small": small, "items": {}, "failed": {}, "not run": []}
    output.parent.mkdir(parents=True, exist_ok=True)
    for name, item in items():
        start = time.monotonic()
        if wanted not in name:
            continue
        if start - began > 60 * minutes:
            result["not run"].append(name)
            continue
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
        for name in (name for name in part if name in result["items"]):
            found = {key: value for key, value in result["items"][name].items() if key != "seconds"}
            cells = (f"{key} {v:.4g}" if isinstance(v, float) else f"{key} {v}" for key, v in found.items())
            lines.append(f"| {name} | {'; '.join(cells)} |")
    for heading, missing in (("Failed", result["failed"]), ("Not run", dict.fromkeys(result["not run"], ""))):
        if missing:
            lines += ["", f"### {heading}", ""]
            lines += [f"* {name}{': ' + text.splitlines()[0][:200] if text else ''}" for name, text in missing.items()]
    return "\n".join(lines)


def write_page(output: Path, place: Path = ROOT / "docs" / "accelerators.md") -> None:
    """Puts the figures of a file between the page's markers."""
    common.write_page(place, page(json.loads(output.read_text())))


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
    else:
        print(page(run(options.minutes, options.output, options.only)), flush=True)


if __name__ == "__main__":
    main()
