"""docs/performance.md from benchmarks/results/*.json: numbers are generated, never typed.

python -m benchmarks.table
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.run import NAMES

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"


def about(name: str) -> str:
    """What a benchmark measures: its docstring without the command."""
    source = HERE / f"{name}.py"
    text = (ast.get_docstring(ast.parse(source.read_text())) if source.exists() else "") or ""
    return "\n\n".join(p for p in text.split("\n\n") if not p.startswith(("python -m", "    python -m")))


def table(heads: list[str], rows: list[list[Any]]) -> list[str]:
    return [
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(map(show, row)) + " |" for row in rows),
    ]


def blocks(title: str, value: dict[str, Any]) -> list[str]:
    """Numbers become one table, records side by side another, whatever lies deeper a block of its own.

    Lists of single rounds stay in the JSON file.
    """
    value = {key: inner for key, inner in value.items() if not key.endswith("rounds")}
    numbers = {key: inner for key, inner in value.items() if not isinstance(inner, dict | list)}
    out = [f"**{title}**"] if title and numbers else []
    if numbers:
        out += table(["", ""], [[key.replace("_", " "), inner] for key, inner in numbers.items()])
    records = {key: inner for key, inner in value.items() if isinstance(inner, dict)}
    alike = {(*inner, *map(type, inner.values())) for inner in records.values()}
    if (
        len(records) > 1
        and len(alike) == 1
        and not any(isinstance(v, dict | list) for r in records.values() for v in r.values())
    ):
        heads = [head.replace("_", " ") for head in next(iter(records.values()))]
        out += table(["", *heads], [[key, *inner.values()] for key, inner in records.items()])
        records = {}
    for key, inner in value.items():
        name = " / ".join(filter(None, (title, key.replace("_", " "))))
        if isinstance(inner, list):
            heads = list(dict.fromkeys(head for row in inner for head in row))
            rows = [[row.get(head) for head in heads] for row in inner]
            out += ["", f"**{name}**", *table([head.replace("_", " ") for head in heads], rows)]
        elif key in records:
            out += ["", *blocks(name, inner)]
    return out


def show(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    out = [
        "# Performance",
        "",
        "Written by `python -m benchmarks.table` from `benchmarks/results/`, which holds every number. `python -m benchmarks.NAME`",
        f"measures one again, `make bench` these: {', '.join(NAMES)}.",
    ]
    for path in sorted(path for path in RESULTS.glob("*.json") if not path.stem.startswith("scaling")):
        out += [
            "",
            f"## {path.stem.replace('_', ' ')}",
            "",
            about(path.stem),
            *blocks("", {k: v for k, v in json.loads(path.read_text()).items() if k != "cores"}),
        ]
    PAGE.write_text("\n".join(out) + "\n")
    print(f"wrote {PAGE.name}")


if __name__ == "__main__":
    main()
