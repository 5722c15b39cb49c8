"""Stopping without clean data: the round that the rule picks against the best round by the hidden truth.

    python -m experiments.stopping.run [--seeds=3] [--quick] [--processes=2]

Runs go on for all their rounds (patience as long as the run), so that both are known. Digits: best by PSNR of the
reconstructions as a mean squared error, so that 5% mean something; manifold: by Sinkhorn divergence; patches as digits.
"""

from __future__ import annotations

from collections.abc import Callable

from experiments import common, figures
from experiments.common import Job, Row, fields

NAME = "stopping"
RULES = ("held_out", "observation_score", "observation_distance")


def jobs(quick: bool) -> list[Job]:
    def rule(rounds: int) -> tuple[str, ...]:
        return fields(rounds=rounds, stop__rule=RULES[0], stop__patience=rounds)

    small = fields(m_step__batch_size=256, network__features="(256,256,256)", m_step__steps=100 if quick else 400)
    digits = ("--config=digits", *small, *rule(4 if quick else 12), *_metrics("'psnr'", "'sliced_wasserstein'"))
    eager = fields(denoiser__preconditioning="edm", m_step__learning_rate=2e-3)
    patches = (
        "--config=patches:mask50",
        *fields(data__num_examples=1024, start__num_examples=1024, start__rank=32, m_step__steps=40 if quick else 100),
        *fields(m_step__batch_size=32, m_step__augment="()", e_step__steps=8, e_step__batch_size=256),
        *fields(network__channels="(16,32)", eval__num_examples=1024),
        *rule(2 if quick else 6),
        *_metrics("'psnr'", "'sliced_wasserstein'"),
    )
    manifold = ("--config=manifold:quick", *rule(3 if quick else 8), *_metrics("'sinkhorn'", "'sliced_wasserstein'"))
    # Too little training a round: the draws of an under-fitted network drift away from a good start.
    starved = (*manifold, *fields(start__name="mixture", start__components=32, start__rank=1, start__num_examples=4096))
    return [
        Job("as shipped", manifold, "manifold", evaluate=False),
        Job(
            "under-fitted",
            (*starved, *fields(denoiser__preconditioning="edm", m_step__steps=200)),
            "manifold",
            evaluate=False,
        ),
        Job("as shipped", digits, "digits", evaluate=False),
        Job("published denoiser", (*digits, *eager), "digits", evaluate=False),
        Job("as shipped", patches, "patches", evaluate=False),
    ]


def _metrics(*names: str) -> tuple[str, ...]:
    return fields(eval__metrics=f"({','.join(names)},'observation_score','observation_distance')")


def hidden(row: Row) -> Callable[[Row], float]:
    """What the hidden truth says of a round; lower is better. A PSNR becomes its mean squared error."""
    if row["group"] == "manifold":
        # The divergence of a perfect set is a little below 0: 5% of the distance to -0.003, what the best runs reach.
        return lambda r: r["sinkhorn"] + 0.003
    return lambda r: 16.0 * 10 ** (-r["psnr"] / 10)


def verdict(row: Row, rule: str) -> dict[str, float]:
    """The picked and the best round, and how much worse the picked one is, in per cent of the best."""
    rounds = [r for r in row["rounds"] if r["round"] > 0 and rule in r]
    truth = hidden(row)
    picked = min(rounds, key=lambda r: (r[rule], r["round"]))
    best = min(rounds, key=lambda r: (truth(r), r["round"]))
    last = rounds[-1]
    return {
        "picked": picked["round"],
        "best": best["round"],
        "worse": 100 * (truth(picked) / truth(best) - 1),
        "last_worse": 100 * (truth(last) / truth(best) - 1),
    }


def report(rows: list[Row], quick: bool) -> None:
    """A table per rule and one figure."""
    parts = []
    for rule in RULES:
        lines = [
            "| data | run | seed | picked | best | picked is worse by | the last is worse by |",
            "|---|---|---|---|---|---|---|",
        ]
        within = 0
        for row in rows:
            v = verdict(row, rule)
            within += v["worse"] <= 5
            lines.append(
                f"| {row['group']} | {row['method']} | {row['seed']} | {v['picked']} | {v['best']} | {v['worse']:.1f}% | "
                f"{v['last_worse']:.1f}% |"
            )
        table = "\n".join(lines)
        parts.append(f"`{rule}`: within 5% of the best round in {within} of {len(rows)} runs.\n\n{table}")
    parts.append(f"![Rules and truth](stopping{'_quick' if quick else ''}.png)")
    common.write_readme(NAME, "\n\n".join(parts), quick)
    panels = []
    for group, method in dict.fromkeys((row["group"], row["method"]) for row in rows):
        found = [row for row in rows if (row["group"], row["method"]) == (group, method)]

        def relative(value: Callable[[Row], float], found: list[Row] = found) -> list[list[tuple[float, float]]]:
            out = []
            for row in found:
                rounds = [r for r in row["rounds"] if r["round"] > 0]
                low, high = min(map(value, rounds)), max(map(value, rounds))
                out.append([(r["round"], (value(r) - low) / ((high - low) or 1.0)) for r in rounds])
            return out

        lines = {"hidden truth": relative(hidden(found[0]))}
        lines |= {rule.replace("_", " "): relative(lambda r, rule=rule: r[rule]) for rule in RULES}
        panels.append(figures.Panel(lines, f"round ({group}, {method})", "scaled from best (0) to worst (1)"))
    figures.draw(common.ROOT / "experiments" / NAME / f"stopping{'_quick' if quick else ''}.png", panels)


def main() -> None:
    common.main(NAME, __doc__ or "", jobs, report)


if __name__ == "__main__":
    main()
