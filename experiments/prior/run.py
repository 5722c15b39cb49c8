"""Two ways to a prior: a second, unconditional training on the last reconstructions, or one network for both.

    python -m experiments.prior.run [--seeds=3] [--quick] [--only=digits]

'second training' is the published way (config.prior.steps), 'second training from the start' has the fitted start as base
(config.prior.base) and goes on from the same rounds; 'one network' drops the observation with a probability in
the M-step (config.m_step.condition_dropout) and needs nothing else. Both train the same number of updates per round on the
same data; draws of p(x) are compared with the hidden truths, and draws of p(x | y), also guided, with their own truth.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax import metrics
from diffem_jax.build.methods import make_setup
from diffem_jax.build.problem import Problem, load_problem, rows, stored_config
from diffem_jax.gaussians.gaussians import Mixture
from diffem_jax.gaussians.linalg import expand
from diffem_jax.run import sample as draw
from diffem_jax.run.start import load_start
from diffem_jax.storage import checkpoints
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import Key, stream_key
from experiments import common, figures
from experiments.common import Job, Row, fields

NAME = "prior"
SECOND, FROM_START, DROPOUT = "second training", "second training from the start", 0.1
GUIDANCE = (1.0, 1.5, 2.0)
DRAWS = {"digits": 1797, "patches": 512}
BASES = {
    "digits": (
        "--config=digits",
        *fields(
            rounds=3,
            m_step__steps=600,
            m_step__batch_size=256,
            network__features="(256,256,256)",
            eval__metrics="('psnr','accuracy')",
        ),
    ),
    "patches": (
        "--config=patches:mask50",
        *fields(
            rounds=1,
            data__num_examples=2048,
            start__num_examples=2048,
            network__channels="(16,32)",
            m_step__steps=500,
            m_step__batch_size=32,
            e_step__batch_size=256,
            eval__num_examples=512,
        ),
    ),
}
PRIOR_STEPS = {"digits": 1500, "patches": 500}
SEEDS = {"digits": 10, "patches": 1}
"""The most seeds of a set: patches take minutes each."""
QUICK = {
    "digits": fields(rounds=1, m_step__steps=100),
    "patches": fields(data__num_examples=512, start__num_examples=512, start__rank=8, m_step__steps=20),
}
QUICK_PRIOR = {"digits": 200, "patches": 20}


def jobs(quick: bool) -> list[Job]:
    """The published way and ours, on each set."""
    out = []
    for group, base in BASES.items():
        flags = (*base, *(QUICK[group] if quick else ()))
        steps = (QUICK_PRIOR if quick else PRIOR_STEPS)[group]
        out.append(Job(SECOND, (*flags, *fields(prior__steps=steps, prior__base="none")), group, evaluate=False))
        out.append(Job(FROM_START, (*flags, *fields(prior__steps=steps, prior__base="start")), group, evaluate=False))
        one = (*flags, *fields(m_step__condition_dropout=DROPOUT))
        out.append(Job(f"one network, dropout {DROPOUT}", one, group, evaluate=False))
    return out


def texture(x: np.ndarray) -> np.ndarray:
    """Means and spreads of 32 random filters' responses [N, 128] of images; a vector of pixels for small images."""
    if x.shape[-1] == 1:
        return x.reshape(len(x), -1)
    kernels = jax.random.normal(jax.random.key(7), (5, 5, x.shape[-1], 32))
    kernels -= kernels.mean((0, 1), keepdims=True)
    kernels /= jnp.sqrt(jnp.sum(kernels**2, (0, 1, 2), keepdims=True))
    # Random filters all see coarse structure; a derivative of each also sees fine structure.
    fine = x - 0.5 * (np.roll(x, 1, 1) + np.roll(x, 1, 2))
    responses = [
        jax.lax.conv_general_dilated(
            jnp.asarray(a), kernels, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        for a in (x, fine)
    ]
    moments = [f(r) for r in responses for f in (lambda r: jnp.std(r, (1, 2)), lambda r: jnp.mean(jnp.abs(r), (1, 2)))]
    return np.asarray(jnp.concatenate(moments, -1))


def quality(x: np.ndarray, problem: Problem, classifier: Any) -> Row:
    """How close a set of images is to the truths as a set; larger is better for precision, recall and confidence."""
    truth = np.asarray(problem.truth, np.float32)
    count = min(len(truth), len(x))
    truth, x = truth[:count], x[:count]
    sides = metrics.precision_recall_density_coverage(x, truth)
    out = {
        "sliced Wasserstein": metrics.sliced_wasserstein(x, truth, stream_key(0, "sliced_wasserstein")).value,
        "Frechet distance": metrics.frechet_distance(texture(x), texture(truth)).value,
        "precision": sides.precision.value,
        "recall": sides.recall.value,
    }
    if classifier is not None:
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


def measure(job: Job, work: Path, seed: int, shown: dict[str, np.ndarray]) -> list[Row]:
    """The rows of one finished run; what it drew goes into ``shown``."""
    workdir = Workdir(job.folder(work, seed))
    config = stored_config(workdir)
    problem = load_problem(config)
    classifier = None if problem.labels is None else metrics.train_classifier(problem.truth, problem.labels)
    count = min(DRAWS[job.group], problem.num_examples)
    began = time.monotonic()
    x = draw.prior_draws(workdir, count, seed)
    sampling = time.monotonic() - began
    final = workdir.prior / "final"
    second = checkpoints.metadata(final)["seconds"] if final.exists() else 0.0
    record = common.collect(job, work, seed)
    assert record is not None
    base = {"group": job.group, "method": job.method, "seed": seed}
    rounds = record["rounds"][-1]
    row = {**base, **quality(x, problem, classifier), "rounds, s": rounds["seconds"], "second training, s": second}
    row |= {"sampling, s": sampling, "posterior": [guided(workdir, problem, w, min(count, 512)) for w in _weights(job)]}
    out = [row]
    if seed == 0:
        shown[f"{job.group}/{job.method}"] = x[:12]
        shown.setdefault(f"{job.group}/the truth", np.asarray(problem.truth[:12]))
    if job.method == SECOND:
        last = ReconstructionStore(workdir.reconstructions)
        kept = last.round(last.rounds()[-1]).open()[:count]
        out.append({**base, "method": "(the last reconstructions)", **quality(kept, problem, classifier)})
        start = load_start(workdir)
        out.append(
            {**base, "method": "(the start's Gaussian)", **quality(_of_start(start, count, seed), problem, classifier)}
        )
    return out


def _weights(job: Job) -> tuple[float, ...]:
    return GUIDANCE if job.method.startswith("one") else (1.0,)


def _of_start(start: Mixture, count: int, seed: int) -> np.ndarray:
    """Draws of the fitted start itself, without observations."""

    def one(key: Key) -> Array:
        pick, body, latent = jax.random.split(key, 3)
        part = jax.tree.map(lambda a: a[jax.random.categorical(pick, start.log_weights)], start.components)
        z = jax.random.normal(latent, (len(part.factor),))
        return part.mean + expand(z, part.factor) + jnp.sqrt(part.variance) * jax.random.normal(body, part.mean.shape)

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), count)))


