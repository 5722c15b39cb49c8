"""Nine of ten pixels erased: the best settings, the published ones and EM-MMPS, which get at least as many seconds, by every measure.

    python -m experiments.extreme.run [--seeds=3] [--quick] [--only=digits] [--processes=2]

The rivals' rounds are chosen so that they take at least the seconds of the best settings; both stand in the table.
"""

from pathlib import Path

from experiments import common, figures
from experiments.common import Job, Row, fields
from experiments.rates import EDM

DIGITS = "--config=digits:mask90"
PATCHES = (
    "--config=patches:mask90",
    *fields(data__num_examples=1024, start__num_examples=1024, m_step__steps=250, m_step__batch_size=32),
    *fields(network__channels="(16,32)", eval__num_examples=1024, eval__posterior_examples=64),
)
MMPS, FEW = fields(method="em_mmps", e_step__steps=64), fields(e_step__steps=256)
BEST, PUBLISHED, EM_MMPS = METHODS = ("DiffEM, best", "DiffEM, published", "EM-MMPS")
JOBS = [
    Job(BEST, (DIGITS,), "digits"),
    Job(PUBLISHED, (f"{DIGITS}_paper", *FEW, *fields(rounds=4)), "digits"),
    Job(EM_MMPS, (f"{DIGITS}_paper", *MMPS, *fields(rounds=4)), "digits"),
    Job(BEST, (*PATCHES, *fields(rounds=2)), "patches"),
    Job(PUBLISHED, (*PATCHES, *EDM, *FEW, *fields(rounds=1)), "patches"),
    Job(EM_MMPS, (*PATCHES, *EDM, *MMPS, *fields(rounds=1)), "patches"),
]
HIGHER = ("psnr", "ssim", "accuracy", "features_precision", "features_recall", "features_density", "features_coverage")
"""Measures of which more is better; of coverage and TARP the distance from nominal counts, of all others less is better."""
SKIPPED = ("posterior_spread", "round")
CAPTION = """![PSNR, CRPS and coverage against seconds](extreme.png)

PSNR after each round, from the start on; CRPS and coverage of the round that is evaluated (where a run stops by \
`held_out` the one it picks) at the seconds of the whole run. Means over seeds, bars are standard deviations."""


def best_of(metric: str, values: dict[str, float]) -> str:
    """The method with the best value."""
    if metric in HIGHER:
        return max(values, key=values.__getitem__)
    level = metric.rpartition("_")[2]
    nominal = float(level) / 100 if metric.startswith(("coverage_", "tarp_")) else 0.0
    return min(values, key=lambda method: abs(values[method] - nominal))


def mean(rows: list[Row], metric: str) -> float | None:
    """The mean over seeds of a measure of the evaluation, which every row must have."""
    values = [row["evaluation"].get(metric) for row in rows]
    return None if not values or None in values else sum(values) / len(values)


def groups(rows: list[Row]) -> dict[str, dict[str, list[Row]]]:
    """Set -> method -> its runs."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: METHODS.index(row["method"])):
        found.setdefault(row["group"], {}).setdefault(row["method"], []).append(row)
    return {group: found[group] for group in dict.fromkeys(row["group"] for row in rows)}


def table(group: str, by: dict[str, list[Row]]) -> str:
    """A line per measure, the best in bold, and in how many a method is best."""
    lines = [f"| {group} | {' | '.join(by)} |", "|---|" + "---|" * len(by)]
    for what, unit, key in (("seconds", 1, "seconds"), ("10^6 network calls", 1e6, "network_calls")):
        cells = [common.spread((r["rounds"][-1][key] / unit for r in found), 1) for found in by.values()]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    first, wins = next(iter(by.values()))[0]["evaluation"], dict.fromkeys(by, 0)
    for metric in (name for name in first if f"{name}_samples" in first and name not in SKIPPED):
        values = {m: v for m, found in by.items() if (v := mean(found, metric)) is not None}
        if len(values) < len(by):
            continue
        winner = best_of(metric, values)
        wins[winner] += 1
        cells = {m: common.spread((r["evaluation"].get(metric) for r in found), 4) for m, found in by.items()}
        cells[winner] = f"**{cells[winner]}**"
        lines.append(f"| {metric.replace('_', ' ')} | {' | '.join(cells.values())} |")
    return "\n".join([*lines, f"| (best in) | {' | '.join(map(str, wins.values()))} |"])


def tables(rows: list[Row]) -> str:
    """A table per set."""
    head = f"Last round, {common.seeds_of(rows)}; the best value of a line is bold."
    return "\n\n".join([head, *(table(group, by) for group, by in groups(rows).items()), CAPTION])


def draw(rows: list[Row], place: Path) -> None:
    """A line of plots per set: PSNR of every round, CRPS and coverage of the evaluated one, against seconds."""
    panels = []
    for group, by in groups(rows).items():
        axis, runs = f"seconds ({group})", [row for found in by.values() for row in found]
        curves = common.curves(runs, lambda r: (r["seconds"], r["psnr"]))
        panels.append(figures.Panel(curves, axis, "PSNR of one draw, dB"))
        for metric, label, level in (("crps", "CRPS", None), ("coverage_90", "truths in central 90% intervals", 0.9)):
            ends = {
                method: [[(row["rounds"][-1]["seconds"], row["evaluation"][metric])] for row in found]
                for method, found in by.items()
            }
            panels.append(figures.Panel(ends, axis, label, level=level))
    figures.draw(place / "extreme.png", panels)


if __name__ == "__main__":
    common.main("extreme", __doc__ or "", JOBS, tables, draw)
