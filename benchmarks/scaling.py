"""A cost model of a round of the CIFAR-10 and CelebA configs at full size: writes docs/scaling.md.

    python -m benchmarks.scaling            # count, write the page
    python -m benchmarks.scaling --page     # write the page from the counts that are there

FLOPs and bytes are XLA's own counts of the lowered program of one network evaluation and of one update. How long an
accelerator takes for them is a model: no accelerator was there.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.common import RESULTS, write
from configs import celeba, cifar10
from diffem_jax import em
from diffem_jax.build import methods
from diffem_jax.run.start import standard_normal

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
CONFIGS = {"cifar10:mask75": (cifar10, (32, 32, 3)), "celeba:mask50": (celeba, (64, 64, 3))}
COMPUTE_SHARE, MEMORY_SHARE = 0.5, 0.8
"""Of the peak arithmetic and of the peak memory bandwidth: assumed."""
FUSED_SHARE = 0.19
"""Bytes that move after fusion, as a share of the lowered program's: of an evaluation of cifar10:mask75 in float32, which XLA
compiled for TPU v5e without a TPU. Taken for every program."""


class Chip(NamedTuple):
    """Peak FLOP/s by dtype, memory bandwidth and all-reduce bandwidth in bytes/s."""

    peak: dict[str, float]
    memory: float
    link: float


H100 = Chip({"float32": 494e12, "bfloat16": 989e12}, 3.35e12, 450e9)
V5E = Chip({"float32": 197e12, "bfloat16": 197e12}, 819e9, 200e9)
MACHINES = {"1 H100": (1, H100), "8 H100": (8, H100), "v5e-8": (8, V5E), "v5e-64": (64, V5E)}


def programs(config: Any, shape: tuple[int, ...]) -> dict[str, tuple[Callable[..., Any], Callable[[int], Any]]]:
    """An evaluation of a batch and an update, each with batch size -> the shapes of its arguments."""
    setup = methods.make_setup(config, shape)
    model = methods.make_model(setup, standard_normal(shape))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda: em.make_state(model.denoiser.init(jax.random.key(0)), setup.optimizer))

    def evaluate(key: Any, params: Any, observations: Any, x: Any) -> Any:
        return jax.vmap(lambda o, one: model.bind(params, o)(one, jnp.float32(0.5)))(observations, x)

    def images(*lead: int) -> Any:
        return jax.ShapeDtypeStruct((*lead, *shape), jnp.float32)

    def evaluation_shapes(batch: int) -> Any:
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
        return key, state.params, jax.eval_shape(jax.vmap(setup.corruption.sample), keys, images(batch)), images(batch)

    def update_shapes(batch: int) -> Any:
        return key, state, images(1, batch), jax.ShapeDtypeStruct((1, batch), jnp.int32)

    update = em.make_m_step(model.loss, setup.optimizer, ema_decay=config.m_step.ema_decay)
    return {"evaluation": (evaluate, evaluation_shapes), "update": (update, update_shapes)}


def per_example(function: Callable[..., Any], shapes: Callable[[int], Any]) -> dict[str, float]:
    """FLOPs and bytes per example, and those that a batch costs whatever its size (parameters, optimiser)."""
    two, four = (jax.jit(function).lower(*shapes(batch)).cost_analysis() for batch in (2, 4))
    found = {}
    for name, key in (("flops", "flops"), ("bytes", "bytes accessed")):
        found[name] = (four[key] - two[key]) / 2
        found[f"fixed_{name}"] = two[key] - 2 * found[name]
    return found


def count() -> dict[str, Any]:
    """What a round of each config computes."""
    out: dict[str, Any] = {}
    for name, (module, shape) in CONFIGS.items():
        for dtype in ("float32", "bfloat16"):
            config: Any = module.get_config(name.partition(":")[2])
            with config.unlocked():
                config.network.update(dtype=dtype, native_gradient=True)  # what runs on accelerators
            work = programs(config, shape)
            out[f"{name} {dtype}"] = {
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(work["evaluation"][1](1)[1])),
                "examples": module.EXAMPLES,
                "evaluations": config.e_step.steps,
                "updates": config.m_step.steps,
                "batch": config.m_step.batch_size,
                "e_batch": config.e_step.batch_size,
                **{part: per_example(*program) for part, program in work.items()},
            }
    return out


def hours(chips: int, chip: Chip, row: dict[str, Any], dtype: str) -> str:
    """Hours of the E-step and of the M-step of a round."""

    def seconds(part: str, batch: float) -> float:
        arithmetic = row[part]["flops"] * batch / (COMPUTE_SHARE * chip.peak[dtype])
        moved = FUSED_SHARE * (row[part]["bytes"] * batch + row[part]["fixed_bytes"])
        return max(arithmetic, moved / (MEMORY_SHARE * chip.memory))

    reduced = 2 * (chips - 1) / chips * 4 * row["parameters"] / chip.link
    evaluations = row["evaluations"] * -(-row["examples"] // row["e_batch"])
    e = seconds("evaluation", max(1.0, row["e_batch"] / chips)) * evaluations
    m = (seconds("update", max(1.0, row["batch"] / chips)) + reduced) * row["updates"]
    return f"{e / 3600:.2f} + {m / 3600:.2f}"


def write_page() -> None:
    """Writes the page from the counts."""
    counts = json.loads((RESULTS / "scaling.json").read_text())["count"]
    lines = [
        "# What a round costs at full size",
        "",
        "Written by `python -m benchmarks.scaling`. No accelerator was there: hours are a model, of XLA's counts and the assumptions",
        "below. A round is E-step + M-step; compilation, start, measures and reading from disk are left out.",
        "",
        f"| config | parameters | GFLOP per evaluation, per update | EFLOP per round | {' | '.join(MACHINES)} |",
        "|" + "---|" * (4 + len(MACHINES)),
    ]
    for case, row in counts.items():
        e, m = row["evaluation"]["flops"], row["update"]["flops"]
        work = f"{e * row['evaluations'] * row['examples'] / 1e18:.2f} + {m * row['batch'] * row['updates'] / 1e18:.2f}"
        cells = [case, f"{row['parameters'] / 1e6:.1f} M", f"{e / 1e9:.0f}, {m / 1e9:.0f}", work]
        cells += [hours(*machine, row, case.split()[1]) for machine in MACHINES.values()]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Seconds = max(FLOPs / (share x peak), bytes / (share x bandwidth)) + all-reduce of the gradients, 4 bytes per parameter.",
        f"Assumed: {COMPUTE_SHARE:.0%} of the peak arithmetic, {MEMORY_SHARE:.0%} of the peak memory bandwidth, and {FUSED_SHARE:.0%} of the lowered",
        "program's bytes after fusion (so in one program that XLA compiled for TPU v5e). H100 SXM: 989 TFLOP/s in bfloat16, 494 in TF32,",
        "3.35 TB/s, NVLink 450 GB/s per direction. TPU v5e: 197 TFLOP/s, 819 GB/s, interconnect 400 GB/s both directions together.",
        "The last four columns are hours per round; 64 chips keep the config's batch, so each has a few examples.",
        "",
        "The paper reports 1.19 hours per round for CelebA, on hardware that it does not name.",
    ]
    PAGE.write_text("\n".join(lines) + "\n")
    print(f"wrote {PAGE.name}")


if __name__ == "__main__":
    if "--page" not in sys.argv:
        write("scaling", {"count": count()})
    write_page()
