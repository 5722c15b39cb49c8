"""What the command line does: finding configs, parsing flags, the modes and the exit codes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import ConfigDict

from diffem_jax.config import OPEN_SECTIONS, check_training, default, flatten, nearest, validate
from diffem_jax.errors import UserError, first_line
from diffem_jax.usage import HELP, paint

EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 143
EXIT_INTERRUPTED = 130
EXIT_LOST = 75
_LOST = ("gloo", "peer", "heartbeat", "coordination", "deadline_exceeded", "unavailable", "aborted", "nccl", "barrier")
STORAGE_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


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
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            _crash(error)
        _leave(
            EXIT_USER_ERROR,
            f"{error.filename or 'the work directory'}: {error.strerror}; expected free space and write permission; what was "
            "finished is whole: make space and run the same command again",
        )
    except Exception as error:
        if type(error).__name__ != "Preempted":
            _crash(error)
        # All processes are here together and end in order.
        print(f"{_name()} {error}: saved; the same command goes on from here", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)


def _several() -> bool:
    parallel = sys.modules.get("diffem_jax.parallel")
    return parallel is not None and parallel.joined()


def _leave(code: int, message: str) -> NoReturn:
    print(f"{_name()} {message}", file=sys.stderr)
    if _several():
        # An orderly end would wait for the other processes, which may wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _crash(error: Exception) -> NoReturn:
    if not _several():
        raise error
    line = first_line(error)[:200]
    if isinstance(error, RuntimeError | ValueError) and any(word in line.lower() for word in _LOST):
        _leave(
            EXIT_LOST,
            f"another process of this run ended or cannot be reached ({type(error).__name__}: {line}); expected all of them; "
            "start every process by the same command again, which goes on from the last checkpoint",
        )
    traceback.print_exception(error)
    _leave(1, "this process ends, and with it the run's others; the traceback above says why")


def _name() -> str:
    return paint("diffem:", "bad", sys.stderr)


def config_folders() -> list[Path]:
    """Where configs that ship with the package lie: in an installed package, and in a checkout."""
    package = Path(__file__).parent
    return [package / "configs", package.parent / "configs"]


def find_config(argv: Sequence[str]) -> list[str]:
    """Replaces --config=NAME[:VARIANT], or --config NAME, by the path of the config of that name."""
    out = list(argv)
    for i in range(len(out) - 1, -1, -1):
        if out[i] in ("--config", "-config") and i + 1 < len(out) and not out[i + 1].startswith("-"):
            out[i : i + 2] = [f"{out[i]}={out[i + 1]}"]
    for i, argument in enumerate(out):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config") or not equals:
            continue
        name, colon, variant = value.partition(":")
        if name.endswith(".py") or "/" in name:
            if not Path(name).is_file():
                raise UserError(f"--config: {name}: no such file; {nearest(Path(name).stem, shipped_configs())}")
            continue
        found = [f / f"{name}.py" for f in config_folders() if (f / f"{name}.py").is_file()]
        if not found:
            raise UserError(
                f"--config: {name!r} is neither a file nor a config of the package; {nearest(name, shipped_configs())}"
            )
        out[i] = f"{flag}={found[0]}{colon}{variant}"
    return out


def shipped_configs() -> list[str]:
    """Names of the configs that come with the package."""
    return sorted({p.stem for folder in config_folders() for p in folder.glob("*.py") if p.stem != "__init__"})


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags, turning what absl and ml_collections raise into user errors.

    Raises:
        UserError: an unknown flag or config field, or a value of the wrong type; with the nearest name.
    """
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):
            raise UserError(_unknown_field(error.flagname.removeprefix("config."))) from None
        own = [f"--{name}" for name in sorted(set(re.findall(r"--([a-z_]+)", HELP)))]
        raise UserError(
            f"--{error.flagname}: unknown flag; {nearest('--' + error.flagname, own)} (see --help)"
        ) from None
    except flags.Error as error:
        raise UserError(_flag_error(_told(error))) from None
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise UserError(_config_error(argv, error)) from None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config: the file cannot be read ({type(error).__name__}: {error})") from None


_KINDS = {int: "a whole number", float: "a number", bool: "True or False", list: "a tuple"}


def _flag_error(told: str) -> str:
    """What absl says of a flag's value, as this package says it."""
    found = re.fullmatch(r"flag --([\w.]+)=(.*?): (.*)", told, re.DOTALL)
    if found is None:
        fault = re.match(r"(ValueError: )?(?=variant |\w+Error: )", told)
        return f"--config: {told[fault.end() :]}; correct it" if fault else f"{told}; see --help"
    name, value, why = found.groups()
    field, known = name.removeprefix("config."), flatten(default())
    if field != name and type(known.get(field)) in _KINDS:
        return f"{name}: {value!r}; expected {_KINDS[type(known[field])]}, such as the default {known[field]!r}; correct it"
    if choices := re.search(r"one of <(.*)>", why):
        return f"--{name}: {value!r} is not known; {nearest(value, choices[1].split('|'))}"
    for python, plain in (
        ("invalid literal for int", "a whole number"),
        ("could not convert string to fl", "a number"),
    ):
        why = f"expected {plain}" if why.startswith(python) else why
    return f"--{name}: {value!r}; {why}; correct it"


