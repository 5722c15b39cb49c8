"""DiffEM on CIFAR-10 with three of four pixels hidden, on one accelerator, as far as a budget goes.

    python -m experiments.cifar10.accelerator --budget=10m --data=FOLDER --features=resnet56.npz --workdir=runs/cifar10

FOLDER holds train-0.npz ... train-4.npz, x uint8 [10000, 32, 32, 3] and labels. The run is an ordinary one: at the end of the
budget it is saved as by SIGTERM, its last whole round is measured, and the same command again goes on for another budget.
Measured are the Frechet distance of ResNet-56 features of one draw an image against the hidden images, once against the same
ones and once against other ones, the accuracy of that network on draws, PSNR of draws and of the mean of 16, CRPS, coverage, TARP.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks.common import machine
from configs import cifar10
from diffem_jax.build.problem import load_problem
from diffem_jax.commands import exit_codes
from diffem_jax.config import validate
from diffem_jax.errors import Preempted
from diffem_jax.run.train import run_em
from diffem_jax.storage import checkpoints
from diffem_jax.storage.files import read_json, write_json
from diffem_jax.storage.programs import keep_compiled
from diffem_jax.storage.workdir import Workdir
from experiments.cifar10 import measures, resnet

RESULTS = Path(__file__).parent / "results_accelerator.json"
UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> int:
    """'90s', '10m', '2h' -> seconds."""
    return int(float(text[:-1]) * UNITS[text[-1]])


def get_config(options: argparse.Namespace) -> ConfigDict:
    """``--config=cifar10:mask75`` on the files; with ``--small`` a network and a data set that a CPU trains in seconds."""
    c = cifar10.get_config("mask75")
    with c.unlocked():
        c.seed, c.rounds = options.seed, options.rounds
        c.data.update(name="experiments.cifar10.files:images", path=str(options.data), num_examples=options.examples)
        c.e_step.steps, c.m_step.steps, c.checkpoint.keep_rounds = options.steps, options.updates, 2
        c.m_step.warmup_steps = min(50, options.updates // 4)
        c.eval.metrics = ("psnr", "frechet") if options.features else ("psnr",)
        c.eval.features = "experiments.cifar10.resnet:features" if options.features else ""
        c.eval.num_examples = 4096
        if options.small:
            c.network.update({"channels": (8, 8), "blocks": 1, "heads": (), "embedding": 16})
            c.start.iterations, c.start.num_examples = 2, 64
            c.e_step.steps, c.e_step.batch_size, c.m_step.batch_size, c.eval.num_examples = 4, 32, 8, 64
    return c


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=seconds, default="10m", help="of this command, '90s', '10m', '2h'")
    parser.add_argument("--reserve", type=seconds, default="60s", help="of the budget, for measuring at the end")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", default="", help="weights of the ResNet-56; without them no Frechet distance")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=RESULTS, help="a JSON list that a result is added to")
    for name, value in {"examples": 50_000, "rounds": 12, "updates": 1000, "steps": 24, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it works")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Trains for the budget, measures, and adds the result to the file."""
    options, began = arguments(argv), time.monotonic()
    if options.features:
        os.environ[resnet.VARIABLE] = str(Path(options.features).resolve())
    config = get_config(options)
    validate(config, training=True)
    keep_compiled()
    timer = threading.Timer(max(1, options.budget - options.reserve), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        run_em(config, options.workdir)
    except Preempted:
        print("the budget ends; the same command goes on", flush=True)
    timer.cancel()
    folder, trained = Workdir(options.workdir), time.monotonic() - began
    records = [r for r in folder.records() if r.get("kind") == "round"]
    found = {"card": machine(), "seconds of this command before measuring": trained, "rounds": records}
    found["network"] = config.network.to_dict()
    found |= {name: getattr(options, name) for name in ("examples", "updates", "steps", "seed", "small")}
    if checkpoints.latest(folder.rounds) is not None:
        number, problem = int(folder.last_round().name.split("_")[-1]), load_problem(config)
        counts = measures.Counts(64, 8) if options.small else measures.Counts()
        by = measures.measure(problem, measures.of_round(folder, problem, number), counts, options.features)
        found["measures"] = {"round": number, **by}
    found["seconds of this command"] = time.monotonic() - began
    options.results.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.results, [*(read_json(options.results) or []), found], indent=1)
    print(json.dumps(found.get("measures", {}), indent=1), flush=True)


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1:])
