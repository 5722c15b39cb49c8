"""Nine of ten pixels erased: the best settings, the published ones and EM-MMPS, which get at least as many seconds, by every measure.

    python -m experiments.extreme.run [--seeds=3] [--quick] [--only=digits] [--processes=2]

The rivals' rounds are chosen so that they take at least the seconds of the best settings; both stand in the table.
"""

from __future__ import annotations

from experiments import common, figures
from experiments.common import Job, Row, fields

NAME = "extreme"
METHODS = ("DiffEM, best", "DiffEM, published", "EM-MMPS")
PUBLISHED = fields(denoiser__preconditioning="edm", m_step__loss_weight="snr", m_step__time_law_beta="((3.0,3.0),)")
DIGITS = "--config=digits:mask90"
PATCHES = (
    "--config=patches:mask90",
    *fields(
        data__num_examples=1024,
        start__num_examples=1024,
        m_step__steps=250,
        m_step__batch_size=32,
        network__channels="(16,32)",
        eval__num_examples=1024,
        eval__posterior_examples=64,
    ),
)


def jobs(quick: bool) -> list[Job]:
    """Three methods on two sets."""
    short = fields(rounds=1, m_step__steps=40) if quick else ()
    mmps = fields(method="em_mmps", e_step__steps=16 if quick else 64)
    few = fields(e_step__steps=16 if quick else 256)
    return [
        Job(METHODS[0], (DIGITS, *short), "digits"),
        Job(METHODS[1], (f"{DIGITS}_paper", *few, *fields(rounds=4), *short), "digits"),
        Job(METHODS[2], (f"{DIGITS}_paper", *mmps, *fields(rounds=4), *short), "digits"),
        Job(METHODS[0], (*PATCHES, *fields(rounds=2), *short), "patches"),
        Job(METHODS[1], (*PATCHES, *PUBLISHED, *few, *fields(rounds=1), *short), "patches"),
        Job(METHODS[2], (*PATCHES, *PUBLISHED, *mmps, *fields(rounds=1), *short), "patches"),
    ]


HIGHER = ("psnr", "ssim", "accuracy", "features_precision", "features_recall", "features_density", "features_coverage")
"""Measures of which more is better; of coverage and TARP the distance from nominal counts, of all others less is better."""
SKIPPED = ("posterior_spread", "round")


def best_of(metric: str, values: dict[str, float]) -> str:
    """The method with the best value."""
    if metric in HIGHER:
        return max(values, key=values.__getitem__)
    if metric.startswith(("coverage_", "tarp_")):
        nominal = float(metric.rsplit("_", 1)[1]) / 100
        return min(values, key=lambda method: abs(values[method] - nominal))
    return min(values, key=lambda method: abs(values[method]))


def mean(rows: list[Row], metric: str) -> float | None:
    """The mean over seeds of a measure of the evaluation, which every row must have."""
    values = [row["evaluation"].get(metric) for row in rows]
    return None if not values or None in values else sum(values) / len(values)


def report(rows: list[Row], quick: bool) -> None:
    """A table per set: a line per measure, the best in bold."""
    parts = [f"Last round, {common.seeds_of(rows)}; the best value of a line is bold."]
    for group in dict.fromkeys(row["group"] for row in rows):
        by = {method: [r for r in rows if r["group"] == group and r["method"] == method] for method in METHODS}
        by = {method: found for method, found in by.items() if found}
        lines = [f"| {group} | {' | '.join(by)} |", "|---|" + "---|" * len(by)]
        for what, unit, key in (("seconds", 1, "seconds"), ("10^6 network calls", 1e6, "network_calls")):
            cells = [common.spread((r["rounds"][-1][key] / unit for r in found), 1) for found in by.values()]
            lines.append(f"| {what} | {' | '.join(cells)} |")
        names = [
            k
            for k in next(iter(by.values()))[0]["evaluation"]
            if f"{k}_samples" in next(iter(by.values()))[0]["evaluation"]
        ]
        wins = dict.fromkeys(by, 0)
        for metric in names:
            values = {m: v for m, found in by.items() if (v := mean(found, metric)) is not None}
            if metric in SKIPPED or len(values) < len(by):
                continue
            winner = best_of(metric, values)
            wins[winner] += 1
            cells = []
            for method, found in by.items():
                cell = common.spread((r["evaluation"].get(metric) for r in found), 4)
                cells.append(f"**{cell}**" if method == winner else cell)
            lines.append(f"| {metric.replace('_', ' ')} | {' | '.join(cells)} |")
        lines.append(f"| (best in) | {' | '.join(str(wins[m]) for m in by)} |")
        parts.append("\n".join(lines))
    picture = f"extreme{'_quick' if quick else ''}.png"
    parts.append(
        f"![PSNR, CRPS and coverage against seconds]({picture})\n\n"
        "PSNR after each round, from the start on; CRPS and coverage of the round that is evaluated (where a run stops by "
        "`held_out` the one it picks) at the seconds of the whole run. Means over seeds, bars are standard deviations."
    )
    common.write_readme(NAME, "\n\n".join(parts), quick)
    figures.draw(common.ROOT / "experiments" / NAME / picture, panels(rows))


def panels(rows: list[Row]) -> list[figures.Panel]:
    """A line of plots per set: PSNR of every round, CRPS and coverage of the evaluated one, against seconds."""
    out = []
    for group in dict.fromkeys(row["group"] for row in rows):
        here = [row for row in rows if row["group"] == group]
        by = {method: found for method in METHODS if (found := [r for r in here if r["method"] == method])}
        axis = f"seconds ({group})"
        rounds = {
            method: [[(r["seconds"], r["psnr"]) for r in row["rounds"]] for row in found]
            for method, found in by.items()
        }
        out.append(figures.Panel(rounds, axis, "PSNR of one draw, dB"))
        for metric, label, level in (("crps", "CRPS", None), ("coverage_90", "truths in central 90% intervals", 0.9)):
            ends = {
                method: [[(row["rounds"][-1]["seconds"], row["evaluation"][metric])] for row in found]
                for method, found in by.items()
            }
            out.append(figures.Panel(ends, axis, label, level=level))
    return out


def main() -> None:
    common.main(NAME, __doc__ or "", jobs, report)


if __name__ == "__main__":
    main()
