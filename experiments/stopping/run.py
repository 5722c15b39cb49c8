"""Stopping without clean data: the round that the rule picks against the best round by the hidden truth.

    python -m experiments.stopping.run [--seeds=3] [--quick] [--processes=2]

Runs go on for all their rounds (patience as long as the run), so that both are known. Digits: best by PSNR of the
reconstructions as a mean squared error, so that 5% mean something; manifold: by Sinkhorn divergence; patches as digits.
"""

from collections.abc import Callable
from pathlib import Path

from experiments import common, figures
from experiments.common import Job, Row, fields

RULES = ("held_out", "observation_score", "observation_distance")


def flags(config: str, rounds: int, metric: str, **values: object) -> tuple[str, ...]:
    """A run of so many rounds with the measures that are compared."""
    measures = f"('{metric}','sliced_wasserstein','observation_score','observation_distance')"
    rule = fields(rounds=rounds, stop__rule="held_out", stop__patience=rounds)
    return (f"--config={config}", *fields(**values), *rule, *fields(eval__metrics=measures))


DIGITS = flags("digits", 12, "psnr", m_step__batch_size=256, network__features="(256,256,256)", m_step__steps=400)
MANIFOLD = flags("manifold:quick", 8, "sinkhorn")
# Too little training a round: the draws of an under-fitted network drift away from a good start.
STARVED = (
    *fields(start__name="mixture", start__components=32, start__rank=1, start__num_examples=4096),
    *fields(denoiser__preconditioning="edm", m_step__steps=200),
)
PATCHES = (
    *flags("patches:mask50", 6, "psnr", data__num_examples=1024, start__num_examples=1024, start__rank=32),
    *fields(m_step__steps=100, m_step__batch_size=32, m_step__augment="()", e_step__steps=8, e_step__batch_size=256),
    *fields(network__channels="(16,32)", eval__num_examples=1024),
)
EAGER = fields(denoiser__preconditioning="edm", m_step__learning_rate=2e-3)
JOBS = [
    Job("as shipped", MANIFOLD, "manifold", evaluate=False),
    Job("under-fitted", (*MANIFOLD, *STARVED), "manifold", evaluate=False),
    Job("as shipped", DIGITS, "digits", evaluate=False),
    Job("published denoiser", (*DIGITS, *EAGER), "digits", evaluate=False),
    Job("as shipped", PATCHES, "patches", evaluate=False),
]


def hidden(row: Row) -> Callable[[Row], float]:
    """What the hidden truth says of a round; lower is better. A PSNR becomes its mean squared error."""
    if row["group"] == "manifold":
        # The divergence of a perfect set is a little below 0: 5% of the distance to -0.003, what the best runs reach.
        return lambda r: r["sinkhorn"] + 0.003
    return lambda r: 16.0 * 10 ** (-r["psnr"] / 10)


def verdict(row: Row, rule: str) -> dict[str, float]:
    """The picked and the best round, and how much worse the picked and the last one are, in per cent of the best."""
    rounds = [r for r in row["rounds"] if r["round"] > 0 and rule in r]
    truth = hidden(row)
    picked = min(rounds, key=lambda r: (r[rule], r["round"]))
    best = min(rounds, key=lambda r: (truth(r), r["round"]))
    worse, last_worse = (100 * (truth(r) / truth(best) - 1) for r in (picked, rounds[-1]))
    return {"picked": picked["round"], "best": best["round"], "worse": worse, "last_worse": last_worse}


def good(rows: list[Row], rule: str) -> int:
    """How many runs the rule ends within 5% of the best round."""
    return sum(verdict(row, rule)["worse"] <= 5 for row in rows)


def tables(rows: list[Row]) -> str:
    """A table per rule."""
    parts = []
    for rule in RULES:
        parts.append(f"`{rule}`: within 5% of the best round in {good(rows, rule)} of {len(rows)} runs.")
        cells = []
        for row in rows:
            picked, best, *worse = verdict(row, rule).values()
            cells.append([row["group"], row["method"], row["seed"], picked, best, *(f"{s:.1f}%" for s in worse)])
        head = ["data", "run", "seed", "picked", "best", "picked is worse by", "the last is worse by"]
        parts.append(common.markdown(head, cells))
    return "\n\n".join([*parts, "![Rules and truth](stopping.png)"])


def draw(rows: list[Row], place: Path) -> None:
    """What each rule and the truth say of every round, from their best to their worst."""

    def scaled(found: list[Row], value: Callable[[Row], float]) -> list[list[tuple[float, float]]]:
        out = []
        for row in found:
            rounds = [r for r in row["rounds"] if r["round"] > 0]
            low, high = min(map(value, rounds)), max(map(value, rounds))
            out.append([(r["round"], (value(r) - low) / ((high - low) or 1.0)) for r in rounds])
        return out

    panels = []
    for group, method in dict.fromkeys((row["group"], row["method"]) for row in rows):
        found = [row for row in rows if (row["group"], row["method"]) == (group, method)]
        lines = {"hidden truth": scaled(found, hidden(found[0]))}
        lines |= {rule.replace("_", " "): scaled(found, lambda r, rule=rule: r[rule]) for rule in RULES}
        panels.append(figures.Panel(lines, f"round ({group}, {method})", "scaled from best (0) to worst (1)"))
    figures.draw(place / "stopping.png", panels)


if __name__ == "__main__":
    common.main("stopping", __doc__ or "", JOBS, tables, draw)
