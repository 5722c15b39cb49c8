"""Methods against rates of erased pixels, for the experiments 'digits' and 'patches'."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments import common, figures
from experiments.common import Job, Row, fields

RATES = (0.25, 0.5, 0.75, 0.9)
GUIDANCE = 10.0
"""DPS strength of the ambient draws (config.dps.step)."""


def jobs(base: Sequence[str], rates: Sequence[float]) -> list[Job]:
    """All methods at all rates on one base of flags."""
    edm = fields(denoiser__preconditioning="edm", m_step__loss_weight="snr", m_step__time_law_beta="((3.0,3.0),)")
    methods = {
        "DiffEM": (),
        "DiffEM, published denoiser": edm,
        "EM-MMPS": (*edm, *fields(method="em_mmps", mmps__iterations=1)),
        "ambient, posterior": (*edm, *fields(method="ambient", ambient__reconstruction="dps", dps__step=GUIDANCE)),
        "ambient, restoration": (*edm, *fields(method="ambient", ambient__reconstruction="restoration")),
        "oracle": fields(method="oracle"),
    }
    return [
        Job(name, (*base, *flags, *fields(corruption__rate=rate)), f"rate {rate}")
        for rate in rates
        for name, flags in methods.items()
    ]


MEASURES = {
    "psnr": "PSNR of one reconstruction per observation, dB (a restoration is a mean, not a draw: its PSNR is no fair rival)",
    "accuracy": "Accuracy of a classifier of clean images on the reconstructions",
    "sliced_wasserstein_unpaired": "Sliced Wasserstein distance to truths of other examples (unpaired)",
    "coverage_90": "Share of truths in central 90% intervals of 8 draws (calibrated: 0.9)",
    "crps": "CRPS of 8 draws (lower is better)",
}


def report(name: str, rows: list[Row], quick: bool) -> None:
    """Tables of the last round and one figure."""
    parts = [f"Last round, {common.seeds_of(rows)}."]
    for metric, caption in MEASURES.items():
        if any(common.last(row, metric) is not None for row in rows):
            parts.append(f"{caption}:\n\n{common.table(rows, lambda r, m=metric: common.last(r, m))}")
    seconds = common.table(rows, lambda r: r["rounds"][-1]["seconds"], digits=0)
    parts.append(f"Seconds (start, M-steps, E-steps; compilation left out):\n\n{seconds}")
    calls = common.table(rows, lambda r: r["rounds"][-1]["network_calls"] / 1e6, digits=2)
    parts.append(f"Millions of network calls (a forward pass, a backward pass, a product count one each):\n\n{calls}")
    parts.append(f"![Methods against rates](rates{'_quick' if quick else ''}.png)")
    common.write_readme(name, "\n\n".join(parts), quick)
    methods = dict.fromkeys(row["method"] for row in rows)
    seeds = sorted({row["seed"] for row in rows})
    panels = []
    for metric in ("psnr", "accuracy", "sliced_wasserstein_unpaired", "coverage_90"):
        lines = {}
        for method in methods:
            points = [
                [
                    (float(row["group"].split()[1]), value)
                    for row in rows
                    if row["method"] == method
                    and row["seed"] == seed
                    and (value := common.last(row, metric)) is not None
                ]
                for seed in seeds
            ]
            if all(points):
                lines[method] = points
        if lines:
            panels.append(
                figures.Panel(lines, "rate of erased pixels", metric.replace("_", " "), log_y="sliced" in metric)
            )
    figures.draw(common.ROOT / "experiments" / name / f"rates{'_quick' if quick else ''}.png", panels, columns=2)


def main(name: str, description: str, base: Sequence[str], quick: Sequence[str]) -> None:
    """Runs an experiment of this kind."""
    options: argparse.Namespace = common.arguments(description)
    chosen = jobs((*base, *quick), (0.5, 0.75)) if options.quick else jobs(base, RATES)
    rows = common.run_jobs(name, chosen, options)
    if not rows:
        sys.exit("no finished run")
    report(name, rows, options.quick)
