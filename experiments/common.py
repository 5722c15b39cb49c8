"""What the experiments share: methods x seeds as runs of the real command, results.json, README tables, figures.

A run is a work directory under --work; one that is finished is passed over, one that was cut off goes on, so the same
command again only does what is missing. Everything that is reported is read from the runs' metrics.jsonl.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffem_jax.parallel import make_parallel
from diffem_jax.run.draws import attempt_keys, draw_samples, make_drawing
from diffem_jax.run.sample import round_step
from diffem_jax.samplers.samplers import EVALUATIONS
from diffem_jax.storage import checkpoints
from diffem_jax.storage.workdir import Workdir

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


class Job(NamedTuple):
    """One run a seed.

    Attributes:
        method: what is compared.
        flags: of the command, but for --workdir and the seed; '{before}' is the work directory of ``before``.
        group: the setting it is compared in ('rate 0.5'), '' where there is one.
        before: the method of the same group and seed that must have run.
        evaluate: measure the posterior at the end (--mode=evaluate).
    """

    method: str
    flags: tuple[str, ...]
    group: str = ""
    before: str = ""
    evaluate: bool = True

    def folder(self, work: Path, seed: int) -> Path:
        """The work directory of a seed."""
        return work / "_".join(filter(None, (self.group, self.method))).replace(" ", "_") / f"seed_{seed}"


def fields(**values: Any) -> tuple[str, ...]:
    """``m_step__steps=80`` -> '--config.m_step.steps=80'."""
    return tuple(f"--config.{name.replace('__', '.')}={value}" for name, value in values.items())


def arguments(description: str) -> argparse.Namespace:
    """--seeds, --quick, --only, --work, --processes, --report."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. SEEDS - 1")
    parser.add_argument("--quick", action="store_true", help="a small budget, to see that it works")
    parser.add_argument("--only", default="", help="runs whose 'group/method' contains this")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "experiments", help="where the runs lie")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--report", action="store_true", help="run nothing: tables and figures of what is there")
    return parser.parse_args()


def run_jobs(name: str, jobs: Sequence[Job], options: argparse.Namespace) -> list[Row]:
    """Does what is missing and returns the rows of all runs that are finished."""
    work = options.work / (name + ("_quick" if options.quick else ""))
    wanted = [j for j in jobs if options.only in f"{j.group}/{j.method}"]
    if not options.report:
        with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
            # A run that another one begins from comes first.
            for stage in ([j for j in wanted if not j.before], [j for j in wanted if j.before]):
                tasks = [pool.submit(_run, job, work, seed) for seed in range(options.seeds) for job in stage]
                for task in concurrent.futures.as_completed(tasks):
                    # One run that fails does not end the others; it is missing from the tables, and done again next time.
                    try:
                        task.result()
                    except (subprocess.CalledProcessError, OSError) as error:
                        print(f"FAILED: {error}", file=sys.stderr, flush=True)
    rows = [row for job in jobs for seed in range(options.seeds) if (row := collect(job, work, seed)) is not None]
    place = ROOT / "experiments" / name / ("results_quick.json" if options.quick else "results.json")
    place.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def main(
    name: str, description: str, jobs: Callable[[bool], list[Job]], report: Callable[[list[Row], bool], None]
) -> None:
    """An experiment's command: runs what is missing of ``jobs(quick)``, then ``report(rows, quick)``."""
    options = arguments(description)
    rows = run_jobs(name, jobs(options.quick), options)
    if not rows:
        sys.exit("no finished run")
    report(rows, options.quick)


