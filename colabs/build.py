"""Makes the notebooks from the percent scripts beside them and the install cell, and with --execute runs them.

python -m colabs.build                       # writes the .ipynb, without outputs
python -m colabs.build --execute             # and runs every one
python -m colabs.build --execute 01 04       # only these; exit code 1 where one takes longer than --minutes=6

install.py is the first code cell of each. It and the "Open in Colab" badges lead to the repository that pyproject.toml names,
[tool.diffem_jax]; after a change there run this again. While it is the placeholder, install cells say so.
"""

import argparse
import re
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parent
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
INSTALL = FOLDER / "install.py"
SECONDS_PER_CELL = 1200
HOW = """To open this notebook: the badge; `jupyter lab colabs/{name}.ipynb` in a checkout; or upload the .ipynb at colab.research.google.com
(File, Upload notebook). `make colabs` runs it; `DIFFEM_COLAB_QUICK=1` in the environment shortens everything to seconds."""


def notebook(script: Path) -> nbformat.NotebookNode:
    """The notebook of a script: the same for the same text, whatever the version of jupytext."""
    node = jupytext.read(script, fmt="py:percent")
    node.cells.insert(1, nbformat.v4.new_code_cell(INSTALL.read_text().rstrip()))
    for place, cell in enumerate(node.cells):
        cell["id"] = f"cell-{place:02d}"
        cell["metadata"] = {}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    node.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    node.nbformat, node.nbformat_minor = 4, 5
    nbformat.validate(node)
    return node


def repository() -> str:
    """The address that pyproject.toml names."""
    settings = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())
    return settings["tool"]["diffem_jax"]["repository"].rstrip("/")


def addressed(source: str, address: str) -> str:
    """An install cell that names this address."""
    return re.sub(r'^REPOSITORY = ".*"$', f'REPOSITORY = "{address}"', source, flags=re.MULTILINE)


def badge(script: Path, address: str) -> str:
    """The badge that opens a notebook of the repository on Colab, in Markdown."""
    link = f"https://colab.research.google.com/github/{address.split('github.com/')[-1]}/blob/main/colabs/{script.stem}.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def text(script: Path, address: str) -> str:
    """What belongs in the .ipynb: the script's cells, with a badge above and how to open it below the first."""
    node = notebook(script)
    how = HOW.format(name=script.stem)
    node.cells[0]["source"] = f"{badge(script, address)}\n\n{node.cells[0]['source']}\n\n{how}"
    return nbformat.writes(node).rstrip("\n") + "\n"


def execute(script: Path) -> float:
    """Runs a notebook in an empty folder; returns the seconds. ``CellExecutionError`` of nbclient where a cell fails."""
    from nbclient import NotebookClient  # needed for this alone

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook(script), timeout=SECONDS_PER_CELL, kernel_name="python3", resources=resources).execute()
    return time.monotonic() - began


def main() -> None:
    """Writes, and perhaps runs, all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--execute", action="store_true", help="run every notebook")
    parser.add_argument("--minutes", type=float, default=6, help="a notebook that takes longer on a CPU is a failure")
    parser.add_argument("names", nargs="*", help="beginnings of the names of those wanted; all without")
    arguments = parser.parse_args()
    wanted, address, slow = tuple(arguments.names) or ("",), repository(), []
    INSTALL.write_text(addressed(INSTALL.read_text(), address))
    for script in filter(lambda path: path.stem.startswith(wanted), SCRIPTS):
        script.with_suffix(".ipynb").write_text(text(script, address))
        if arguments.execute:
            seconds = execute(script)
            print(f"{script.stem}: {seconds:.0f} s", flush=True)
            slow += [script.stem] * (seconds > 60 * arguments.minutes)
    if slow:
        sys.exit(f"FAILED: took longer than {arguments.minutes:g} minutes: {', '.join(slow)}")


if __name__ == "__main__":
    main()
