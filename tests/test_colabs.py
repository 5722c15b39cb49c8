"""The notebooks are those of their scripts, and every script runs, shortened."""

import importlib.machinery
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

pytest.importorskip("jupytext", reason="notebooks are made by jupytext, an extra of the tests")
from colabs import build
from colabs.build import SCRIPTS, addressed, repository, text

ROOT = Path(__file__).parent.parent
each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def test_the_install_cell_names_the_repository_of_pyproject():
    cell = build.INSTALL.read_text()
    assert f'REPOSITORY = "{repository()}"\n' in cell, "run python -m colabs.build"
    assert addressed(cell, "https://github.com/a/b") == cell.replace(repository(), "https://github.com/a/b")


@pytest.mark.parametrize(
    ("layout", "package"),
    [(".", "git+https://github.com/a/b"), ("diffem_jax/diffem_jax", "./diffem_jax"), ("../diffem_jax", "./..")],
    ids=["nothing", "clone_in_this_folder", "notebook_of_a_checkout"],
)
@pytest.mark.parametrize("plugin", [None, "jax-cuda12-plugin", "libtpu"])
def test_the_install_cell_installs(layout, package, plugin, tmp_path, monkeypatch):
    here = tmp_path / "here"
    (here / layout).mkdir(parents=True, exist_ok=True)
    if layout != ".":
        (here / layout / "__init__.py").touch()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [str(here)])
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])  # none of an editable installation
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [mock.Mock(metadata={"Name": plugin or "jax"})])
    monkeypatch.setitem(sys.modules, "IPython", mock.Mock())
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffem_jax"]:
        monkeypatch.delitem(sys.modules, name)
    exec(addressed(build.INSTALL.read_text(), "https://github.com/a/b"), {})
    magic = sys.modules["IPython"].get_ipython().run_line_magic
    extra = {"jax-cuda12-plugin": " 'jax[cuda12]'", "libtpu": " 'jax[tpu]'", None: ""}[plugin]
    magic.assert_called_once_with("pip", f"install -q {package}{extra}")


def test_the_install_cell_leaves_an_installed_package_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", mock.Mock())
    exec(build.INSTALL.read_text(), {})
    sys.modules["IPython"].get_ipython.assert_not_called()


@each
def test_notebook_is_the_scripts_and_its_badge_opens_it(script):
    first = json.loads(script.with_suffix(".ipynb").read_text())["cells"][0]["source"]
    link = re.search(r"^\[!\[Open in Colab\]\(https://\S+\.svg\)\]\((\S+)\)\n$", first[0])[1]
    account = repository().removeprefix("https://github.com/")
    assert link == f"https://colab.research.google.com/github/{account}/blob/main/colabs/{script.stem}.ipynb"
    stored = script.with_suffix(".ipynb").read_text()
    assert stored == text(script, repository()), "run python -m colabs.build"
    code = [cell for cell in json.loads(stored)["cells"] if cell["cell_type"] == "code"]
    assert code and all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


# Scripts one after another in one process, each as __main__: loading and much of the compilation are done once.
ONE_AFTER_ANOTHER = """
import pathlib, runpy, sys, tempfile
for script in sys.argv[1:]:
    folder = tempfile.tempdir = tempfile.mkdtemp(dir=pathlib.Path.cwd())
    print("==", script, flush=True)
    runpy.run_path(script, run_name="__main__")
    print("==", len(list(pathlib.Path(folder).rglob("*.png"))), "pictures", flush=True)
"""


# 06 pretends to have two devices and has a process of its own; what it shows, tests/test_em.py shows too.
@pytest.mark.slow
@pytest.mark.parametrize("scripts", [SCRIPTS[:5], SCRIPTS[5:]], ids=["one device", "devices"])
def test_scripts_run_shortened(scripts, tmp_path):
    pytest.importorskip("IPython", reason="the notebooks show pictures by IPython")
    changed = {"DIFFEM_COLAB_QUICK": "1", "PYTHONPATH": str(ROOT), "DIFFEM_DATA_DIR": str(tmp_path / "cache")}
    changed |= {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", ONE_AFTER_ANOTHER, *map(str, scripts)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | changed, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    outputs = re.findall(r"^== (\S+)\n(.*?)^== (\d+) pictures\n", done.stdout, re.DOTALL | re.MULTILINE)
    assert [name for name, _, _ in outputs] == list(map(str, scripts))
    for name, printed, pictures in outputs:
        assert printed.count("Image object") >= 1 and int(pictures) >= 1, f"{name}: no picture"