def _run(job: Job, work: Path, seed: int) -> None:
    folder, title = job.folder(work, seed), f"{job.group} {job.method} seed {seed}".strip()
    before = Job(job.before, (), job.group).folder(work, seed)
    flags = [flag.replace("{before}", str(before)) for flag in job.flags]
    commands = [("trained", [*flags, f"--config.seed={seed}"])]
    if job.evaluate:
        commands.append(("evaluated", ["--mode=evaluate"]))
    for stage, command in commands:
        mark = folder / f"{stage}.json"
        if mark.exists() and json.loads(mark.read_text())["command"] == command:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        print(f"{title}: {stage} ...", flush=True)
        with (folder / f"{stage}.log").open("a") as log:
            subprocess.run(
                [sys.executable, "-m", "diffem_jax.main", f"--workdir={folder}", *command],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        seconds = time.monotonic() - began
        mark.write_text(json.dumps({"command": command, "seconds": seconds}) + "\n")
        print(f"{title}: {stage} in {seconds:.0f} s", flush=True)


def collect(job: Job, work: Path, seed: int) -> Row | None:
    """A finished run as a row: its rounds with cumulated seconds and network calls, its evaluation, its stop record."""
    folder = Workdir(job.folder(work, seed))
    if not (folder.root / "trained.json").exists():
        return None
    records, config = folder.records(), folder.stored_config()
    fit = checkpoints.metadata(folder.start / "fit")
    # Compilation is left out: it is paid once a setting, and not at all where a compilation cache is shared.
    seconds, calls, rounds = fit["seconds"] - fit.get("compile_seconds", 0.0), 0, []
    examples = config["data.num_examples"] or _rows(folder) // config.get("e_step.draws", 1)
    for record in records:
        if record.get("kind") != "round":
            continue
        seconds += record["e_step_seconds"] + record.get("m_step_seconds", 0.0) - record["compile_seconds"]
        if record["round"]:
            calls += training_calls(config) + sampling_calls(config, examples)
        rounds.append({**record, "seconds": seconds, "network_calls": calls})
    found = {kind: [r for r in records if r.get("kind") == kind] for kind in ("evaluation", "stop")}
    return {
        "group": job.group,
        "method": job.method,
        "seed": seed,
        "rounds": rounds,
        "evaluation": found["evaluation"][-1] if found["evaluation"] else {},
        "stop": found["stop"][-1] if found["stop"] else {},
    }


def _rows(folder: Workdir) -> int:
    manifest = sorted(folder.reconstructions.glob("round_*/manifest.json"))[-1]
    return int(json.loads(manifest.read_text())["num_examples"])


def training_calls(config: Row) -> int:
    """Network calls of a round's training: a forward and a backward pass count one each."""
    return 2 * config["m_step.steps"] * config["m_step.batch_size"]


def sampling_calls(config: Row, examples: int) -> int:
    """Network calls of an E-step: the forward pass and each vector-Jacobian product count one each."""
    method, steps = config["method"], config["e_step.steps"] * EVALUATIONS.get(config["e_step.sampler"], 1)
    if method == "ambient" and config["ambient.reconstruction"] == "restoration":
        return examples
    products = {"em_dps": 1, "em_pigdm": 1, "ambient": 1}.get(method, 0)
    if method == "em_mmps":
        products = 1 + (config["mmps.iterations"] if config["mmps.covariance"] == "jacobian" else 0)
    return examples * config.get("e_step.draws", 1) * steps * (1 + products)


def posterior_draws(folder: Workdir, setup: Any, number: int, observations: Any, samples: int, stream: str) -> Any:
    """Draws [samples, N, *X] of p(x | y) by the network of a round (0: by the start), under keys of their own stream."""
    parallel = make_parallel("jit")
    step, params = round_step(folder, setup, parallel, number)
    batch = setup.config.e_step.batch_size
    drawing = make_drawing(step, parallel, params, observations, attempt_keys(1, stream), batch)
    return draw_samples(drawing, len(observations.y), samples, quiet=True)


def last(row: Row, metric: str) -> float | None:
    """A metric of a run's last round, or of its evaluation."""
    return row["rounds"][-1].get(metric, row["evaluation"].get(metric))


def spread(values: Iterable[float | None], digits: int = 3) -> str:
    """'mean ± std' over seeds, 'mean' of one, '' of none."""
    known = [v for v in values if v is not None]
    if not known:
        return ""
    mean = statistics.fmean(known)
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else "")


def table(
    rows: Sequence[Row],
    value: Callable[[Row], float | None],
    down: str = "method",
    across: str = "group",
    digits: int = 3,
) -> str:
    """A Markdown table of a value over seeds, in the order in which the runs are listed."""
    lines, heads = ([*dict.fromkeys(row[name] for row in rows)] for name in (down, across))
    out = [f"| | {' | '.join(map(str, heads))} |", "|---|" + "---|" * len(heads)]
    for line in lines:
        cells = [spread((value(r) for r in rows if r[down] == line and r[across] == head), digits) for head in heads]
        out.append(f"| {line} | {' | '.join(cells)} |")
    return "\n".join(out)


def write_readme(name: str, text: str, quick: bool = False) -> None:
    """Puts the tables between the markers of the experiment's README; those of a small budget say so, and give way to full ones."""
    if quick and (ROOT / "experiments" / name / "results.json").exists():
        print(f"the README of {name} keeps the results of the full budget")
        return
    text = f"Of `--quick` runs, whose budget is too small for a verdict.\n\n{text}" if quick else text
    write_page(ROOT / "experiments" / name / "README.md", text)


def write_page(path: Path, text: str) -> None:
    """Puts the text between the markers of a page, the prose around them stays."""
    begin, end = "<!-- results: begin -->", "<!-- results: end -->"
    page = path.read_text()
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    path.write_text(f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}")
    print(f"wrote {path.relative_to(ROOT)}")


def seeds_of(rows: Sequence[Row]) -> str:
    """'3 seeds' for the tables' captions."""
    count = len({row["seed"] for row in rows})
    return (
        f"{count} seed{'s' if count > 1 else ''}; ± is the standard deviation over seeds" if count > 1 else "one seed"
    )
