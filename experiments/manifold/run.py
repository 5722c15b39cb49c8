"""The manifold: DiffEM as published and with this project's best settings, EM-MMPS and the oracle.

    python -m experiments.manifold.run [--seeds=3] [--quick] [--processes=2]

Sinkhorn divergence (2,048 points, paired) against seconds and against network calls. The corner plots of the last draws are
those of the runs, ``runs/experiments/manifold/METHOD/seed_0/samples``.
"""

from pathlib import Path

from experiments import common, figures
from experiments.common import Job, Row, fields

METRICS = fields(eval__metrics="('sinkhorn','observation_score','observation_distance')")
PUBLISHED = ("--config=manifold:published", *METRICS)
JOBS = [
    Job("DiffEM, best", ("--config=manifold:best", *METRICS, *fields(rounds=4))),
    Job("DiffEM, published", PUBLISHED),
    Job("EM-MMPS", (*PUBLISHED, *fields(method="em_mmps", rounds=5, e_step__steps=64, mmps__iterations=2))),
    Job("oracle", (*PUBLISHED, *fields(method="oracle", rounds=2, m_step__steps=3000, e_step__steps=64))),
]
MEASURES = ("sinkhorn_unpaired", "coverage_90", "tarp_90", "crps", "posterior_spread", "observation_score")


def tables(rows: list[Row]) -> str:
    """The divergence after each round, what it cost, and the posterior of the last round."""
    longest = max(len(row["rounds"]) for row in rows)
    rounds = [{**row, "round": r["round"], "sinkhorn": r["sinkhorn"]} for row in rows for r in row["rounds"]]
    costs = {
        "seconds": lambda row: row["rounds"][-1]["seconds"],
        "10^6 calls": lambda row: row["rounds"][-1]["network_calls"] / 1e6,
    }
    posterior = {name: lambda row, name=name: row["evaluation"].get(name) for name in MEASURES}
    return "\n\n".join(
        [
            f"Sinkhorn divergence after each round ({common.seeds_of(rows)}); round 0 is the start.",
            common.table(rounds, lambda r: r["sinkhorn"], across="round"),
            f"Seconds (compilation left out) and millions of network calls until the last round (of at most {longest - 1}).",
            common.columns(rows, costs, digits=0),
            "The posterior (calibrated: coverage and TARP 0.9) and the unpaired divergence, of the last round.",
            common.columns([row for row in rows if row["evaluation"]], posterior),
            "![Divergence](divergence.png)",
        ]
    )


def draw(rows: list[Row], place: Path) -> None:
    """The divergence against seconds and against network calls."""
    # The divergence is slightly negative at the floor: a logarithm needs an offset, said on the axis.
    panels = []
    for x, label in (("seconds", "seconds (start, M-steps, E-steps)"), ("network_calls", "network calls")):
        lines = common.curves(rows, lambda r, x=x: (r[x], r["sinkhorn"] + 0.01) if r[x] > 0 else None)
        panels.append(figures.Panel(lines, label, "Sinkhorn divergence + 0.01", True, True))
    figures.draw(place / "divergence.png", panels)


if __name__ == "__main__":
    common.main("manifold", __doc__ or "", JOBS, tables, draw)
