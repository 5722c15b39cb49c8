"""CIFAR-10 on one core: DiffEM and its rivals on one network, each trained for the same processor seconds.

    python -m experiments.cifar10.run --data=FOLDER --features=resnet56.npz --methods=diffem,em_mmps --minutes=22

FOLDER holds train-0.npz ... train-4.npz, as for ``accelerator.py``; without the weights of a ResNet-56 there is no Frechet
distance. A run is a work directory under --work: the same command goes on with one that was cut off, and a result that is
stored is passed over. A budget counts the processor seconds of the process, compilation and start included, measuring not; on
several cores pin it to one, as by ``taskset -c 0``. From the costs below follow a run's rounds, as many as draw for at most a
fifth of the budget, and its updates. What is measured is drawn anew, so a run ends with its last update.
"""

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.common import write_page
from configs import cifar10
from diffem_jax.build.problem import load_problem, rows
from diffem_jax.commands import exit_codes
from diffem_jax.config import default, validate
from diffem_jax.config.values import put
from diffem_jax.errors import Preempted
from diffem_jax.run.train import run_em
from diffem_jax.storage.files import read_json, write_json
from diffem_jax.storage.programs import keep_compiled
from diffem_jax.storage.workdir import Workdir
from experiments import common, figures
from experiments.cifar10 import measures
from experiments.common import ROOT, Row

PLACE, WORK, SHOWN = Path(__file__).parent, ROOT / "runs" / "experiments" / "cifar10", 14
CORRUPTIONS = ("mask75", "mask50", "mask90", "blur")
LOSS = {"m_step.loss_weight": "base", "m_step.time_law_beta": ((4.0, 2.5),), "m_step.hidden_weight": 0.2}
OURS = {"denoiser.base": "start", **LOSS}
EDM = {"denoiser.preconditioning": "edm"}
SAMPLER = {"e_step.sampler": "ddpm", "e_step.time_grid": "log_uniform", "e_step.steps": 24}
PAPER = {**EDM, **SAMPLER, "schedule.sigma_min": 3e-4}
METHODS: dict[str, dict[str, Any]] = {
    "diffem": OURS,
    "diffem_moments": {**OURS, "denoiser.base": "start_moments"},
    "diffem_paper": PAPER,
    "em_mmps": {**EDM, "method": "em_mmps"},
    "warm": PAPER,  # from the draws of em_mmps, which has half of the budget
    "ambient": {**EDM, "method": "ambient", "ambient.reconstruction": "dps", "dps.step": 10.0},
    "oracle": {**OURS, "method": "oracle"},
}
START, UPDATE, DRAW = 120.0, 0.9, 0.15
"""Processor seconds of start and compilation, of an update of 32 images, and of a draw, of the dearest method."""


def get_config(method: str, options: argparse.Namespace, seconds: float = 0.0, whole: bool = False) -> ConfigDict:
    """A method for so many processor seconds; ``whole`` where the draws of its last round are needed too."""
    masked, drawing = options.corruption != "blur", options.examples * DRAW
    rounds = 1 + int(5 * drawing < seconds)
    left = (seconds - START - drawing * (rounds - 1 + whole)) / rounds
    c = default()
    with c.unlocked():
        c.rounds = rounds
        c.data.update(name="experiments.cifar10.files:images", path=str(options.data), num_examples=options.examples)
        c.corruption = ConfigDict(cifar10.CORRUPTIONS[options.corruption])
        size: dict[str, Any] = {"channels": (64, 128), "patch": 2, "blocks": 1, "heads": (), "embedding": 64}
        c.network = ConfigDict({"name": "unet", **size, "dropout": 0.0})
        c.start.update(name="stationary" if masked else "gaussian", iterations=6, num_examples=2048)
        c.e_step.update(steps=8, batch_size=128)
        c.m_step.update(steps=max(1, int(left / UPDATE)), batch_size=32)
        c.m_step.update(updates_per_dispatch=20, learning_rate=2e-3, ema_decay=0.995)
        c.checkpoint.every_steps = 200
        for name, value in METHODS[method].items():
            put(c, name, value)
        if not masked:
            c.m_step.hidden_weight = 1.0
    return c


def train(config: ConfigDict, folder: Workdir, seconds: float, whole: bool = False) -> Row:
    """Trains for so many processor seconds; returns those taken, and those at which the start and each round were there."""
    file, done = folder.root / "seconds.json", threading.Event()
    clock: Row = read_json(file) or {"seconds": 0.0, "rounds": {}, "ended": False}
    before = clock["seconds"] - time.process_time()

    def watch() -> None:
        while not clock["ended"] and not done.wait(1.0):
            clock["seconds"] = before + time.process_time()
            # Checksums are written last.
            for path in (*folder.start.glob("*.checksums.json"), *folder.rounds.glob("*.checksums.json")):
                clock["rounds"].setdefault(path.name.partition(".")[0], clock["seconds"])
            trained = not whole and folder.round_checkpoint(config.rounds).name in clock["rounds"]
            # What was foreseen may take a tenth longer.
            clock["ended"] = trained or clock["seconds"] > 1.1 * seconds
            write_json(file, clock)
            if clock["ended"]:
                os.kill(os.getpid(), signal.SIGTERM)

    if not clock["ended"]:
        folder.root.mkdir(parents=True, exist_ok=True)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            run_em(config, folder.root)
            clock["ended"] = True
        except Preempted:
            if not clock["ended"]:
                raise
        finally:
            done.set()
            watcher.join()
            write_json(file, clock)
    return clock


