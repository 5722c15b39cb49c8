"""What is shipped: versions agree, the oldest ones are stated, and (slow) the wheel of the sdist works in an environment without the checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from unittest import mock

import pytest
import setuptools
from faults.harness import small

import diffem_jax

ROOT = Path(__file__).parent.parent
SHIPPED = ("setup.py", "README.md", "LICENSE", "pyproject.toml", "diffem_jax", "configs")


@pytest.fixture
def metadata(monkeypatch, tmp_path):
    """What setup.py hands to setuptools, run where there is nothing to read."""
    source = (ROOT / "setup.py").read_text()
    monkeypatch.chdir(tmp_path)
    with (
        mock.patch.object(setuptools, "setup") as setup,
        mock.patch.object(setuptools, "find_packages", return_value=["diffem_jax"]),
        mock.patch("builtins.open", side_effect=AssertionError("setup.py reads a file")),
        mock.patch.object(Path, "open", side_effect=AssertionError("setup.py reads a file")),
    ):
        exec(compile(source, "setup.py", "exec"), {"__name__": "__main__"})
    return setup.call_args.kwargs


def test_versions_agree(metadata):
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    changed = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert metadata["version"] == diffem_jax.__version__ == cited == changed
    assert metadata["license"] == "Apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_oldest_versions_are_those_that_are_tested(metadata):
    bounds = dict(line.split(">=") for line in metadata["install_requires"] if ">=" in line)
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "tests/oldest.txt").read_text(), re.M))
    assert bounds.pop("jax") == pinned["jax"] == pinned.pop("jaxlib")
    assert {"flax", "optax", "orbax-checkpoint", "numpy"} <= bounds.keys()
    assert {name: pinned[name] for name in bounds} == bounds


def test_every_extra_that_an_error_names_exists(metadata):
    sources = [path.read_text() for path in (ROOT / "diffem_jax").rglob("*.py")]
    named = {extra for text in sources for extra in re.findall(r"diffem-jax\[([a-z]+)\]", text)}
    named |= {"tensorboard", "wandb"}
    assert named <= metadata["extras_require"].keys()


def test_the_workflow_is_the_ci_script():
    commands = re.findall(r"^\s*- run: (.*)$", (ROOT / ".github/workflows/ci.yml").read_text(), re.M)
    assert commands[-1] == "bash .ci/run" and all("apt-get" in command for command in commands[:-1])
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    called = re.findall(r"^make ([\w-]+)$", (ROOT / ".ci/run").read_text(), re.M)
    assert {"lint", "test", "test-tfds", "test-oldest"} <= set(called) <= targets


def installed(*command, cwd, timeout=600):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment = (os.environ if "build" in command else kept) | {"JAX_PLATFORMS": "cpu"}
    environment["DIFFEM_DATA_DIR"] = str(cwd / "cache")
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_wheel_of_the_sdist_works_without_the_checkout(tmp_path):
    """With the dependencies of the environment that runs the test: ``make test`` installs what setup.py asks for."""
    pytest.importorskip("build", reason="wheels are built by build, an extra of the developers")
    source = tmp_path / "source"
    source.mkdir()
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    installed(sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(source), cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert len(list((tmp_path / "dist").glob("*.tar.gz"))) == 1

    venv.create(tmp_path / "empty", with_pip=True)
    python, diffem = (str(tmp_path / "empty/bin" / name) for name in ("python", "diffem"))
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    installed(python, *pip, str(wheel), cwd=tmp_path)
    # After the installation, or pip would find a package of this name. Lines of .pth files are not followed to further .pth files,
    # so an editable installation of the checkout stays out.
    (own,) = (tmp_path / "empty/lib").glob("python*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    here = tmp_path / "some where else"
    here.mkdir()
    assert "--mode=sample" in installed(diffem, "--help", cwd=here)
    flags = small(data__num_examples=200, m_step__batch_size=64, eval__metrics="('psnr',)")
    out = installed(diffem, "--config=digits", "--workdir=a run", *flags, cwd=here)
    assert "done: 1 round in" in out and (here / "a run/report.html").read_text().count("<svg")
    draw = "import diffem_jax as dx; print(dx.load('digits').prior_draws(3).shape, dx.__file__)"
    out = installed(python, "-c", draw, cwd=here)
    assert out.startswith("(3, 8, 8, 1)") and str(tmp_path / "empty") in out
