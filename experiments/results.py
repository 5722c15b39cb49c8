"""Writes docs/results.md from experiments/*/results.json and benchmarks/results/*.json; no number is typed.

python -m experiments.results
"""

import json
from collections.abc import Callable
from typing import Any

from experiments import common
from experiments.common import ROOT, Row
from experiments.kinds import run as kinds
from experiments.patches import classical
from experiments.stopping import run as stopping

PAGE = ROOT / "docs" / "results.md"
HEAD = """# Results

Written by `python -m experiments.results` from the stored results. Measured on two shared CPU cores: seconds vary with the
machine. ± is the standard deviation over seeds. Each section names its command, and its folder has every table and figure.
[Performance](performance.md) has the timings, [scaling](scaling.md) the cost at full size.

All of it was measured with earlier settings: samplers such as `ddpm` in the place of `analytic_2m`, one draw per observation (eight for
digits with nine of ten pixels erased), and `m_step.hidden_weight=1`. The same commands now run with today's; digits with both weights are in [theory](theory.md#what-a-reconstruction-measured-and-what-it-made-up).

- CRPS: of 8 draws, a proper score of the posterior; lower is better.
- Coverage: how often the central 90% interval of the draws holds the hidden truth; 0.9 is calibrated.
- TARP: the same for whole examples (Lemos et al. 2023, arXiv 2302.03026); 0.9 is calibrated.
- PSNR of a draw rewards draws that are too narrow: of two calibrated methods the better one has the higher PSNR, but a
  method that loses spread gains PSNR too. It is dB in the range [-2, 2].
"""
MEASURES = {
    "crps": "CRPS", "coverage_90": "coverage of 90% intervals", "tarp_90": "TARP at 90%", "psnr": "PSNR of a draw, dB",
}  # fmt: skip


def load(name: str, file: str = "results") -> Any:
    """The stored results of an experiment."""
    return json.loads((ROOT / "experiments" / name / f"{file}.json").read_text())


def measures(name: str) -> str:
    """A table per measure: methods down, settings across."""
    rows = load(name)
    tables = (common.table(rows, lambda r, m=metric: common.last(r, m)) for metric in MEASURES)
    return "\n\n".join(f"{title}:\n\n{table}" for title, table in zip(MEASURES.values(), tables, strict=True))


def manifold() -> str:
    """The divergence of the last round, and what it cost."""
    kinds: dict[str, Callable[[Row], float]] = {
        "Sinkhorn divergence of the last round": lambda row: row["rounds"][-1]["sinkhorn"],
        "rounds": lambda row: float(row["rounds"][-1]["round"]),
        "seconds": lambda row: row["rounds"][-1]["seconds"],
    }
    note = "The divergence of a perfect reconstruction is slightly negative ([its definition](differences.md#sinkhorn-divergence))."
    return f"{common.columns(load('manifold'), kinds)}\n\n{note}"


def stops() -> str:
    """How often each rule picks a good round."""
    rows = load("stopping")
    cells = [[f"`{rule}`", f"{stopping.good(rows, rule)} of {len(rows)} runs"] for rule in stopping.RULES]
    return common.markdown(["rule", "within 5% of the best round"], cells)


def others() -> str:
    """Experiments whose tables are long."""
    lines = ["## More", ""]
    for name in ("ablations", "prior", "theory", "cifar10"):
        title = (ROOT / "experiments" / name / "README.md").read_text().splitlines()[0].lstrip("# ")
        lines.append(f"- [{title}](../experiments/{name}/README.md)")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    restored = classical.tables(load("patches", "classical"))
    sections = [
        ("Digits, by the share of erased pixels", "digits.run", measures("digits")),
        ("Photographs, by the share of erased pixels", "patches.run", measures("patches")),
        ("Nine of ten pixels erased", "extreme.run", measures("extreme")),
        ("Manifold", "manifold.run", manifold()),
        ("Photographs against classical restoration", "patches.classical", restored),
        ("Tables, series, volumes", "kinds.run", kinds.tables(load("kinds"))),
        ("Stopping without clean data", "stopping.run", stops()),
    ]
    parts = [HEAD.strip()]
    for title, command, tables in sections:
        link = f"[Tables and figures](../experiments/{command.partition('.')[0]}/README.md)."
        parts += [f"## {title}", f"`python -m experiments.{command}`. {link}", tables]
    return "\n\n".join([*parts, others()]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")
