"""docs/performance.md from benchmarks/results/*.json: numbers are generated, never typed.

python -m benchmarks.table              # the page from the results that are there
python -m benchmarks.table --measure    # every benchmark once more, each in a process of its own, then the page
"""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, markdown

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
NAMES = ("memory", "start", "overhead", "updates", "loop", "width")
HEAD = f"""# Performance

Written by `python -m benchmarks.table` from `benchmarks/results/`, which holds every number. `python -m benchmarks.NAME`
measures one again, `make bench` these: {", ".join(NAMES)}."""


def about(name: str) -> str:
    """What a benchmark measures: its docstring without the command."""
    text = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or ""
    return "\n\n".join(part for part in text.split("\n\n") if not part.lstrip().startswith("python -m"))


def table(heads: list[str], rows: list[list[Any]]) -> list[str]:
    """The lines of a Markdown table."""
    return ["", markdown([head.replace("_", " ") for head in heads], (map(show, row) for row in rows))]


def blocks(title: str, value: dict[str, Any]) -> list[str]:
    """Numbers become one table, records side by side another, whatever lies deeper a block of its own."""
    numbers = {key: inner for key, inner in value.items() if not isinstance(inner, dict)}
    out = [f"**{title}**"] if title and numbers else []
    if numbers:
        out += table(["", ""], [[key.replace("_", " "), inner] for key, inner in numbers.items()])
    records = {key: inner for key, inner in value.items() if isinstance(inner, dict)}
    shapes = {(*inner, *map(type, inner.values())) for inner in records.values()}
    flat = not any(isinstance(v, dict) for record in records.values() for v in record.values())
    if len(records) > 1 and len(shapes) == 1 and flat:
        heads = ["", *next(iter(records.values()))]
        out += table(heads, [[key, *inner.values()] for key, inner in records.items()])
        records = {}
    for key, inner in records.items():
        out += ["", *blocks(" / ".join(filter(None, (title, key.replace("_", " ")))), inner)]
    return out


def show(value: Any) -> str:
    """A cell."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measure() -> list[str]:
    """Runs every benchmark; returns the names of those that failed."""
    return [name for name in NAMES if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode]


def main() -> None:
    """Writes the page."""
    out = [HEAD]
    for path in sorted(path for path in RESULTS.glob("*.json") if path.stem != "scaling"):
        result = {key: value for key, value in json.loads(path.read_text()).items() if key != "cores"}
        out += ["", f"## {path.stem.replace('_', ' ')}", "", about(path.stem), *blocks("", result)]
    PAGE.write_text("\n".join(out) + "\n")
    print(f"wrote {PAGE.name}")


if __name__ == "__main__":
    failed = measure() if "--measure" in sys.argv else []
    main()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
