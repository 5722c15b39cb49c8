"""What ``diffem --help`` prints, and colour that is used on a terminal only."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TextIO

HELP = """\
diffem: learn p(x | y) and p(x) from corrupted observations alone

  diffem --config=digits --workdir=runs/digits
      train on a config of the package (or a file); the same command goes on after a stop
  diffem --mode=sample --workdir=runs/digits --observations=obs.npz --num_samples=8 --output=out.npz
      draws of p(x | y) for new observations; without --observations, draws of p(x)
  diffem --config=own_data --config.data.path=obs.npz --workdir=runs/mine
      train on your own observations: an .npz with y and, where there are operators, mask or operator

  --workdir=FOLDER       the run's folder; every mode needs it
  --mode=MODE            train (the default), sample, evaluate, or report (writes report.html anew)
  --config=NAME          train: a config file, or the name of one of the package, NAME:VARIANT for a variant:
                         {configs}
  --config.FIELD=VALUE   train: any field, as in --config.rounds=8 --config.m_step.steps=2000
  --override             train: go on although the config differs from the folder's
  --observations=FILE    sample: .npz of observations
  --num_samples=N        sample: draws per observation, or of the prior
  --output=FILE          sample: the .npz to write; a picture goes beside it
  --round=N              sample, evaluate: the round; else the one the stopping rule picked, else the last
  --sample_seed=N        sample: seed of the draws
  --reference=FILE       evaluate: .npz with clean x, for measuring only
  --coordinator, --num_processes, --process_id     several processes; --coordinator=auto on a cluster

Exit codes: 0 done; 2 a mistake, with its cure in one message; 130 Ctrl-C; 143 SIGTERM with the work saved;
75 another process of the run was lost; 1 a fault of the program.
After 130, 143 and 75 the same command goes on where it stopped.
NO_COLOR=1 turns colour off. --helpfull lists every flag; diffem_jax/config.py describes every field.
"""

_COLOURS = {"strong": "1", "good": "32", "bad": "31"}


@contextlib.contextmanager
def answered(argv: Sequence[str], configs: Sequence[str]) -> Iterator[None]:
    """Prints ``HELP`` and exits where a command line asks for help; asking is no error, so the exit code is 0."""
    if any(word in ("--help", "-help", "-h", "-?", "help") for word in argv[1:]):
        indent = " " * 25
        named = textwrap.fill(", ".join(configs), 100, initial_indent=indent, subsequent_indent=indent).lstrip()
        print(HELP.format(configs=named), end="")
        sys.exit(0)
    try:
        yield
    except SystemExit as end:
        # absl prints the full list by itself, and ends with 1.
        if (
            any(word.lstrip("-").startswith(("helpfull", "helpshort", "helpxml")) for word in argv[1:])
            and end.code == 1
        ):
            sys.exit(0)
        raise


def coloured(stream: TextIO) -> bool:
    """Whether a stream takes colour: a terminal that is not dumb, and NO_COLOR unset (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Text as a stream shows it: in 'strong', 'good' or 'bad', or as it is where there is no terminal."""
    if not coloured(stream or sys.stdout):
        return text
    return f"\033[{_COLOURS[colour]}m{text}\033[0m"
