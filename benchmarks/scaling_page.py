"""docs/scaling.md from benchmarks/results/scaling.json and scaling_tpu.json: hours and dollars a round, with what is assumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
COMPUTE_SHARE, MEMORY_SHARE = 0.5, 0.8
"""Of the peak arithmetic and of the peak memory bandwidth: assumed."""
CHIPS = 8
"""Of the TPU v5e that ``--tpu`` compiles for."""


class Machine(NamedTuple):
    """Peak FLOP/s by dtype, memory bandwidth and all-reduce bandwidth a chip in bytes/s, and dollars a chip-hour."""

    name: str
    chips: int
    peak: dict[str, float]
    memory: float
    link: float
    dollars: float


H100 = ({"float32": 494e12, "bfloat16": 989e12}, 3.35e12, 450e9, 3.0)
V5E = ({"float32": 197e12, "bfloat16": 197e12}, 819e9, 200e9, 1.2)
MACHINES = (
    Machine("1 GPU (H100)", 1, *H100),
    Machine("8 GPUs (H100)", 8, *H100),
    Machine("TPU v5e-8", 8, *V5E),
    Machine("TPU v5e-64 (slice of a pod)", 64, *V5E),
)


def batch(row: dict[str, Any], part: str) -> int:
    """Examples of one evaluation of the E-step, or of one update, over all chips."""
    return row["e_batch"] if part == "evaluation" else row["batch"]


def lowered(row: dict[str, Any], part: str, what: str, examples: float) -> float:
    """FLOPs or bytes of the lowered program for so many examples."""
    return row[part][what] * examples + row[part][f"fixed_{what}"]


def fused(tpu: dict[str, Any], counts: dict[str, Any], case: str, part: str) -> tuple[float, str]:
    """Bytes that really move over bytes before fusion; of the case itself where it was compiled, else of the nearest."""
    if not tpu:
        return 1.0, "nothing"
    name, dtype = case.split()
    candidates = [f"{n} {d} {part}" for n in (name, *(k.split()[0] for k in counts)) for d in (dtype, "float32")]
    found = next(key for key in [*candidates, *tpu] if key in tpu)
    compiled_case, _, kind = found.rpartition(" ")
    row = counts[compiled_case]
    return tpu[found]["bytes"] / lowered(row, kind, "bytes", batch(row, kind) / CHIPS), found


def seconds(machine: Machine, row: dict[str, Any], part: str, ratio: float, dtype: str) -> dict[str, float]:
    """Seconds of one evaluation of a batch, or of one update, on all chips together."""
    local = max(1.0, batch(row, part) / machine.chips)
    flops = row[part]["flops"] * local
    moved = ratio * lowered(row, part, "bytes", local)
    reduced = 0.0
    if part == "update" and machine.chips > 1:
        reduced = 2 * (machine.chips - 1) / machine.chips * 4 * row["parameters"] / machine.link
    arithmetic, memory = flops / (COMPUTE_SHARE * machine.peak[dtype]), moved / (MEMORY_SHARE * machine.memory)
    return {
        "arithmetic": arithmetic,
        "memory": memory,
        "all_reduce": reduced,
        "total": max(arithmetic, memory) + reduced,
    }


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(r) + " |" for r in rows),
        "",
    ]


def work_rows(counts: dict[str, Any], tpu: dict[str, Any]) -> list[list[str]]:
    out = []
    for case, row in counts.items():
        evaluation, update = row["evaluation"], row["update"]
        e_flops = evaluation["flops"] * row["evaluations"] * row["examples"]
        m_flops = update["flops"] * row["batch"] * row["updates"]
        ratios = [fused(tpu, counts, case, part)[0] for part in ("evaluation", "update")]
        out.append(
            [
                case,
                f"{row['parameters'] / 1e6:.1f} M",
                f"{evaluation['flops'] / 1e9:.1f}",
                f"{update['flops'] / 1e9:.1f}",
                f"{ratios[0] * evaluation['bytes'] / 1e6:.0f}",
                f"{ratios[1] * update['bytes'] / 1e6:.0f}",
                f"{4 * row['parameters'] / 1e6:.0f}",
                f"{e_flops / 1e18:.3f} + {m_flops / 1e18:.3f}",
            ]
        )
    return out


def price_rows(counts: dict[str, Any], tpu: dict[str, Any]) -> list[list[str]]:
    out = []
    for case, row in counts.items():
        dtype = case.split()[1]
        for machine in MACHINES:
            parts = {}
            for part in ("evaluation", "update"):
                parts[part] = seconds(machine, row, part, fused(tpu, counts, case, part)[0], dtype)
            batches = -(-row["examples"] // row["e_batch"])
            e = parts["evaluation"]["total"] * row["evaluations"] * batches / 3600
            m = parts["update"]["total"] * row["updates"] / 3600
            dollars = (e + m) * machine.chips * machine.dollars
            update = parts["update"]
            bound = "memory" if update["memory"] > update["arithmetic"] else "arithmetic"
            out.append(
                [
                    case,
                    machine.name,
                    f"{1e3 * update['total']:.1f} ({bound}; all-reduce {1e3 * update['all_reduce']:.2f})",
                    f"{e:.2f} + {m:.2f} = {e + m:.2f}",
                    f"{dollars:,.0f}",
                    f"{(e + m) * row['rounds']:,.0f} h, {dollars * row['rounds']:,.0f}",
                ]
            )
    return out


def tpu_rows(counts: dict[str, Any], tpu: dict[str, Any]) -> list[list[str]]:
    out = []
    for key, found in tpu.items():
        case, _, part = key.rpartition(" ")
        row = counts[case]
        flops, moved = (lowered(row, part, what, batch(row, part) / CHIPS) for what in ("flops", "bytes"))
        out.append(
            [
                key,
                f"{found['flops'] / 1e12:.3f} ({found['flops'] / flops - 1:+.1%})",
                f"{found['bytes'] / 1e9:.1f} ({found['bytes'] / moved:.2f})",
                f"{found['all_reduce_bytes'] / 1e6:.1f}",
                f"{found['memory_bytes'] / 2**30:.1f}",
            ]
        )
    return out


def write_page() -> None:
    """Writes the page from what was counted and measured."""
    result = json.loads((RESULTS / "scaling.json").read_text())
    path = RESULTS / "scaling_tpu.json"
    tpu = json.loads(path.read_text()) if path.exists() else {}
    counts, check = result["count"], result["check"]
    missing = [f"{c} {part}" for c in counts for part in ("evaluation", "update") if f"{c} {part}" not in tpu]
    head = ["config", "parameters", "GFLOP an evaluation", "GFLOP an update", "MB an evaluation", "MB an update"]
    lines = [
        "# What a round costs at full size",
        "",
        "Written by `python -m benchmarks.scaling` from benchmarks/results; no accelerator was there: hours and dollars are",
        "a model, whose counts are XLA's and whose assumptions are below.",
        "",
        "## Work",
        "",
        "Per example. FLOPs are those of the lowered program; bytes are those of the program compiled for TPU v5e, after its",
        "fusions. An update all-reduces its gradients once: 4 bytes a parameter. A round is E-step + M-step.",
        "",
        *table([*head, "all-reduce, MB", "EFLOP a round"], work_rows(counts, tpu)),
        "## Time and money",
        "",
        "Seconds = max(FLOPs / (share x peak), bytes / (share x bandwidth)) + all-reduce, nothing overlapping the all-reduce.",
        "Compilation, start, measures and reading from disk are left out.",
        "",
        *table(
            ["config", "machine", "ms an update", "hours a round, E + M", "dollars a round", "all rounds, dollars"],
            price_rows(counts, tpu),
        ),
        "Assumed:",
        "",
        f"- {COMPUTE_SHARE:.0%} of the peak arithmetic, {MEMORY_SHARE:.0%} of the peak memory bandwidth. Neither was measured here.",
        "- H100 SXM: 989 TFLOP/s in bfloat16, 494 in TF32, in which JAX multiplies float32 by default; 3.35 TB/s; NVLink 450 GB/s",
        "  a direction (NVIDIA's data sheet). It moves as many bytes as the program compiled for the TPU.",
        "- TPU v5e: 197 TFLOP/s in bfloat16, in which JAX multiplies float32 by default too; 819 GB/s; interconnect 400 GB/s both",
        "  directions together (cloud.google.com/tpu/docs/v5e).",
        "- Prices, which change: 3.00 dollars an H100-hour (on-demand offers of early 2026 lay between 2 and 4, as price",
        "  comparisons of that time tell), 1.20 dollars a v5e chip-hour (Google Cloud's on-demand list price as known in 2025).",
        "- 64 chips keep the batch of the config, so that each has a few examples; parameters and optimiser then weigh in its bytes.",
    ]
    if missing:
        lines += [
            f"- Compiled for the TPU: {', '.join(tpu) or 'nothing'}. The bytes of the {len(missing)} other programs are taken to shrink",
            "  by fusion as much as those of the nearest of these.",
        ]
    lines += [
        "",
        "The paper reports 1.19 hours a round for CelebA, on hardware that it does not name.",
        "",
        "## The program compiled for TPU v5e-8",
        "",
        "Ahead of time, without a TPU (`--tpu`), at the config's batch sizes; a chip of eight. In brackets: FLOPs against the",
        "lowered program's, bytes as a share of the lowered program's. A v5e chip has 16 GiB.",
        "",
        *table(["what", "TFLOP", "GB moved", "all-reduce, MB", "memory, GiB"], tpu_rows(counts, tpu)),
        "## Checked on this machine",
        "",
        f"The same counts against {check['clock']} on one core: seconds = a FLOPs + b bytes, a and b from the networks "
        f"{' and '.join(check['calibrated_on'])} (U-Nets of these widths on 16x16x3, one block a level, batch 16, an E-step of",
        "4 steps, an M-step of 4 updates), the others predicted.",
        f"The largest error is {check['worst']:.0%}.",
        "",
        *table(
            ["part", "network", "predicted, s", "measured, s", "error"],
            [
                [r["part"], r["network"], f"{r['predicted']:.3f}", f"{r['measured']:.3f}", f"{r['error']:+.1%}"]
                for r in check["rows"]
            ],
        ),
        *(
            f"{part}: {check[part]['seconds_a_gflop']:.4f} s a GFLOP, {check[part]['seconds_a_gbyte']:.4f} s a GB before fusion."
            + ("  " if part == "e_step" else "")
            for part in ("e_step", "m_step")
        ),
    ]
    PAGE.write_text("\n".join(lines).rstrip() + "\n")
    print(f"wrote {PAGE.name}")
