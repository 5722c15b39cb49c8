"""The round to keep, chosen without clean data: the one whose reconstructions predict the observations best.

After each round the reconstructions are corrupted afresh under the observations' operators and compared with the
observations (``config.stop.rule`` names the measure; lower is better for all). EM lowers the distance between these two
laws as long as the network fits (arXiv 2510.12691), and it rises again where draws collapse or drift.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ml_collections import ConfigDict

Records = list[dict[str, Any]]


class Decision(NamedTuple):
    """Attributes: ``picked``, the best round so far (None before the first), its value, and whether the run may end."""

    picked: int | None
    value: float
    end: bool


def decide(records: Records, rule: str, patience: int) -> Decision:
    """The best round by ``rule`` among those of the network, and whether ``patience`` rounds brought no better one.

    Round 0 is the start's own draw and has no network to keep; it is never picked.

    Args:
        records: of metrics.jsonl.
        rule: the measure's name.
        patience: rounds without a new best after which a run ends.
    """
    rounds = [r for r in records if r.get("kind") == "round" and r["round"] > 0 and rule in r]
    # A measure that is not finite recommends nothing, and would win every comparison.
    values = {r["round"]: r[rule] for r in rounds if math.isfinite(r[rule])}
    if not values:
        return Decision(None, float("inf"), False)
    best = min(values, key=lambda number: (values[number], number))
    return Decision(best, values[best], max(r["round"] for r in rounds) - best >= patience)


def of_run(records: Records, config: ConfigDict) -> Decision:
    """``decide`` by the config's rule; nothing is picked where it has none."""
    if config.stop.rule == "none":
        return Decision(None, float("inf"), False)
    return decide(records, config.stop.rule, config.stop.patience)


def stop_record(records: Records, config: ConfigDict) -> dict[str, Any] | None:
    """What metrics.jsonl keeps of the decision, as of the last round; None without a rule."""
    decision = of_run(records, config)
    if decision.picked is None:
        return None
    rule, patience = config.stop.rule, config.stop.patience
    reason = f"no better {rule} in {patience} rounds" if decision.end else "all rounds are done"
    last = max(r["round"] for r in records if r.get("kind") == "round")
    return {
        "kind": "stop",
        "round": last,
        "picked": decision.picked,
        "rule": rule,
        rule: decision.value,
        "reason": f"{reason}; kept round {decision.picked}",
    }


def picked_round(records: Records) -> int | None:
    """The round that the last stop record picked, if there is one."""
    stops = [r for r in records if r.get("kind") == "stop" and "picked" in r]
    return max(stops, key=lambda r: r["round"])["picked"] if stops else None
