"""Ablations of DiffEM on digits: what each choice is worth, one at a time.

    python -m experiments.ablations.run [--seeds=3] [--quick] [--processes=2] [--only=noise]

Sampler steps; the sampler; the start (Gaussian, mixture, the reconstructions of EM-MMPS); the network carried over or fresh; a
wrong rate of erased pixels; the observations' noise; a corruption that is not linear; and 30 rounds, where diversity
shows whether training on one's own draws eats itself.
"""

from pathlib import Path

from diffem_jax.samplers import EVALUATIONS, SAMPLERS
from experiments import common, figures
from experiments.common import Job, Row, fields

BASE = (
    *fields(rounds=3, m_step__steps=300, m_step__batch_size=256, network__features="(256,256,256)"),
    *fields(eval__metrics="('psnr','accuracy','sliced_wasserstein_unpaired')", eval__posterior_examples=128),
)
EDM = fields(denoiser__preconditioning="edm")
MIXTURE = fields(start__name="mixture", start__components=10, start__rank=8, start__iterations=20)
# Recall is the share of truths near some draw: it falls where training on one's own draws loses variety.
VARIETY = fields(eval__metrics="('psnr','features_recall','features_precision','sliced_wasserstein_unpaired')")
# Of the data, whatever rate the method assumes.
TRUE = fields(data_corruption__name="pixel_mask", data_corruption__rate=0.5, data_corruption__noise_std=0.01)
ASSUMED = "assumed rate (true 0.50)"
CASES = [(n, "tangent" if n == "analytic_2m" else "log_uniform", 16 // EVALUATIONS.get(n, 1)) for n in SAMPLERS]


def job(group: str, method: str, *flags: str, before: str = "", config: str = "digits") -> Job:
    """A run of the base with some flags."""
    return Job(method, (f"--config={config}", *BASE, *flags), group, before)


JOBS = [
    *(job("sampler steps", str(n), *fields(e_step__steps=n)) for n in (8, 16, 32, 64, 128, 256)),
    *(
        job("sampler, 16 evaluations", name, *fields(e_step__sampler=name, e_step__time_grid=grid, e_step__steps=steps))
        for name, grid, steps in CASES
    ),
    job("start", "gaussian"),
    job("start", "mixture of 10", *MIXTURE),
    job("start", "EM-MMPS", *EDM, *fields(method="em_mmps")),
    job("start", "warm from EM-MMPS", *fields(start__checkpoint="{before}"), before="EM-MMPS"),
    *(
        job("carried over", f"{name}, {carry}", *flags, *fields(m_step__carry=carry))
        for name, flags in (("posterior", ()), ("published denoiser", EDM))
        for carry in ("all", "params", "nothing")
    ),
    *(job(ASSUMED, f"{rate:.2f}", *TRUE, *fields(corruption__rate=rate)) for rate in (0.4, 0.45, 0.5, 0.55, 0.6)),
    *(job("noise", str(std), *fields(corruption__noise_std=std)) for std in (0.001, 0.01, 0.1, 0.2, 0.4)),
    job("not linear", "JPEG quality 20", config="digits:jpeg"),
    job("rounds", "30 rounds", *VARIETY, *fields(rounds=30)),
]
COLUMNS = {
    "psnr": "PSNR, dB", "accuracy": "accuracy", "sliced_wasserstein_unpaired": "sliced Wasserstein, unpaired",
    "posterior_spread": "spread of the posterior", "coverage_90": "coverage of 90%", "crps": "CRPS",
}  # fmt: skip


def of(rows: list[Row], group: str) -> list[Row]:
    """The runs of one question."""
    return [row for row in rows if row["group"] == group]


def tables(rows: list[Row]) -> str:
    """One table per question."""
    parts = [f"Last round, {common.seeds_of(rows)}."]
    for group in dict.fromkeys(row["group"] for row in rows):
        parts.append(f"### {group}\n\n{common.ends(of(rows, group), COLUMNS)}")
    return "\n\n".join([*parts, "![Sampler steps, noise, assumed rate](settings.png)", "![Over rounds](rounds.png)"])


def draw(rows: list[Row], place: Path) -> None:
    """Measures against the settings that are numbers, and over rounds."""
    panels = []
    for group in ("sampler steps", "noise", ASSUMED):
        for metric in ("psnr", "coverage_90"):
            lines = common.settings(of(rows, group), lambda r: "DiffEM", lambda r: float(r["method"]), metric)
            panels.append(figures.Panel(lines, group, metric, log_x=group != ASSUMED))
    figures.draw(place / "settings.png", panels, columns=2)
    panels = []
    for group in ("start", "carried over", "rounds"):
        chosen = of(rows, group)
        for metric in ("psnr", "sliced_wasserstein_unpaired", "features_recall", "features_precision"):
            if metric in chosen[0]["rounds"][0]:
                lines = common.curves(chosen, lambda r, m=metric: (r["round"], r[m]))
                panels.append(figures.Panel(lines, f"round ({group})", metric.replace("_", " ")))
    figures.draw(place / "rounds.png", panels, columns=2)


if __name__ == "__main__":
    common.main("ablations", __doc__ or "", JOBS, tables, draw)
