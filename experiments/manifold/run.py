"""The manifold: DiffEM as published and with this project's best settings, EM-MMPS and the oracle.

    python -m experiments.manifold.run [--seeds=3] [--quick] [--processes=2]

Sinkhorn divergence (2,048 points, paired) against seconds and against network calls, and corner plots of the last draws.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from experiments import common, figures
from experiments.common import ROOT, Job, Row, fields

NAME = "manifold"
METRICS = "('sinkhorn','observation_score','observation_distance')"


def jobs(quick: bool) -> list[Job]:
    published = ("--config=manifold:published", *fields(eval__metrics=METRICS))
    best = ("--config=manifold:best", *fields(eval__metrics=METRICS))
    short = fields(rounds=2, m_step__steps=1000, e_step__steps=64) if quick else ()
    return [
        Job("DiffEM, best", (*best, *fields(rounds=2 if quick else 4))),
        Job("DiffEM, published", (*published, *short)),
        Job("EM-MMPS", (*published, *fields(method="em_mmps", rounds=5, e_step__steps=64, mmps__iterations=2), *short)),
        Job("oracle", (*published, *fields(method="oracle", rounds=2, m_step__steps=3000, e_step__steps=64), *short)),
    ]


def report(rows: list[Row], quick: bool) -> None:
    work = common.ROOT / "experiments" / NAME

    def lines(x: str) -> dict[str, Sequence[Sequence[tuple[float, float]]]]:
        # The divergence is slightly negative at the floor: a logarithm needs an offset, said on the axis.
        return {
            method: [
                [(r[x], r["sinkhorn"] + 0.01) for r in row["rounds"] if r[x] > 0]
                for row in rows
                if row["method"] == method
            ]
            for method in dict.fromkeys(row["method"] for row in rows)
        }

    axis = "Sinkhorn divergence + 0.01"
    figures.draw(
        work / ("divergence_quick.png" if quick else "divergence.png"),
        [
            figures.Panel(lines("seconds"), "seconds (start, M-steps, E-steps)", axis, True, True),
            figures.Panel(lines("network_calls"), "network calls", axis, True, True),
        ],
    )
    longest = max(len(row["rounds"]) for row in rows)
    spread_rows = [{**row, "round": r["round"], "sinkhorn": r["sinkhorn"]} for row in rows for r in row["rounds"]]
    text = f"Sinkhorn divergence after each round ({common.seeds_of(rows)}); round 0 is the start.\n\n"
    text += common.table(spread_rows, lambda r: r["sinkhorn"], across="round")
    text += f"\n\nSeconds (compilation left out) and millions of network calls until the last round (of at most {longest - 1}).\n\n"
    costs = [
        {**row, "group": what, "value": row["rounds"][-1][key] / unit}
        for row in rows
        for what, key, unit in (("seconds", "seconds", 1), ("10^6 calls", "network_calls", 1e6))
    ]
    text += common.table(costs, lambda r: r["value"], digits=0)
    measured = [
        {**row, "group": name}
        for name in ("sinkhorn_unpaired", "coverage_90", "tarp_90", "crps", "posterior_spread", "observation_score")
        for row in rows
        if row["evaluation"]
    ]
    if measured:
        text += (
            "\n\nThe posterior (calibrated: coverage and TARP 0.9) and the unpaired divergence, of the last round.\n\n"
        )
        text += common.table(measured, lambda r: r["evaluation"].get(r["group"]), digits=3)
    text += f"\n\n![Divergence](divergence{'_quick' if quick else ''}.png)\n"
    common.write_readme(NAME, text, quick)


def corners(options: object, quick: bool) -> None:
    """The corner plots of seed 0's last rounds, as the runs drew them."""
    for job in jobs(quick):
        folder = job.folder(options.work / (NAME + ("_quick" if quick else "")), 0) / "samples"  # type: ignore[attr-defined]
        found = sorted(folder.glob("round_*.png"))
        if found:
            target = job.method.lower().replace(", ", "_").replace("-", "_")
            shutil.copy(found[-1], ROOT / "experiments" / NAME / f"corner_{target}{'_quick' if quick else ''}.png")


def main() -> None:
    options = common.arguments(__doc__ or "")
    rows = common.run_jobs(NAME, jobs(options.quick), options)
    if not rows:
        sys.exit("no finished run")
    report(rows, options.quick)
    corners(options, options.quick)


if __name__ == "__main__":
    main()
