"""The command line as it is typed: help, flags, and the config that they name and change."""

import re
import runpy
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from diffem_jax.config import FIELDS, nearest, override
from diffem_jax.errors import UserError, first_line

HELP = """\
diffem: learn p(x | y) and p(x) from corrupted observations alone

  diffem --config=digits --workdir=runs/digits
      train on a config of the package (or a file); the same command goes on after a stop
  diffem --mode=sample --workdir=runs/digits --observations=obs.npz --num_samples=8 --output=out.npz
      draws of p(x | y) for new observations; without --observations, draws of p(x)
  diffem --config=own_data --config.data.path=obs.npz --workdir=runs/mine
      train on your own observations: an .npz with y and, where there are operators, mask or operator

  --workdir=FOLDER       the run's folder; every mode needs it
  --mode=MODE            train (the default), sample, evaluate, or report (writes report.html again)
  --config=NAME          train: a config file, or the name of one of the package, NAME:VARIANT for a variant:
                         {configs}
  --config.FIELD=VALUE   train: any field, as in --config.rounds=8 --config.m_step.steps=2000
  --override             train: go on although the config differs from the folder's
  --profile=N            train: a trace of N updates and of one E-step batch, in WORKDIR/profile
  --observations=FILE    sample: .npz of observations
  --num_samples=N        sample: draws per observation, or of the prior
  --output=FILE          sample: the .npz to write; a picture goes beside it
  --round=N              sample, evaluate: the round; else the one the stopping rule picked, else the last
  --sample_seed=N        sample: seed of the draws
  --reference=FILE       evaluate: .npz with clean x, for measuring only
  --coordinator, --num_processes, --process_id     several processes; --coordinator=auto on a cluster

Exit codes: 0 done; 2 a mistake, explained in one message; 130 Ctrl-C; 143 SIGTERM with the work saved;
75 another process of the run was lost; 1 a fault of the program.
After 130, 143 and 75 the same command goes on where it stopped.
--helpfull lists every field with its default and meaning.
"""
OWN_FLAGS = sorted(set(re.findall(r"--([a-z_]+)", HELP)) - {"helpfull"})


def help_text(words: Sequence[str]) -> str | None:
    """What a command line that asks for help is answered, None for one that does not."""
    asked = {word.lstrip("-").partition("=")[0] for word in words if word.startswith("-") or word == "help"}
    if not asked & {"help", "h", "?", "helpshort", "helpfull", "helpxml"}:
        return None
    indent = " " * 25
    names = textwrap.fill(", ".join(shipped_configs()), 100, initial_indent=indent, subsequent_indent=indent).lstrip()
    lines = [HELP.format(configs=names)]
    if "helpfull" in asked:
        more = "a corruption and a network bring more of their own (docs/config.md, by make docs, lists them)"
        lines.append(f"Every field; {more}:\n")
        for field in FIELDS.values():
            said = f"  --config.{field.name}={field.default!r}  {field.meaning}"
            lines.append(textwrap.fill(said, 110, subsequent_indent=" " * 6))
            lines += [f"      one of {', '.join(field.choices)}"] if field.choices else []
    return "\n".join(lines).rstrip("\n") + "\n"


def split(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words that are no flags of fields, and (FIELD, VALUE) of each --config.FIELD=VALUE in order; flag files are read in."""
    try:
        words = iter(flags.FLAGS.read_flags_from_files(list(argv), force_gnu=True))
    except flags.Error as error:
        raise UserError(f"--flagfile: {error}; expected a file with one flag per line; correct the path") from None
    others, fields = [], []
    for word in words:
        found = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", word, re.DOTALL)
        if found is None:
            others.append(word)
            continue
        negated, name, text = found.groups()
        if text is None:
            alone = negated or (name in FIELDS and FIELDS[name].kind is bool)
            text = str(not negated) if alone else next(words, "")
        fields.append((name, text))
    return others, fields


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags that are not of fields, forgetting those of an earlier command; UserError for an unknown flag or value."""
    for name in OWN_FLAGS:
        flags.FLAGS[name].unparse()
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        name, known = error.flagname, OWN_FLAGS
        if name in FIELDS or "." in name:
            name, known = f"config.{name.removeprefix('config.')}", [f"config.{field}" for field in FIELDS]
        hint = nearest(f"--{name}", [f"--{flag}" for flag in known])
        raise UserError(f"--{error.flagname}: unknown flag; {hint} (see --help)") from None
    except flags.Error as error:
        raise UserError(_flag_error(first_line(error))) from None


def _flag_error(message: str) -> str:
    """What absl says of a flag's value, in this package's words."""
    found = re.fullmatch(r"flag --(\w+)=(.*?): (.*)", message, re.DOTALL)
    if found is None:
        return f"{message}; see --help"
    name, value, why = found.groups()
    if choices := re.search(r"one of <(.*)>", why):
        return f"--{name}: {value!r} is not known; {nearest(value, choices[1].split('|'))}"
    why = "expected a whole number" if why.startswith("invalid literal for int") else why
    return f"--{name}: {value!r}; {why}; correct it"


def shipped_configs() -> dict[str, Path]:
    """Name -> file of the configs that come with the package: in an installed package, and in a checkout."""
    package = Path(__file__).parent
    files = [p for folder in (package.parent / "configs", package / "configs") for p in sorted(folder.glob("*.py"))]
    return {path.stem: path for path in files if path.stem != "__init__"}


def load_config(name: str | None, fields: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """The config of a file or of a name that ships with the package, NAME:VARIANT for a variant, with fields set by flags.

    UserError where there is no such file or name, it cannot be read, or a field does not exist or has another type.
    """
    shipped = shipped_configs()
    if name is None:
        raise UserError(f"--config: missing; expected a config file or a name: {', '.join(shipped)}")
    name, colon, variant = name.partition(":")
    path = shipped.get(name, Path(name))
    if not path.is_file():
        kind = "no such file" if "/" in name or name.endswith(".py") else "neither a file nor a config of the package"
        raise UserError(f"--config: {name!r}: {kind}; {nearest(path.stem, shipped)}")
    if name not in shipped:
        sys.path.append(str(path.resolve().parent))  # for parts of its own beside it
    try:
        config = runpy.run_path(str(path))["get_config"](*([variant] if colon else []))
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UserError(f"--config: {path}: {kind}{' '.join(str(error).split())[:400]}; correct it") from error
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(f"--config: get_config returned a {kind}; expected a ConfigDict, as default() gives")
    override(config, fields)
    return config.lock()
