"""A cost model of a round at full size, CIFAR-10, CelebA and a network for ImageNet-64: writes docs/scaling.md.

    python -m benchmarks.scaling [CASE ...]   # count all cases, or those named; write the page
    python -m benchmarks.scaling --page       # write the page from the counts that are there

FLOPs and bytes are XLA's own counts of the lowered program of one network evaluation and of one update, memory is what
differentiation keeps. How long an accelerator takes for them is a model, whose shares one card showed.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.common import RESULTS, markdown, write
from configs import celeba, cifar10
from diffem_jax import em
from diffem_jax.build import methods
from diffem_jax.run.start import standard_normal

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"


def imagenet64() -> Any:
    """CelebA's settings with the widths of the 64 x 64 network of Dhariwal and Nichol (2021, arXiv 2105.05233)."""
    c = celeba.get_config("mask50_paper")
    with c.unlocked():
        c.network.channels, c.network.heads, c.network.embedding = (192, 384, 576, 768), ((1, 6), (2, 9), (3, 12)), 768
        c.m_step.batch_size, c.m_step.steps, c.e_step.batch_size = 1024, 50_000, 1024
    return c


CONFIGS: dict[str, tuple[Callable[[], Any], tuple[int, ...], int]] = {
    "cifar10:mask75_paper": (lambda: cifar10.get_config("mask75_paper"), (32, 32, 3), cifar10.EXAMPLES),
    "celeba:mask50_paper": (lambda: celeba.get_config("mask50_paper"), (64, 64, 3), celeba.EXAMPLES),
    "imagenet64": (imagenet64, (64, 64, 3), 1_281_167),
}
COMPUTE_SHARE = {"evaluation": 0.35, "update": 0.30}
"""Of the peak arithmetic: measured on one H200 (docs/accelerators.md) with 2 blocks per level in bfloat16. Taken for every case."""
MEMORY_SHARE, USABLE = 0.8, 0.9
"""Of the peak memory bandwidth, and of a chip's memory: assumed."""
KEPT_SHARE = {"bfloat16": 0.61, "float32": 0.77}
"""Temporaries of that card's updates as a share of what differentiation keeps (43.4 and 64.0 MB per example). Taken for every case."""
STATE_BYTES, WORK_BYTES = 16, 8
"""Per parameter: itself, its average and two moments of Adam; and, in an update, its gradient and a gathered or converted copy."""
FUSED_SHARE = 0.19
"""Bytes that move after fusion, as a share of the lowered program's: of an evaluation of cifar10:mask75_paper in float32, which XLA
compiled for TPU v5e without a TPU. Taken for every program."""


class Chip(NamedTuple):
    """Peak FLOP/s by dtype, memory bandwidth and all-reduce bandwidth in bytes/s, and memory in bytes."""

    peak: dict[str, float]
    memory: float
    link: float
    capacity: float


H100 = Chip({"float32": 494e12, "bfloat16": 989e12}, 3.35e12, 450e9, 80e9)
V5E = Chip({"float32": 197e12, "bfloat16": 197e12}, 819e9, 200e9, 16e9)
MACHINES = {"1 H100": (1, H100), "8 H100": (8, H100), "v5e-8": (8, V5E), "v5e-64": (64, V5E)}


def programs(config: Any, shape: tuple[int, ...]) -> dict[str, tuple[Callable[..., Any], Callable[[int], Any]]]:
    """An evaluation of a batch, an update, and what its gradient keeps, each with batch size -> the shapes of its arguments."""
    setup = methods.make_setup(config, shape)
    model = methods.make_model(setup, standard_normal(shape))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda: em.make_state(model.denoiser.init(jax.random.key(0)), setup.optimizer))

    def evaluate(key: Any, params: Any, observations: Any, x: Any) -> Any:
        return jax.vmap(lambda o, one: model.bind(params, o)(one, jnp.float32(0.5)))(observations, x)

    def images(*lead: int) -> Any:
        return jax.ShapeDtypeStruct((*lead, *shape), jnp.float32)

    def kept(params: Any, keys: Any, x: Any) -> Any:
        return jax.vjp(lambda p: jnp.mean(jax.vmap(model.loss, (None, 0, 0))(p, keys, x)), params)[1]

    def kept_shapes(batch: int) -> Any:
        return state.params, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch)), images(batch)

    def evaluation_shapes(batch: int) -> Any:
        params, keys, x = kept_shapes(batch)
        return key, params, jax.eval_shape(jax.vmap(setup.corruption.sample), keys, x), x

    def update_shapes(batch: int) -> Any:
        return key, state, images(1, batch), jax.ShapeDtypeStruct((1, batch), jnp.int32)

    update = em.make_m_step(model.loss, setup.optimizer, ema_decay=config.m_step.ema_decay)
    return {"evaluation": (evaluate, evaluation_shapes), "update": (update, update_shapes), "kept": (kept, kept_shapes)}


