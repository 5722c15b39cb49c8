"""What the experiments share: methods x seeds as runs of the real command, results.json, README tables, figures.

A run is a work directory under --work; one that is finished is passed over, one that was cut off goes on, so the same
command again only does what is missing. Everything that is reported is read from the runs' metrics.jsonl.
"""

import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import markdown, write_page
from diffem_jax.parallel import make_parallel
from diffem_jax.run.e_step import attempt_keys, draw_samples
from diffem_jax.run.sample import round_drawing
from diffem_jax.samplers.samplers import EVALUATIONS
from diffem_jax.storage import checkpoints
from diffem_jax.storage.workdir import Workdir

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


class Job(NamedTuple):
    """One run a seed."""

    method: str  # what is compared
    flags: tuple[str, ...]  # of the command but --workdir and the seed; '{before}' is the work directory of ``before``
    group: str = ""  # the setting it is compared in ('rate 0.5'), '' where there is one
    before: str = ""  # the method of the same group and seed that must have run
    evaluate: bool = True  # measure the posterior at the end (--mode=evaluate)

    def folder(self, work: Path, seed: int) -> Path:
        """The work directory of a seed."""
        return work / "_".join(filter(None, (self.group, self.method))).replace(" ", "_") / f"seed_{seed}"


def fields(**values: Any) -> tuple[str, ...]:
    """``m_step__steps=80`` -> '--config.m_step.steps=80'."""
    return tuple(f"--config.{name.replace('__', '.')}={value}" for name, value in values.items())


QUICK = fields(rounds=1, m_step__steps=40, e_step__steps=8)
"""What --quick adds to every run."""


def arguments(description: str) -> argparse.Namespace:
    """--seeds, --quick, --only, --work, --processes, --report."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. SEEDS - 1")
    parser.add_argument("--quick", action="store_true", help="a small budget, to see that it works; writes no page")
    parser.add_argument("--only", default="", help="runs whose 'group/method' contains this")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "experiments", help="where the runs lie")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--report", action="store_true", help="run nothing: tables and figures of what is there")
    return parser.parse_args()


def run_jobs(jobs: Sequence[Job], work: Path, options: argparse.Namespace) -> list[tuple[Job, int]]:
    """Does what is missing and returns the job and seed of all runs that are finished."""
    if not options.report:
        wanted = [j for j in jobs if options.only in f"{j.group}/{j.method}"]
        if options.quick:
            wanted = [job._replace(flags=(*job.flags, *QUICK)) for job in wanted]
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
    pairs = [(job, seed) for job in jobs for seed in range(options.seeds)]
    return [(job, seed) for job, seed in pairs if (job.folder(work, seed) / "trained.json").exists()]


def run_each(doc: str, path: Path, page: str, names: Iterable[str], measure: Callable[..., Row], tables: Any) -> None:
    """The command of runs that need no seeds: measures all, those of --only, or with --report none; writes ``path`` and the page."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=names)
    parser.add_argument("--report", action="store_true", help="run nothing: the tables of what is there")
    given, results = parser.parse_args(), json.loads(path.read_text()) if path.exists() else {}
    for name in () if given.report else [given.only] if given.only else names:
        results[name] = measure(name)
        path.write_text(json.dumps(results, indent=1) + "\n")
    write_page(path.with_name(page), tables(results))


