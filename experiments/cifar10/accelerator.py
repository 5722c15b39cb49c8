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
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.common import machine
from diffem_jax import metrics
from diffem_jax.build.problem import load_problem, rows
from diffem_jax.commands import exit_codes
from diffem_jax.config import default, validate
from diffem_jax.errors import Preempted
from diffem_jax.run.train import run_em
from diffem_jax.storage import checkpoints
from diffem_jax.storage.programs import keep_compiled
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import stream_key
from experiments.cifar10 import resnet
from experiments.common import posterior_draws

RESULTS = Path(__file__).parent / "results_accelerator.json"
SAMPLES = 16
UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> int:
    """'90s', '10m', '2h' -> seconds."""
    return int(float(text[:-1]) * UNITS[text[-1]])


def get_config(options: argparse.Namespace) -> ConfigDict:
    """This project's settings; with ``--small`` a network and a data set that a CPU trains in seconds."""
    c = default()
    with c.unlocked():
        c.seed, c.rounds = options.seed, options.rounds
        c.data.name, c.data.path = "experiments.cifar10.files:images", str(options.data)
        c.data.num_examples = options.examples
        mask = {"rate": 0.75, "noise_std": 1e-3, "fill_iterations": 40, "fill_order": 2}
        c.corruption = ConfigDict({"name": "pixel_mask", **mask})
        size: dict[str, Any] = {"channels": (128, 256, 256), "blocks": 2, "heads": ((1, 4),), "embedding": 256}
        c.network = ConfigDict({"name": "unet", **size, "dropout": 0.0, "dtype": "bfloat16"})
        c.denoiser.base = "start_moments"
        c.start.rank, c.start.iterations, c.start.num_examples = 64, 16, 4096
        c.e_step.steps, c.e_step.batch_size = options.steps, 1024
        c.m_step.steps, c.m_step.batch_size, c.m_step.updates_per_dispatch = options.updates, 256, 25
        c.m_step.update(learning_rate=6e-4, warmup_steps=min(50, options.updates // 4), ema_decay=0.995)
        c.m_step.update(loss_weight="base", time_law_beta=((4.0, 2.5),), augment=("flip",))
        c.eval.metrics = ("psnr", "frechet") if options.features else ("psnr",)
        c.eval.features = "experiments.cifar10.resnet:features" if options.features else ""
        c.eval.num_examples = 4096
        c.checkpoint.keep_rounds = 2
        if options.small:
            c.network.update({"channels": (8, 8), "blocks": 1, "heads": (), "embedding": 16})
            c.start.rank, c.start.iterations, c.start.num_examples = 4, 2, 64
            c.e_step.steps, c.e_step.batch_size, c.m_step.batch_size, c.eval.num_examples = 4, 32, 8, 64
    return c


def measure(folder: Workdir, config: ConfigDict, options: argparse.Namespace) -> dict[str, Any]:
    """The measures of the last round that has a checkpoint, of observations that it was trained on."""
    number = int(folder.last_round().name.split("_")[-1])
    problem = load_problem(config)
    many = min(problem.num_examples, 64 if options.small else 8192)
    few = min(problem.num_examples, 8 if options.small else 512)
    found: dict[str, Any] = {"round": number, "images": many, "images of several draws": few, "draws": SAMPLES}

    def draws(count: int, samples: int, stream: str) -> tuple[np.ndarray, np.ndarray]:
        observed = rows(problem.observations, np.arange(count))
        x = posterior_draws(folder, problem.setup, number, observed, samples, stream)
        return x, np.asarray(problem.truth[np.arange(count)], np.float32)

    x, truth = draws(many, 1, "cifar10_one")
    x = x[0]
    if options.features:
        weights, half, frechet_distance = resnet.load(options.features), many // 2, metrics.frechet_distance
        (f, classes), (true_f, true_classes) = resnet.measure(weights, x), resnet.measure(weights, truth)
        labels = np.asarray(problem.labels[:many])
        found |= {
            "frechet distance, same images": frechet_distance(f, true_f).value,
            "frechet distance, other images": frechet_distance(f[:half], true_f[half:]).value,
            "frechet distance of two halves of the truth": frechet_distance(true_f[:half], true_f[half:]).value,
            "accuracy of draws": float(np.mean(classes == labels)),
            "accuracy of the truth": float(np.mean(true_classes == labels)),
        }
    x, truth = draws(few, SAMPLES, "cifar10_several")
    found |= {
        "psnr of a draw": metrics.psnr(x[0], truth).value,
        "psnr of the mean": metrics.psnr(x.mean(0), truth).value,
        "psnr of the mean, by example": metrics.psnr_per_example(x.mean(0), truth).value,
        "crps": metrics.crps(x, truth).value,
        "spread": metrics.spread(x).value,
        "levels": list(metrics.LEVELS),
        "coverage": [e.value for e in metrics.coverage(x, truth)],
        "tarp": [e.value for e in metrics.tarp(x, truth, stream_key(0, "tarp"))],
    }
    return found


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
        found["measures"] = measure(folder, config, options)
    found["seconds of this command"] = time.monotonic() - began
    options.results.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(options.results.read_text()) if options.results.exists() else []
    options.results.write_text(json.dumps([*before, found], indent=1) + "\n")
    print(json.dumps(found.get("measures", {}), indent=1), flush=True)


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1:])
