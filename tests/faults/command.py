"""The command line in this process: fast, and with everything that a shell would see."""

import contextlib
import hashlib
import io
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
from absl import flags
from absl import logging as absl_logging
from absl.testing import flagsaver

from diffem_jax import main
from diffem_jax.run import train

ROOT = Path(__file__).resolve().parents[2]

# Libraries that define absl flags on import do so before flags are saved and restored, or their own reads would fail.
with contextlib.suppress(ImportError):
    import grain  # noqa: F401


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def command(*argv: str) -> Ended:
    """Runs ``diffem argv...`` and leaves flags, warnings and verbosity as they were."""
    out, err = io.StringIO(), io.StringIO()
    verbosity, code = absl_logging.get_verbosity(), 0
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with (
        # Optax's schedules promote integers by themselves; the package's own maths is tested under strict promotion.
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("raise"),
        jax.debug_key_reuse(True),
        _same_flags(),
        warnings.catch_warnings(),
        mock.patch.object(sys, "argv", ["diffem", *argv]),
        mock.patch.object(train, "draw_width", lambda config: 1.0),  # it compiles a sampler for the sake of a warning
        streams[0],
        streams[1],
    ):
        try:
            main.run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            absl_logging.set_verbosity(verbosity)
            logging.captureWarnings(False)
    return Ended(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _same_flags() -> Iterator[None]:
    saved = flagsaver.save_flag_values()
    try:
        yield
    finally:
        # Flags that libraries define as they are imported stay; those of the config go.
        new = {n: v for n, v in flagsaver.save_flag_values().items() if n not in saved and not n.startswith("config")}
        flagsaver.restore_flag_values({**saved, **new})
        flags.FLAGS.unparse_flags()
        sys.modules.pop("config_config", None)


def complete(*argv: str) -> Ended:
    """Runs a command that must end well."""
    ended = command(*argv)
    assert ended.code == 0, ended
    return ended


def python(code: str, *argv: object, cwd: Path = ROOT, **variables: str) -> str:
    """What code prints in a process of its own, which must end well."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | variables
    command = [sys.executable, "-c", code, *map(str, argv)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_tensorflow(folder: Path, code: str, *argv: object) -> str:
    """What code prints in a process where TensorFlow cannot be imported."""
    block = folder / "block" / "tensorflow"
    block.mkdir(parents=True)
    (block / "__init__.py").write_text("raise ImportError('TensorFlow is blocked in this test')")
    return python(code, *argv, PYTHONPATH=os.pathsep.join([str(block.parent), str(ROOT)]))


def snapshot(*folders: Path) -> dict[str, tuple[int, str]]:
    """Every path below some folders with its content's digest and time, but for locks, which are nobody's data."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.name == ".lock":
                continue
            whole = path.is_file()
            digest = hashlib.blake2b(path.read_bytes()).hexdigest() if whole else ""
            found[str(path)] = (path.stat().st_mtime_ns if whole else 0, digest)
    return found


def refused(ended: Ended, *words: str) -> None:
    """A user error: exit code 2, one message on one screen with these words, no traceback."""
    assert ended.code == 2, ended
    assert ended.err.startswith("diffem: ") or "\ndiffem: " in ended.err, ended.err
    assert "Traceback" not in ended.err and ended.err.count("\n") <= 24, ended.err
    for word in words:
        assert word in ended.err, (word, ended.err)