QUALITIES = ("sliced Wasserstein", "Frechet distance", "precision", "recall", "confidence")
TIMES = ("rounds, s", "second training, s", "sampling, s")


def report(found: list[Row], quick: bool) -> None:
    """Quality and seconds of the prior's draws, and PSNR of posterior draws by guidance weight."""

    def table(rows: list[Row], names: tuple[str, ...], digits: int) -> str:
        known = [name for name in names if any(name in row for row in rows)]
        lines = [{**row, "what": name, "value": row.get(name)} for name in known for row in rows]
        return common.table(lines, lambda row: row["value"], across="what", digits=digits)

    parts = []
    for group in dict.fromkeys(row["group"] for row in found):
        mine = sorted((row for row in found if row["group"] == group), key=lambda row: row["method"].startswith("("))
        trained = [row for row in mine if "posterior" in row]
        weights = [{**row, "what": p["weight"], "value": p["psnr"]} for row in trained for p in row["posterior"]]
        parts += [
            f"### {group}, {common.seeds_of(mine)}",
            f"Draws of p(x):\n\n{table(mine, QUALITIES, 3)}",
            f"Seconds:\n\n{table(trained, TIMES, 0)}",
            "Draws of p(x | y), PSNR in dB by guidance weight:\n\n"
            + common.table(weights, lambda row: row["value"], across="what", digits=2),
        ]
    parts.append(f"![Draws of p(x)](draws{'_quick' if quick else ''}.png)")
    common.write_readme(NAME, "\n\n".join(parts), quick)


def _share_rounds(jobs: list[Job], work: Path, seed: int) -> None:
    """Gives the training from the start the rounds of the published way, whose prior it then trains again."""
    folders = {job.method: job.folder(work, seed) for job in jobs}
    source, target = folders.get(SECOND), folders.get(FROM_START)
    if source and target and (source / "trained.json").exists() and not target.exists():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("trained.json"))


def main() -> None:
    options = common.arguments(__doc__ or "")
    wanted = [job for job in jobs(options.quick) if options.only in f"{job.group}/{job.method}"]
    work = options.work / (NAME + ("_quick" if options.quick else ""))
    seeds = options.seeds
    for group in BASES:
        options.seeds = min(seeds, SEEDS[group])
        mine = [job for job in wanted if job.group == group]
        common.run_jobs(NAME, [job for job in mine if job.method == SECOND], options)
        for seed in range(options.seeds):
            _share_rounds(mine, work, seed)
        common.run_jobs(NAME, mine, options)
    shown: dict[str, np.ndarray] = {}
    found = []
    for job in wanted:
        for seed in range(min(seeds, SEEDS[job.group])):
            if (job.folder(work, seed) / "trained.json").exists():
                found += measure(job, work, seed, shown)
    if not found:
        sys.exit("no finished run")
    end = "_quick" if options.quick else ""
    place = common.ROOT / "experiments" / NAME
    (place / f"results{end}.json").write_text(json.dumps(found, indent=1) + "\n")
    order = sorted(shown, key=lambda name: (name.partition("/")[0], name.endswith("truth")))
    lines = {name.replace("/", "\n").replace(", ", "\n"): shown[name] for name in order}
    figures.strips(place / f"draws{end}.png", lines)
    report(found, options.quick)


if __name__ == "__main__":
    main()