def run(method: str, options: argparse.Namespace) -> Row:
    """Trains a method for the budget; its measures after the start and after each round, and those of the last with many draws."""
    place, seconds, first = options.work / options.corruption, 60.0 * options.minutes, 0.0
    folder, before = Workdir(place / method), Workdir(place / "em_mmps_first")
    if method == "warm":
        config = get_config("em_mmps", options, seconds / 2, whole=True)
        first = train(config, before, seconds / 2, whole=True)["seconds"]
    config = get_config(method, options, seconds - first)
    if method == "warm":
        config.start.checkpoint = str(before.root)
    validate(config, training=True)
    clock = train(config, folder, seconds - first)
    problem, last, curve = load_problem(config), int(folder.last_round().name.split("_")[-1]), []
    for number in range(last + 1):
        draws, counts = measures.of_round(folder, problem, number), measures.Counts(options.images, options.several)
        by = measures.measure(problem, draws, counts if number == last else counts._replace(draws=1), options.features)
        at = clock["rounds"].get(folder.round_checkpoint(number).name if number else "fit", 0.0)
        curve.append({"round": number, "seconds": first + at, **by})
    np.save(place / f"{method}.npy", draws(rows(problem.observations, np.arange(SHOWN)), 1, "cifar10_shown")[0])
    return {**curve[-1], "updates": config.m_step.steps * last, "curve": curve}


COLUMNS = {
    "processor seconds": lambda r: r.get("seconds"),
    "Frechet distance": lambda r: r.get("frechet distance, same images"),
    "accuracy": lambda r: r.get("accuracy of draws"),
    "PSNR of a draw, dB": lambda r: r["psnr of a draw"],
    "of the mean of 16": lambda r: r.get("psnr of the mean"),
    "CRPS": lambda r: r.get("crps"),
    **{f"coverage {n}%": lambda r, i=i: r.get("coverage", [None] * 4)[i] for i, n in enumerate((50, 80, 90, 95))},
    **{f"TARP {n}%": lambda r, i=i: r.get("tarp", [None] * 4)[i] for i, n in ((1, 80), (2, 90))},
}


def tables(results: list[Row]) -> str:
    """Per corruption a table of the methods, one of their course, and the picture."""
    parts = []
    for corruption in dict.fromkeys(row["corruption"] for row in results):
        some = [{"seed": 0, **row} for row in results if row["corruption"] == corruption]
        rounds = [(r["method"], p) for r in some for p in r.get("curve", ())]
        course = [{**p, "seed": 0, "method": f"{name}, round {p['round']}"} for name, p in rounds]
        parts += [f"`{corruption}`, {some[0]['images']:,} images:", common.columns(some, COLUMNS), "Their course:"]
        parts += [common.columns(course, dict(list(COLUMNS.items())[:4])), f"![Draws in rows]({corruption}.png)"]
    return "\n\n".join(parts)


def main(argv: list[str]) -> None:
    """Runs what is missing, each result stored as soon as it is measured; then the page and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="diffem", help=f"of {', '.join(METHODS)}; with commas")
    parser.add_argument("--corruption", choices=CORRUPTIONS, default="mask75")
    parser.add_argument("--minutes", type=float, default=20, help="of the processor, for each method")
    for name, value in {"examples": 10_000, "images": 1024, "several": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    paths = {"data": None, "features": None, "work": WORK, "results": PLACE / "results.json"}
    for name, path in paths.items():
        parser.add_argument(f"--{name}", type=Path, default=path)
    parser.add_argument("--report", action="store_true", help="run nothing: the page and the picture of what is there")
    options = parser.parse_args(argv)
    results: list[Row] = read_json(options.results) or []
    setting = {name: getattr(options, name) for name in ("corruption", "minutes", "examples")}
    known, wanted = {row["method"] for row in results if setting.items() <= row.items()}, options.methods.split(",")
    if not set(wanted) <= set(METHODS):
        parser.error(f"--methods={options.methods}; expected some of {', '.join(METHODS)}")
    keep_compiled()
    for method in () if options.report else [*wanted, *([] if known else ["classical"])]:
        if method not in known:
            trained, config = method in METHODS, get_config(wanted[0], options)
            found = {method: run(method, options)} if trained else measures.classical(config, options)
            results += [{**setting, "method": name, **row} for name, row in found.items()]
            write_json(options.results, results, indent=1)
    if options.results == PLACE / "results.json":
        write_page(PLACE / "README.md", tables(results))
        for corruption in {row["corruption"] for row in results}:
            names = ["observation", *(row["method"] for row in results)]
            files = [options.work / corruption / f"{name}.npy" for name in names]
            if shown := {path.stem: np.load(path) for path in files if path.exists()}:
                figures.strips(PLACE / f"{corruption}.png", shown, SHOWN)


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1:])
