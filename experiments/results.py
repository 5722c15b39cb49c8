"""Writes docs/results.md from experiments/*/results.json and benchmarks/results/*.json; no number is typed.

python -m experiments.results
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from experiments import common
from experiments.common import ROOT, Row

PAGE = ROOT / "docs" / "results.md"
HEAD = """# Results

Written by `python -m experiments.results` from the stored results. Measured on two shared CPU cores: seconds vary with the
machine. ± is the standard deviation over seeds. Each section names its command, and its folder has every table and figure.
[Performance](performance.md) has the timings, [scaling](scaling.md) the cost at full size.

- CRPS: of 8 draws, a proper score of the posterior; lower is better.
- Coverage: how often the central 90% interval of the draws holds the hidden truth; 0.9 is calibrated.
- TARP: the same for whole examples (Lemos et al. 2023, arXiv 2302.03026); 0.9 is calibrated.
- PSNR of a draw rewards draws that are too narrow: of two calibrated methods the better one has the higher PSNR, but a
  method that loses spread gains PSNR too. It is dB in the range [-2, 2].
"""
MEASURES = {
    "crps": "CRPS",
    "coverage_90": "coverage of 90% intervals",
    "tarp_90": "TARP at 90%",
    "psnr": "PSNR of a draw, dB",
}


def load(name: str) -> Any:
    """The stored results of an experiment."""
    return json.loads((ROOT / "experiments" / name / "results.json").read_text())


def section(title: str, command: str, folder: str, *parts: str) -> str:
    """A heading, the command, where the rest is, and the tables."""
    link = f"[Tables and figures](../experiments/{folder}/README.md)."
    return "\n\n".join([f"## {title}", f"`python -m experiments.{command}`. {link}", *parts])


def measures(rows: list[Row], names: dict[str, str]) -> list[str]:
    """A table per measure: methods down, settings across."""
    return [f"{title}:\n\n{common.table(rows, lambda r, m=name: common.last(r, m))}" for name, title in names.items()]


def rates(name: str, title: str) -> str:
    """Methods against rates of erased pixels."""
    return section(title, f"{name}.run", name, *measures(load(name), MEASURES))


def manifold() -> str:
    """The divergence of the last round, and what it cost."""
    kinds: dict[str, Callable[[Row], float]] = {
        "Sinkhorn divergence of the last round": lambda row: row["rounds"][-1]["sinkhorn"],
        "rounds": lambda row: float(row["rounds"][-1]["round"]),
        "seconds": lambda row: row["rounds"][-1]["seconds"],
    }
    rows = [{**row, "group": what, "value": value(row)} for row in load("manifold") for what, value in kinds.items()]
    note = "The divergence of a perfect reconstruction is slightly negative ([its definition](differences.md#sinkhorn-divergence))."
    return section("Manifold", "manifold.run", "manifold", common.table(rows, lambda row: row["value"]), note)


def extreme() -> str:
    """Nine of ten pixels erased."""
    return section("Nine of ten pixels erased", "extreme.run", "extreme", *measures(load("extreme"), MEASURES))


def stopping() -> str:
    """How often each rule picks a good round."""
    from experiments.stopping.run import RULES, verdict

    rows = load("stopping")
    lines = ["| rule | within 5% of the best round |", "|---|---|"]
    for rule in RULES:
        good = sum(verdict(row, rule)["worse"] <= 5 for row in rows)
        lines.append(f"| `{rule}` | {good} of {len(rows)} runs |")
    return section("Stopping without clean data", "stopping.run", "stopping", "\n".join(lines))


def kinds() -> str:
    """Tables, series and volumes."""
    from experiments.kinds.kinds import table

    return section("Tables, series, volumes", "kinds.kinds", "kinds", table(load("kinds")))


def classical() -> str:
    """Patches against classical restoration."""
    from experiments.patches.classical import tables

    found = json.loads((ROOT / "experiments" / "patches" / "classical.json").read_text())
    return section("Photographs against classical restoration", "patches.classical", "patches", tables(found))


def others() -> str:
    """Experiments whose tables are long."""
    lines = ["## More", ""]
    for name in ("ablations", "prior", "theory", "nonlinear"):
        title = (ROOT / "experiments" / name / "README.md").read_text().splitlines()[0].lstrip("# ")
        lines.append(f"- [{title}](../experiments/{name}/README.md)")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    digits = rates("digits", "Digits, by the share of erased pixels")
    patches = rates("patches", "Photographs, by the share of erased pixels")
    parts = [HEAD.strip(), digits, patches, extreme(), manifold(), classical(), kinds(), stopping(), others()]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")
