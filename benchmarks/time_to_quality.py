"""Seconds to a quality on one core: the published settings against the project's best.

    python -m benchmarks.time_to_quality [--quick]

Time counts the fit of the start, M-steps and E-steps, not the measuring; 'seconds' leave compilation out.

Manifold (16,384 points): the quality is the Sinkhorn divergence (2,048 paired points) of the network's draws, never of
the start's. Digits, pixels erased with rate 0.5 and 0.75: PSNR and classifier accuracy of the draws; the published
settings run ``DIGITS_ROUNDS`` rounds, and what they reach is what the best settings have to reach.
``--quick`` leaves out the published settings on the manifold (about ten minutes).
"""

import sys
import tempfile
from typing import Any

from benchmarks.common import one_core, write
from configs import digits, manifold
from diffem_jax.run.train import run_em
from diffem_jax.storage import checkpoints

THRESHOLDS = ("0.41", "0.05", "0.01")
DIGITS_ROUNDS = 5


def course(config: Any, rounds: int, label: str) -> list[dict[str, float]]:
    """Cumulated seconds and the metrics after each round of a fresh run."""
    with config.unlocked():
        config.rounds = rounds
    with tempfile.TemporaryDirectory() as folder:
        workdir = run_em(config, folder, say=lambda line: print(f"  {label}: {line}", flush=True))
        records = [r for r in workdir.records() if r.get("kind") == "round"]
        start = checkpoints.metadata(workdir.start / "fit")
    total, compiled, out = start["seconds"], start.get("compile_seconds", 0.0), []
    for record in records:
        total += record["e_step_seconds"] + record.get("m_step_seconds", 0.0)
        compiled += record["compile_seconds"]
        times = {"round": record["round"], "seconds": total - compiled, "seconds_with_compile": total}
        out.append(times | {name: record[name] for name in config.eval.metrics})
    return out


def manifold_summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """When each divergence is reached, and what five minutes reach."""
    network, result = rounds[1:], {}
    for name in THRESHOLDS:
        first = next((r for r in network if r["sinkhorn"] <= float(name)), {})
        result |= {name: first.get("seconds"), f"{name}_with_compile": first.get("seconds_with_compile")}
    within = [r["sinkhorn"] for r in network if r["seconds"] <= 300]
    return {**result, "at_300s": within[-1] if within else None, "rounds": rounds}


def digits_summary(published: list[dict[str, float]], best: list[dict[str, float]]) -> dict[str, Any]:
    """When the best settings stand where the published ones end, and how far they are when those end."""
    end = published[-1]
    reached = [r["seconds"] for r in best[1:] if r["psnr"] >= end["psnr"] and r["accuracy"] >= end["accuracy"]]
    within = [r["psnr"] for r in best[1:] if r["seconds"] <= end["seconds"]]
    first = reached[0] if reached else None
    found = {"published_seconds": end["seconds"], "best_seconds_to_published": first}
    found |= {"share_of_published_time": first and first / end["seconds"]}
    found |= {"gain_at_equal_time_db": within[-1] - end["psnr"] if within else None}
    return {**found, "published_rounds": published, "best_rounds": best}


def main() -> None:
    one_core()
    settings = {"best": manifold_summary(course(manifold.get_config("best"), 11, "best"))}
    if "--quick" not in sys.argv:
        settings["published"] = manifold_summary(course(manifold.get_config("published"), 7, "published"))
    result: dict[str, Any] = {"manifold": settings, "digits": {}}
    for name in ("mask50", "mask75"):
        published = course(digits.get_config(f"{name}_paper"), DIGITS_ROUNDS, f"{name} published")
        result["digits"][name] = digits_summary(published, course(digits.get_config(name), 8, f"{name} best"))
    write("time_to_quality", result)


if __name__ == "__main__":
    main()