def _unknown_field(field: str) -> str:
    """That there is no such field, with the nearest one."""
    section, known = field.partition(".")[0], set(flatten(default()))
    if section not in OPEN_SECTIONS:
        return f"config.{field}: unknown field; {nearest(field, known)}"
    from diffem_jax.corruptions import CORRUPTIONS
    from diffem_jax.networks import NETWORKS

    classes = (NETWORKS if section == "network" else CORRUPTIONS).values()
    fields = {f"{section}.{f.name}" for c in classes for f in dataclasses.fields(c)} - {
        f"{section}.{own}" for own in ("shape", "parent", "name")
    }
    if field in fields:
        return f"config.{field}: not in this config file, so no flag can set it; add it to a copy of the file"
    return f"config.{field}: unknown field; {nearest(field, fields)}"


def _config_error(argv: Sequence[str], error: Exception) -> str:
    known = flatten(default())
    for argument in argv:
        name = argument.partition("=")[0].removeprefix("--config.")
        if argument.startswith("--config.") and name not in known:
            return _unknown_field(name)
    return f"--config: {_told(error)}; correct the value"


def _told(error: Exception) -> str:
    """The line of an error's message that says what is wrong: the last one of a traceback, else the first."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if any("Traceback" in line for line in lines) else 0]


def join(coordinator: str, processes: int, process: int) -> None:
    """Joins a run of several processes."""
    from diffem_jax import parallel

    parallel.initialize("" if coordinator == "auto" else coordinator, processes, process)


def train(config: ConfigDict | None, workdir: Path, *, override: bool) -> None:
    """Trains, or goes on with, the run of a config."""
    if config is None:
        raise UserError(f"--config: missing; expected a config file or a name: {', '.join(shipped_configs())}")
    try:
        getattr(config, "rounds", None)  # a file that failed to read another one fails only here
    except OSError as error:
        raise UserError(f"--config: the file cannot be read ({error}); correct it") from None
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config: get_config returned a {type(config).__name__}; expected a ConfigDict, as default() gives"
        )
    validate(config)
    check_training(config)
    from diffem_jax.run.train import run_em

    run_em(config, workdir, override=override, say=_say)


def sample(
    workdir: Path, observations: str | None, num_samples: int, output: str | None, seed: int, round: int | None = None
) -> None:
    """Writes posterior draws for an observations file, or prior draws."""
    from diffem_jax.run import sample as draw
    from diffem_jax.storage.workdir import Workdir

    if output is None:
        raise UserError("--output: missing; expected the .npz to write, for instance --output=draws.npz")
    folder = Workdir(workdir)
    target = Path(output) if output.endswith(".npz") else Path(output + ".npz")
    _check_writable(target)
    problem: Any = None
    if observations is not None:
        problem, x = draw.posterior_draws(folder, observations, num_samples, seed, round)
    else:
        x = draw.prior_draws(folder, num_samples, seed, round)
    image = draw.write_draws(target, x, problem)
    _say(
        f"wrote {target}: x of shape {x.shape}"
        + (", its mean and std" if problem is not None else "")
        + f"; picture {image}"
    )


def _check_writable(target: Path) -> None:
    """Looks before any compute whether a file can be written there."""
    parent = target.parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    try:
        if target.is_dir() or not parent.is_dir():
            raise OSError
        # Trying is the only sure way: permissions say nothing of special file systems, least of all to root.
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError:
        raise UserError(
            f"--output: {target} cannot be written; expected a file in a writable folder; correct the path"
        ) from None


def evaluate(workdir: Path, reference: str | None, round: int | None = None) -> None:
    """Measures the draws of a round of a run."""
    from diffem_jax.run import evaluate as measure
    from diffem_jax.storage.workdir import Workdir

    def warn(line: str) -> None:
        print(f"{_name()} {line}", file=sys.stderr)

    for name, value in measure.evaluate_run(Workdir(workdir), reference, round, warn).items():
        _say(f"{name}: {value:.6g}")


def report(workdir: Path) -> None:
    """Rebuilds report.html."""
    from diffem_jax.report import page as page
    from diffem_jax.storage.workdir import Workdir

    folder = Workdir(workdir)
    folder.stored_config()
    page.write(folder)
    _say(f"wrote {folder.report}")


def _say(line: str) -> None:
    head, colon, rest = line.partition(": ")
    ends = head in ("done", "next") and bool(colon)
    print(paint(head, "good" if head == "done" else "strong") + colon + rest if ends else line, flush=True)
