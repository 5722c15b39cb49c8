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
    own = {key: inner for key, inner in value.items() if not isinstance(inner, dict | list)}
    out = [f"**{title}**"] if title and own else []
    if own:
        out += table(["", ""], [[key.replace("_", " "), inner] for key, inner in own.items()])
    flat = {key: inner for key, inner in value.items() if isinstance(inner, dict) and _is_flat(inner)}
    if len(flat) > 1 and len({tuple(inner) for inner in flat.values()}) == 1:
        heads = list(next(iter(flat.values())))
        out += table(["", *(h.replace("_", " ") for h in heads)], [[k, *inner.values()] for k, inner in flat.items()])
    else:
        flat = {}
    for key, inner in value.items():
        name = " / ".join(filter(None, (title, key.replace("_", " "))))
        if isinstance(inner, list):
            out += ["", f"**{name}**", *_records(inner)]
        elif isinstance(inner, dict) and key not in flat:
            out += ["", *blocks(name, inner)]
    return out


def _is_flat(value: dict[str, Any]) -> bool:
    return not any(isinstance(inner, dict | list) for inner in value.values())


def _records(rows: list[Any]) -> list[str]:
    if not rows or not isinstance(rows[0], dict):
        return ["", ", ".join(map(show, rows))]
    heads = list(dict.fromkeys(key for row in rows for key in row))
    return table([h.replace("_", " ") for h in heads], [[row.get(head) for head in heads] for row in rows])


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