def per_example(function: Callable[..., Any], shapes: Callable[[int], Any]) -> dict[str, float]:
    """FLOPs and bytes per example, and those that a batch costs whatever its size (parameters, optimiser)."""

    def lowered(batch: int) -> dict[str, float]:
        found: Any = jax.jit(function).lower(*shapes(batch)).cost_analysis()
        return {"flops": found["flops"], "bytes": found["bytes accessed"]}

    two, four = lowered(2), lowered(4)
    each = {name: (four[name] - two[name]) / 2 for name in two}
    return {**each, **{f"fixed_{name}": two[name] - 2 * each[name] for name in two}}


def kept_per_example(function: Callable[..., Any], shapes: Callable[[int], Any]) -> float:
    """Bytes that the gradient of a batch keeps of its forward pass, per example."""

    def kept(batch: int) -> int:
        leaves = jax.tree.leaves(jax.eval_shape(function, *shapes(batch)))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    return (kept(4) - kept(2)) / 2


def count(case: str, dtype: str) -> dict[str, Any]:
    """What a round of a case computes."""
    make, shape, examples = CONFIGS[case]
    config = make()
    with config.unlocked():
        config.network.dtype, config.network.native_gradient = dtype, True  # what runs on accelerators
    work, e, m = programs(config, shape), config.e_step, config.m_step
    parameters = sum(leaf.size for leaf in jax.tree.leaves(work["kept"][1](1)[0]))
    sizes = {"evaluations": e.steps, "updates": m.steps, "batch": m.batch_size, "e_batch": e.batch_size}
    costs = {part: per_example(*work[part]) for part in ("evaluation", "update")}
    return {"parameters": parameters, "examples": examples, **sizes, **costs, "kept": kept_per_example(*work["kept"])}


