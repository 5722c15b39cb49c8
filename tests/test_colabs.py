"""The notebooks are those of their scripts, and every script runs, shortened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="notebooks are made by jupytext, an extra of the tests")
from colabs.build import PLACEHOLDER, SCRIPTS, text

ROOT = Path(__file__).parent.parent
each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert len(SCRIPTS) >= 6


def test_all_install_alike_and_get_badges():
    cells = {script.read_text().split("# %%\n")[1] for script in SCRIPTS}
    assert len(cells) == 1
    address = "https://github.com/somebody/diffem_jax"
    for script in SCRIPTS:
        assert PLACEHOLDER in text(script)
        published = text(script, address + "/")
        assert PLACEHOLDER not in published and f'REPOSITORY = \\"{address}\\"' in published
        assert (
            f"colab.research.google.com/github/somebody/diffem_jax/blob/main/colabs/{script.name[:-3]}.ipynb"
            in published
        )


@each
def test_notebook_is_the_scripts(script):
    stored = script.with_suffix(".ipynb").read_text()
    assert stored == text(script), "run python -m colabs.build"
    code = [cell for cell in json.loads(stored)["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


@each
def test_script_runs_shortened(script, tmp_path):
    pytest.importorskip("IPython", reason="the notebooks show pictures by IPython")
    changed = {
        "DIFFEM_COLAB_QUICK": "1",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
        "DIFFEM_DATA_DIR": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "agg",
        # What takes the time here is compilation.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | changed, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("Image object") >= 1
    assert list(tmp_path.rglob("*.png")), "no picture was written"
