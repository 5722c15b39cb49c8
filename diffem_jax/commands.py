"""What the command does: its modes, what it says, and its exit codes."""

import contextlib
import errno
import functools
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import logging
from ml_collections import ConfigDict

from diffem_jax.config import validate
from diffem_jax.errors import Preempted, UserError, first_line
from diffem_jax.parallel import joined

EXIT_USER_ERROR, EXIT_LOST, EXIT_INTERRUPTED, EXIT_PREEMPTED = 2, 75, 130, 143
STORAGE_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_LOST = ("gloo", "peer", "heartbeat", "coordination", "deadline_exceeded", "unavailable", "aborted", "nccl", "barrier")
_FULL = (
    "expected a step that fits; in training take fewer examples at once (config.m_step.accumulate=2 or 4, or a smaller "
    "config.m_step.batch_size), recompute activations (config.network.remat=True, U-Nets) or compute in half precision "
    "(config.network.dtype=bfloat16), for draws take a smaller config.e_step.batch_size; then run the command again with "
    "--override: it goes on from the last checkpoint"
)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """0 done, 2 a user's mistake (one message, no traceback), 130 Ctrl-C, 143 SIGTERM with the work saved, else 1.

    75 where another process of the run was lost; one that ends by itself takes the others with it, none waits for it.
    """
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # The libraries below log every file they touch; a run's own lines are printed.
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    except UserError as error:
        _leave(EXIT_USER_ERROR, str(error))
    except KeyboardInterrupt:
        _leave(EXIT_INTERRUPTED, "interrupted; the same command goes on from the last checkpoint")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
            where = f"{error.filename or 'the work directory'}: {error.strerror}"
            cure = "what was finished is whole: make space and run the same command again"
            _leave(EXIT_USER_ERROR, f"{where}; expected free space and write permission; {cure}")
        if "RESOURCE_EXHAUSTED" in str(error):
            _leave(EXIT_USER_ERROR, f"device memory: full ({first_line(error)[:200]}); {_FULL}")
        if not isinstance(error, Preempted):
            _crash(error)
        # All processes are here together and end in order.
        _warn(f"{error}: saved; the same command goes on from here")
        sys.exit(EXIT_PREEMPTED)


def _warn(line: str) -> None:
    print(f"diffem: {line}", file=sys.stderr)


def _leave(code: int, message: str) -> NoReturn:
    _warn(message)
    if joined():
        # An orderly end would wait for the other processes, which may wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _crash(error: Exception) -> NoReturn:
    if not joined():
        raise error
    line = first_line(error)[:200]
    if isinstance(error, RuntimeError | ValueError) and any(word in line.lower() for word in _LOST):
        lost = f"another process of this run ended or cannot be reached ({type(error).__name__}: {line})"
        cure = "start every process by the same command again, which goes on from the last checkpoint"
        _leave(EXIT_LOST, f"{lost}; expected all of them; {cure}")
    traceback.print_exception(error)
    _leave(1, "this process ends, and with it the run's others; the traceback above says why")


def train(config: ConfigDict, workdir: Path, *, override: bool, profile: int = 0) -> None:
    """Trains, or goes on with, the run of a config."""
    validate(config, training=True)
    check_platform()
    from diffem_jax.run.train import run_em

    run_em(config, workdir, override=override, say=functools.partial(print, flush=True), profile=profile)


def sample(
    workdir: Path, observations: str | None, num_samples: int, output: str | None, seed: int, round: int | None = None
) -> None:
    """Writes posterior draws for an observations file, or prior draws."""
    from diffem_jax.run import sample as draw
    from diffem_jax.storage.workdir import Workdir

    if output is None:
        raise UserError("--output: missing; expected the .npz to write, for instance --output=draws.npz")
    check_platform()
    folder, target = Workdir(workdir), Path(output if output.endswith(".npz") else f"{output}.npz")
    _check_writable(target)
    problem: Any = None
    if observations is not None:
        problem, x = draw.posterior_draws(folder, observations, num_samples, seed, round)
    else:
        x = draw.prior_draws(folder, num_samples, seed, round)
    image = draw.write_draws(target, x, problem, folder)
    print(f"wrote {target}: x of shape {x.shape}{', its mean and std' if problem is not None else ''}; picture {image}")


def _check_writable(target: Path) -> None:
    """Looks before any compute whether a file can be written there."""
    parent = next((p for p in target.absolute().parents if p.exists()), Path("/"))
    try:
        if target.is_dir():
            raise IsADirectoryError
        # Trying is the only sure way: permissions say nothing of special file systems, least of all to root.
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError:
        expected = "a file in a writable folder; correct the path"
        raise UserError(f"--output: {target} cannot be written; expected {expected}") from None


def evaluate(workdir: Path, reference: str | None, round: int | None, fields: Sequence[tuple[str, str]]) -> None:
    """Measures the draws of a round of a run, with some ``fields`` of its config replaced."""
    from diffem_jax.run import evaluate as measure
    from diffem_jax.storage.workdir import Workdir

    check_platform()
    for name, value in measure.evaluate_run(Workdir(workdir), reference, round, _warn, fields).items():
        print(f"{name}: {value:.6g}")


def report(workdir: Path) -> None:
    """Rebuilds report.html."""
    from diffem_jax.report import page
    from diffem_jax.storage.workdir import Workdir

    folder = Workdir(workdir)
    folder.stored_config()
    page.rebuild(folder)
    print(f"wrote {folder.report}")


def check_platform() -> None:
    """Looks before any compute whether JAX finds devices; UserError where JAX_PLATFORMS names a platform that is not here."""
    try:
        jax.devices()
    except RuntimeError as error:
        found = f"{os.environ.get('JAX_PLATFORMS', '')!r}; JAX finds no device ({first_line(error)[:200]})"
        cure = "expected a platform that is installed here; set JAX_PLATFORMS=cpu, or unset it"
        raise UserError(f"JAX_PLATFORMS: {found}; {cure}") from error
