"""Methods against rates of erased pixels, for the experiments 'digits' and 'patches'."""

from collections.abc import Sequence
from pathlib import Path

from experiments import common, figures
from experiments.common import Job, Row, fields

GUIDANCE = 10.0
"""DPS strength of the ambient draws (config.dps.step)."""
EDM = fields(denoiser__preconditioning="edm", m_step__loss_weight="snr", m_step__time_law_beta="((3.0,3.0),)")
METHODS = {
    "DiffEM": (),
    "DiffEM, published denoiser": EDM,
    "EM-MMPS": (*EDM, *fields(method="em_mmps", mmps__iterations=1)),
    "ambient, posterior": (*EDM, *fields(method="ambient", ambient__reconstruction="dps", dps__step=GUIDANCE)),
    "ambient, restoration": (*EDM, *fields(method="ambient", ambient__reconstruction="restoration")),
    "oracle": fields(method="oracle"),
}
MEASURES = {
    "psnr": "PSNR of one reconstruction per observation, dB (a restoration is a mean, not a draw: its PSNR is no fair rival)",
    "accuracy": "Accuracy of a classifier of clean images on the reconstructions",
    "sliced_wasserstein_unpaired": "Sliced Wasserstein distance to truths of other examples (unpaired)",
    "coverage_90": "Share of truths in central 90% intervals of 8 draws (calibrated: 0.9)",
    "crps": "CRPS of 8 draws (lower is better)",
}


def jobs(base: Sequence[str]) -> list[Job]:
    """All methods at all rates on one base of flags."""
    return [
        Job(name, (*base, *flags, *fields(corruption__rate=rate)), f"rate {rate}")
        for rate in (0.25, 0.5, 0.75, 0.9)
        for name, flags in METHODS.items()
    ]


def tables(rows: list[Row]) -> str:
    """A table per measure of the last round, then seconds and network calls."""
    parts = [f"Last round, {common.seeds_of(rows)}."]
    for metric, caption in MEASURES.items():
        if any(common.last(row, metric) is not None for row in rows):
            parts.append(f"{caption}:\n\n{common.table(rows, lambda r, m=metric: common.last(r, m))}")
    seconds = common.table(rows, lambda r: r["rounds"][-1]["seconds"], digits=0)
    parts.append(f"Seconds (start, M-steps, E-steps; compilation left out):\n\n{seconds}")
    calls = common.table(rows, lambda r: r["rounds"][-1]["network_calls"] / 1e6, digits=2)
    parts.append(f"Millions of network calls (a forward pass, a backward pass, a product count one each):\n\n{calls}")
    return "\n\n".join([*parts, "![Methods against rates](rates.png)"])


def draw(rows: list[Row], place: Path) -> None:
    """Measures against rates."""
    panels = []
    for metric in ("psnr", "accuracy", "sliced_wasserstein_unpaired", "coverage_90"):
        lines = common.settings(rows, lambda r: r["method"], lambda r: float(r["group"].split()[1]), metric)
        if lines:
            label = metric.replace("_", " ")
            panels.append(figures.Panel(lines, "rate of erased pixels", label, log_y="sliced" in metric))
    figures.draw(place / "rates.png", panels, columns=2)