def main(
    name: str, description: str, jobs: Sequence[Job], tables: Callable[[list[Row]], str],
    draw: Callable[[list[Row], Path], None], measure: Callable[[Job, Path, int], Iterable[Row]] | None = None,
) -> None:  # fmt: skip
    """An experiment's command: runs what is missing, writes the rows, the tables of the README, the figures in its folder."""
    options, place = arguments(description), ROOT / "experiments" / name
    work = options.work / ("quick" if options.quick else "") / name
    rows_of = measure or (lambda *run: [collect(*run)])
    rows = [row for job, seed in run_jobs(jobs, work, options) for row in rows_of(job, work, seed)]
    if not rows:
        sys.exit("no finished run")
    if options.quick:
        print(tables(rows))
        return
    (place / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    write_page(place / "README.md", tables(rows))
    draw(rows, place)


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
            train(folder, *command, log=log)
        seconds = time.monotonic() - began
        mark.write_text(json.dumps({"command": command, "seconds": seconds}) + "\n")
        print(f"{title}: {stage} in {seconds:.0f} s", flush=True)


def train(folder: Path, *flags: str, log: Any = None) -> Workdir:
    """The real command on a work directory; a finished run is passed over."""
    command = [sys.executable, "-m", "diffem_jax.main", f"--workdir={folder}", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, stdout=log, stderr=log and subprocess.STDOUT, check=True, env=environment)
    return Workdir(folder)


def collect(job: Job, work: Path, seed: int) -> Row:
    """A finished run as a row: its rounds with cumulated seconds and network calls, its evaluation, its stop record."""
    folder = Workdir(job.folder(work, seed))
    records, config = folder.records(), folder.stored_config()
    fit = checkpoints.metadata(folder.start / "fit")
    # Compilation is left out: it is paid once a setting, and not at all where a compilation cache is shared.
    seconds, calls, rounds = fit["seconds"] - fit.get("compile_seconds", 0.0), 0, []
    manifest = json.loads(max(folder.reconstructions.glob("round_*/manifest.json")).read_text())
    examples = config["data.num_examples"] or manifest["num_examples"] // config.get("e_step.draws", 1)
    for record in records:
        if record.get("kind") != "round":
            continue
        seconds += record["e_step_seconds"] + record.get("m_step_seconds", 0.0) - record["compile_seconds"]
        if record["round"]:
            calls += network_calls(config, examples)
        rounds.append({**record, "seconds": seconds, "network_calls": calls})
    last = {record.get("kind"): record for record in records}
    found = {kind: last.get(kind, {}) for kind in ("evaluation", "stop")}
    return {"group": job.group, "method": job.method, "seed": seed, "rounds": rounds, **found}


def network_calls(config: Row, examples: int) -> int:
    """Of a round's training and E-step: a forward pass, a backward pass and a vector-Jacobian product count one each."""
    training = 2 * config["m_step.steps"] * config["m_step.batch_size"]
    method, steps = config["method"], config["e_step.steps"] * EVALUATIONS.get(config["e_step.sampler"], 1)
    if method == "ambient" and config["ambient.reconstruction"] == "restoration":
        return training + examples
    solves = config["mmps.iterations"] if config["mmps.covariance"] == "jacobian" else 0
    products = {"em_dps": 1, "em_pigdm": 1, "ambient": 1, "em_mmps": 1 + solves}.get(method, 0)
    return training + examples * config.get("e_step.draws", 1) * steps * (1 + products)


def posterior_draws(folder: Workdir, setup: Any, number: int, observations: Any, samples: int, stream: str) -> Any:
    """Draws [samples, N, *X] of p(x | y) by the network of a round (0: by the start), under keys of their own stream."""
    parallel = make_parallel("jit")
    drawing = round_drawing(folder, setup, number, parallel)
    return draw_samples(drawing, observations, attempt_keys(1, stream), samples, quiet=True)


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


def table(rows: Sequence[Row], value: Callable[[Row], float | None], across: str = "group", digits: int = 3) -> str:
    """A Markdown table of a value over seeds, a line per method, in the order in which the runs are listed."""
    lines, heads = ([*dict.fromkeys(row[name] for row in rows)] for name in ("method", across))
    found: dict[Any, list[Any]] = {}
    for row in rows:
        found.setdefault((row["method"], row[across]), []).append(value(row))
    body = [[line, *(spread(found.get((line, head), ()), digits) for head in heads)] for line in lines]
    return markdown(["", *heads], body)


def columns(rows: Sequence[Row], values: Mapping[str, Callable[[Row], float | None]], digits: int = 3) -> str:
    """A Markdown table with a line per method and a column per value."""
    found = [{**row, "column": head, "value": value(row)} for head, value in values.items() for row in rows]
    return table(found, lambda row: row["value"], across="column", digits=digits)


def ends(rows: Sequence[Row], metrics: Mapping[str, str], digits: int = 3) -> str:
    """A Markdown table with a line per method and a column per metric of the last round: {metric: title}."""
    return columns(rows, {title: lambda r, m=metric: last(r, m) for metric, title in metrics.items()}, digits)


def curves(rows: Sequence[Row], point: Callable[[Row], tuple[float, float] | None]) -> dict[str, list[Any]]:
    """For a figure: method -> for each run the points of its rounds, those that there are."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        points = [p for r in row["rounds"] if (p := point(r)) is not None]
        found.setdefault(row["method"], []).append(points)
    return found


def settings(rows: Sequence[Row], name: Callable[[Row], str], x: Callable[[Row], float], metric: str) -> dict[str, Any]:
    """For a figure: name -> for each seed the points (x, metric of the last round), where every seed has some."""
    found: dict[str, dict[int, list[Any]]] = {}
    for row in rows:
        if (value := last(row, metric)) is not None:
            found.setdefault(name(row), {}).setdefault(row["seed"], []).append((x(row), value))
    seeds = {row["seed"] for row in rows}
    return {line: [points[seed] for seed in sorted(seeds)] for line, points in found.items() if set(points) == seeds}


def seeds_of(rows: Sequence[Row]) -> str:
    """'3 seeds' for the tables' captions."""
    count = len({row["seed"] for row in rows})
    return f"{count} seeds; ± is the standard deviation over seeds" if count > 1 else "one seed"
