"""The command ``diffem``: its flags, and the mode they choose."""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from diffem_jax import commands, usage
from diffem_jax.errors import UserError
from diffem_jax.parallel import initialize
from diffem_jax.storage.programs import keep_compiled

_CONFIG = flags.DEFINE_string("config", None, "A config file, or the name of one that ships with the package.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "sample", "evaluate", "report"], "What to do.")
_OBSERVATIONS = flags.DEFINE_string("observations", None, "sample: .npz of observations; without it, prior draws.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "sample: draws per observation, or of the prior.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "sample: the .npz to write.")
_REFERENCE = flags.DEFINE_string("reference", None, "evaluate: .npz with clean x, for measuring only.")
_ROUND = flags.DEFINE_integer("round", None, "sample, evaluate: the round; else the picked or last.", lower_bound=0)
_SEED = flags.DEFINE_integer("sample_seed", 0, "sample: seed of the draws.")
_OVERRIDE = flags.DEFINE_boolean("override", False, "train: go on although the config differs from the folder's.")
_PROFILE = flags.DEFINE_integer("profile", 0, "train: updates to trace, with one E-step batch.", lower_bound=0)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Several processes: host:port of number 0, or 'auto'.")
_PROCESSES = flags.DEFINE_integer("num_processes", 1, "Processes in all, with --coordinator.")
_PROCESS = flags.DEFINE_integer("process_id", 0, "This process's number, with --coordinator.")


def main(argv: Sequence[str], fields: Sequence[tuple[str, str]] = ()) -> None:
    """Runs the chosen mode; ``fields`` are those of the config that flags set, as text."""
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r}: not a flag; expected --name=value only, --{argv[1].lstrip('-')}; see --help")
    if _WORKDIR.value is None:
        raise UserError("--workdir: missing; expected a folder for the run, for instance --workdir=runs/digits")
    workdir = Path(_WORKDIR.value)
    # Other modes take the place of a file that has moved, and how much is measured.
    measured = ("data.path", "eval.") if _MODE.value == "evaluate" else ("data.path",)
    others = [name for name, _ in fields if not name.startswith(measured)]
    config = usage.load_config(_CONFIG.value, fields) if _MODE.value == "train" or others else None
    if _COORDINATOR.value is not None:
        initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    keep_compiled()
    if config is not None and _MODE.value == "train":
        commands.train(config, workdir, override=_OVERRIDE.value, profile=_PROFILE.value)
    elif _MODE.value == "sample":
        commands.sample(workdir, _OBSERVATIONS.value, _NUM_SAMPLES.value, _OUTPUT.value, _SEED.value, _ROUND.value)
    elif _MODE.value == "evaluate":
        commands.evaluate(workdir, _REFERENCE.value, _ROUND.value, [f for f in fields if f[0] not in others])
    else:
        commands.report(workdir)


def run() -> None:
    """The console script: user errors are printed without a traceback, with exit code 2."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # for 'module:name' in the current folder, as with python -m
    with commands.exit_codes():
        if (text := usage.help_text(sys.argv[1:])) is not None:
            print(text, end="")
            return
        argv, fields = usage.split(sys.argv)
        app.run(lambda rest: main(rest, fields), argv=argv, flags_parser=usage.parse_flags)


if __name__ == "__main__":
    run()
