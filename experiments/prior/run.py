"""Two ways to a prior: a second, unconditional training on the last reconstructions, or one network for both.

    python -m experiments.prior.run [--seeds=3] [--quick]

'second training' is the published way (config.prior.steps), 'second training from the start' has the fitted start as base
(config.prior.base) after the same rounds; 'one network' drops the observation with a probability in
the M-step (config.m_step.condition_dropout) and needs nothing else. Both train the same number of updates per round on the
same data; draws of p(x) are compared with the hidden truths, and draws of p(x | y), also guided, with their own truth.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffem_jax import metrics
from diffem_jax.build.methods import make_setup
from diffem_jax.build.problem import Problem, load_problem, rows, stored_config
from diffem_jax.gaussians.gaussians import sample_gaussian
from diffem_jax.run import sample
from diffem_jax.run.start import load_start
from diffem_jax.storage import checkpoints
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import stream_key
from experiments import common, figures
from experiments.common import Job, Row, fields

SECOND, GUIDANCE, DRAWS = "second training", (1.0, 1.5, 2.0), 1797
BASE = (
    "--config=digits",
    *fields(rounds=3, m_step__steps=600, m_step__batch_size=256, network__features="(256,256,256)"),
    *fields(eval__metrics="('psnr','accuracy')"),
)
WAYS = {
    SECOND: fields(prior__steps=1500, prior__base="none"),
    "second training from the start": fields(prior__steps=1500, prior__base="start"),
    "one network, dropout 0.1": fields(m_step__condition_dropout=0.1),
}
JOBS = [Job(way, (*BASE, *flags), evaluate=False) for way, flags in WAYS.items()]
QUALITIES = ("sliced Wasserstein", "Frechet distance", "precision", "recall", "confidence")
TIMES = ("rounds, s", "second training, s", "sampling, s")
SHOWN: dict[str, np.ndarray] = {}
"""Draws of seed 0, for the figure."""


def quality(x: np.ndarray, problem: Problem, classifier: Any) -> Row:
    """How close a set of images is to the truths as a set; larger is better for precision, recall and confidence."""
    truth = np.asarray(problem.truth, np.float32)
    count = min(len(truth), len(x))
    truth, x = truth[:count], x[:count]
    sides = metrics.precision_recall_density_coverage(x, truth)
    out = {
        "sliced Wasserstein": metrics.sliced_wasserstein(x, truth, stream_key(0, "sliced_wasserstein")).value,
        "Frechet distance": metrics.frechet_distance(x.reshape(count, -1), truth.reshape(count, -1)).value,
        "precision": sides.precision.value,
        "recall": sides.recall.value,
    }
    out["confidence"] = np.mean(classifier.predict_proba(x.reshape(len(x), -1)).max(1))
    return {name: float(value) for name, value in out.items()}


def guided(workdir: Workdir, problem: Problem, weight: float, count: int) -> Row:
    """One posterior draw of each of some observations under a guidance weight: its PSNR."""
    config = stored_config(workdir)
    with config.unlocked():
        config.e_step.guidance = weight
    setup = make_setup(config, problem.setup.shape)
    observed = rows(problem.observations, np.arange(count))
    x = common.posterior_draws(workdir, setup, config.rounds, observed, 1, "guided")[0]
    return {"weight": weight, "psnr": float(metrics.psnr(x, np.asarray(problem.truth[:count])).value)}


def measure(job: Job, work: Path, seed: int) -> list[Row]:
    """The rows of one finished run."""
    workdir = Workdir(job.folder(work, seed))
    problem = load_problem(stored_config(workdir))
    classifier, count = metrics.train_classifier(problem.truth, problem.labels), min(DRAWS, problem.num_examples)
    began = time.monotonic()
    x = sample.prior_draws(workdir, count, seed)
    sampling = time.monotonic() - began
    final, rounds = workdir.prior / "final", common.collect(job, work, seed)["rounds"][-1]["seconds"]
    second = checkpoints.metadata(final)["seconds"] if final.exists() else 0.0
    weights = GUIDANCE if job.method.startswith("one") else (1.0,)
    base = {"method": job.method, "seed": seed}
    row = {**base, **quality(x, problem, classifier), **dict(zip(TIMES, (rounds, second, sampling), strict=True))}
    row["posterior"] = [guided(workdir, problem, weight, min(count, 512)) for weight in weights]
    if seed == 0:
        truth = SHOWN.pop("the truth", np.asarray(problem.truth[:12]))
        SHOWN.update({job.method.replace(", ", "\n"): x[:12], "the truth": truth})
    if job.method != SECOND:
        return [row]
    store, keys = ReconstructionStore(workdir.reconstructions), jax.random.split(jax.random.key(seed), count)
    gaussian = jax.tree.map(lambda a: a[0], load_start(workdir).components)
    others = {
        "(the last reconstructions)": store.round(store.rounds()[-1]).open()[:count],
        "(the start's Gaussian)": np.asarray(jax.vmap(partial(sample_gaussian, law=gaussian))(keys)),
    }
    return [row, *({**base, "method": name, **quality(kept, problem, classifier)} for name, kept in others.items())]


def tables(found: list[Row]) -> str:
    """Quality and seconds of the prior's draws, and PSNR of posterior draws by guidance weight."""

    def table(rows: list[Row], names: tuple[str, ...], digits: int) -> str:
        return common.columns(rows, {name: lambda row, name=name: row.get(name) for name in names}, digits)

    mine = sorted(found, key=lambda row: row["method"].startswith("("))
    trained = [row for row in mine if "posterior" in row]
    weights = [{**row, **p} for row in trained for p in row["posterior"]]
    parts = [
        f"Digits, {common.seeds_of(mine)}. Draws of p(x):",
        table(mine, QUALITIES, 3),
        "Seconds:",
        table(trained, TIMES, 0),
        "Draws of p(x | y), PSNR in dB by guidance weight:",
        common.table(weights, lambda row: row["psnr"], across="weight", digits=2),
        "![Draws of p(x)](draws.png)",
    ]
    return "\n\n".join(parts)


def draw(found: list[Row], place: Path) -> None:
    """A line of draws for each way, and the truth."""
    figures.strips(place / "draws.png", SHOWN)


if __name__ == "__main__":
    common.main("prior", __doc__ or "", JOBS, tables, draw, measure)
