"""Seconds to a quality on the manifold (16,384 points, one core): the published settings against the project's best.

    python -m benchmarks.time_to_quality [--quick]

Time counts the fit of the start, M-steps and E-steps, not the measuring; 'seconds' leave compilation out, and
'seconds_with_compile' count it. The quality is the Sinkhorn divergence (2,048 paired points) of the network's draws,
never of the start's. ``--quick`` leaves out the published settings (about ten minutes).
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from benchmarks.common import one_core, write
from configs import manifold
from diffem_jax import checkpoints
from diffem_jax.train import run_em

THRESHOLDS = ("0.41", "0.05", "0.01")


def course(variant: str, rounds: int) -> list[dict[str, float]]:
    """Cumulated seconds and divergence after each round of a fresh run."""
    config = manifold.get_config(variant)
    with config.unlocked():
        config.rounds = rounds
    with tempfile.TemporaryDirectory() as folder:
        workdir = run_em(config, folder, say=lambda line: print(f"  {variant}: {line}", flush=True))
        records = [r for r in workdir.records() if r.get("kind") == "round"]
        start = checkpoints.metadata(workdir.start / "fit")
    total, compiled, out = start["seconds"], start.get("compile_seconds", 0.0), []
    for record in records:
        total += record["e_step_seconds"] + record.get("m_step_seconds", 0.0)
        compiled += record["compile_seconds"]
        out.append(
            {
                "round": record["round"],
                "seconds_with_compile": total,
                "seconds": total - compiled,
                "sinkhorn": record["sinkhorn"],
            }
        )
    return out


def summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    network = rounds[1:]
    result: dict[str, Any] = {}
    for name in THRESHOLDS:
        reached = [r for r in network if r["sinkhorn"] <= float(name)]
        result[name] = reached[0]["seconds"] if reached else None
        result[f"{name}_with_compile"] = reached[0]["seconds_with_compile"] if reached else None
    within = [r for r in network if r["seconds"] <= 300]
    result["at_300s"] = within[-1]["sinkhorn"] if within else None
    result["rounds"] = rounds
    return result


def main() -> None:
    one_core()
    settings = {"best": summary(course("best", 11))}
    if "--quick" not in sys.argv:
        settings["published"] = summary(course("published", 7))
    write("time_to_quality", {"manifold": settings})


if __name__ == "__main__":
    main()