def hours(chips: int, chip: Chip, row: dict[str, Any], dtype: str) -> str:
    """Hours of the E-step and of the M-step of a round."""

    def seconds(part: str, batch: float) -> float:
        arithmetic = row[part]["flops"] * batch / (COMPUTE_SHARE[part] * chip.peak[dtype])
        moved = FUSED_SHARE * (row[part]["bytes"] * batch + row[part]["fixed_bytes"])
        return max(arithmetic, moved / (MEMORY_SHARE * chip.memory))

    reduced = 2 * (chips - 1) / chips * 4 * row["parameters"] / chip.link
    evaluations = row["evaluations"] * -(-row["examples"] // row["e_batch"])
    e = seconds("evaluation", max(1.0, row["e_batch"] / chips)) * evaluations
    m = (seconds("update", max(1.0, row["batch"] / chips)) + reduced) * row["updates"]
    return f"{e / 3600:.2f} + {m / 3600:.2f}"


def at_once(chips: int, chip: Chip, row: dict[str, Any], dtype: str) -> str:
    """How many examples of an update fit a chip at once beside a state that is cut over so many chips."""
    free = USABLE * chip.capacity - row["parameters"] * (STATE_BYTES / chips + WORK_BYTES)
    return f"{max(free, 0) / (KEPT_SHARE[dtype] * row['kept']):,.0f}"


def write_page() -> None:
    """Writes the page from the counts."""
    counts = json.loads((RESULTS / "scaling.json").read_text())["count"]
    times, memory = [], []
    for case, row in counts.items():
        dtype, e, m, p = case.split()[1], row["evaluation"]["flops"], row["update"]["flops"], row["parameters"]
        work = f"{e * row['evaluations'] * row['examples'] / 1e18:.2f} + {m * row['batch'] * row['updates'] / 1e18:.2f}"
        cells = [case, f"{p / 1e6:.0f} M", f"{e / 1e9:.0f}, {m / 1e9:.0f}", work]
        times.append(cells + [hours(*machine, row, dtype) for machine in MACHINES.values()])
        cells = [case, f"{STATE_BYTES * p / 1e9:.1f}", f"{KEPT_SHARE[dtype] * row['kept'] / 1e6:.0f}"]
        ways = [(1, H100), (8, H100), (1, V5E), (8, V5E), (64, V5E)]
        memory.append([*cells, *(at_once(*way, row, dtype) for way in ways)])
    ends = {name: USABLE * chip.capacity / (STATE_BYTES + WORK_BYTES) for name, chip in (("H100", H100), ("v5e", V5E))}
    largest = max(row["parameters"] for row in counts.values())
    state_head = ["config", "state, GB", "MB per example", "H100", "H100, fsdp 8", "v5e", "v5e, fsdp 8", "v5e, fsdp 64"]
    head = ["config", "parameters", "GFLOP per evaluation, per update", "EFLOP per round", *MACHINES]
    lines = f"""\
# What a round costs at full size

Written by `python -m benchmarks.scaling`. Hours are a model: XLA's counts of operations, and the shares of the peak that one card
reached. A round is E-step + M-step; compilation, start, measures and reading from disk are left out.

{markdown(head, times)}

The last four columns are hours per round. Seconds = max(FLOPs / (share x peak), bytes / (share x bandwidth)) + all-reduce of the
gradients, 4 bytes per parameter. 64 chips keep the config's batch, so each has a few examples. `imagenet64` is no shipped config:
CelebA's settings with the widths of Dhariwal and Nichol (2021, arXiv 2105.05233), 1,281,167 examples, 50,000 updates of batch 1,024.

Measured on one H200 with 2 blocks per level in bfloat16 ([accelerators](accelerators.md)): {COMPUTE_SHARE["evaluation"]:.0%} of the peak arithmetic in the E-step,
{COMPUTE_SHARE["update"]:.0%} in the M-step (in float32 31% of the TF32 peak). Assumed: the same elsewhere, {MEMORY_SHARE:.0%} of the peak memory bandwidth,
and {FUSED_SHARE:.0%} of the lowered program's bytes after fusion (so in one program that XLA compiled for TPU v5e). H100 SXM: 989
TFLOP/s in bfloat16, 494 in TF32, 3.35 TB/s, 80 GB, NVLink 450 GB/s per direction. TPU v5e: 197 TFLOP/s, 819 GB/s, 16 GB,
interconnect 400 GB/s both directions together. The paper reports 1.19 hours per round for CelebA, on hardware that it does not name.

## Memory, and where replication ends

The state is {STATE_BYTES} bytes per parameter: the parameters, their average, two moments of Adam. An update adds up to {WORK_BYTES}: gradients and a gathered
or converted copy. `parallel='pmap'` and `'jit'` hold all of it on every device. `'fsdp'` is `'jit'` with the state cut over the
devices: XLA gathers parameters where they are used and scatters gradients, so that up to 3 x 4 bytes per parameter and update cross
the links in place of 2 x 4, and the state takes 1 / devices of the memory. How many examples of an update then fit a chip at once:

{markdown(state_head, memory)}

Where that is less than the batch over the devices, `m_step.accumulate` takes the batch in parts. Per example it is what
differentiation keeps, times the share that XLA allocated on that H200 ({KEPT_SHARE["bfloat16"]:.0%} in bfloat16, {KEPT_SHARE["float32"]:.0%} in float32), of {USABLE:.0%} of the
memory; CelebA and `imagenet64` have `network.remat` on.

Replication ends where {STATE_BYTES + WORK_BYTES} bytes per parameter fill the memory: at {ends["H100"] / 1e9:.1f} billion parameters on an H100, {ends["v5e"] / 1e9:.1f} billion on a v5e. The
largest network above has {largest / ends["H100"]:.0%} and {largest / ends["v5e"]:.0%} of that, so every row runs under `'pmap'`; `'fsdp'` buys it room for
examples, and above those sizes it is the only way, up to {USABLE * H100.capacity / (STATE_BYTES / 8 + WORK_BYTES) / 1e9:.1f} billion on 8 H100 and {USABLE * V5E.capacity / (STATE_BYTES / 64 + WORK_BYTES) / 1e9:.1f} billion on 64 v5e if
gradients and gathered copies are whole at once, which is the worst case.

tests/test_parallel.py holds, on CPU devices, that `'fsdp'` gives the losses of `'jit'` up to round-off and that a device holds its share of
the state and the scalars; `python -m benchmarks.loop fsdp` measures both. No accelerator has run `'fsdp'`.
"""
    PAGE.write_text(lines)
    print(f"wrote {PAGE.name}")


def main() -> None:
    """Counts the cases that the command line names, or all, and writes the page."""
    if "--page" not in sys.argv:
        counts = json.loads((RESULTS / "scaling.json").read_text())["count"]
        for case in sys.argv[1:] or CONFIGS:
            counts |= {f"{case} {dtype}": count(case, dtype) for dtype in ("float32", "bfloat16")}
        write("scaling", {"count": counts})
    write_page()


if __name__ == "__main__":
    main()
