"""docs/performance.md from benchmarks/results/*.json: numbers are generated, never typed.

python -m benchmarks.table
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


def lines(name: str, value: Any) -> list[str]:
    """A table row a number, with its path as name; lists of records become tables."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in lines(f"{name} / {key}" if name else key, inner)]
    if isinstance(value, list):
        if not value:
            return []
        heads = list(value[0])
        body = ["", f"{name}:", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        body += ["| " + " | ".join(show(row[head]) for head in heads) + " |" for row in value]
        return [*body, "", "| | |", "|---|---|"]
    return [f"| {name} | {show(value)} |"]


def show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    out = [
        "# Performance",
        "",
        "Written by `python -m benchmarks.table` from `benchmarks/results/`; `make bench` measures all anew.",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        out += ["", f"## {path.stem}", "", "| | |", "|---|---|", *lines("", json.loads(path.read_text()))]
    PAGE.write_text("\n".join(out) + "\n")
    print(f"wrote {PAGE.name}")


if __name__ == "__main__":
    main()
