"""A cost model of a round of the CIFAR-10 and CelebA configs, checked against this machine: writes docs/scaling.md.

    python -m benchmarks.scaling            # count, check against measured CPU time, write the page
    python -m benchmarks.scaling --page     # write the page from the results alone
    python -m benchmarks.scaling --tpu      # compile for a TPU v5e-8 that need not be here (pip install libtpu; an hour)

FLOPs and bytes are XLA's own counts of the project's E-step and M-step, of one network evaluation and of one update: of
the lowered program, which takes seconds, and, with ``--tpu``, of the program compiled for the TPU, after its fusions.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import RESULTS, interleave, one_core, write
from benchmarks.scaling_page import write_page
from configs import celeba, cifar10
from diffem_jax import em
from diffem_jax.build import methods as build
from diffem_jax.parallel import make_parallel
from diffem_jax.run.start import standard_normal

CONFIGS = {
    "cifar10:mask75": (lambda: cifar10.get_config("mask75"), (32, 32, 3), 50_000),
    "celeba:mask50": (lambda: celeba.get_config("mask50"), (64, 64, 3), celeba.EXAMPLES),
}
DTYPES = ("float32", "bfloat16")


class Work(NamedTuple):
    """One evaluation of a batch and one update, with shapes to lower them for."""

    setup: build.Setup
    evaluate: Callable[..., Any]
    update: Callable[..., Any]
    evaluation_shapes: Callable[[int], tuple[Any, ...]]
    update_shapes: Callable[[int], tuple[Any, ...]]
    parameters: int


def work(config: Any, shape: tuple[int, ...]) -> Work:
    setup = build.make_setup(config, shape)
    model = build.make_model(setup, standard_normal(shape))
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(lambda: model.denoiser.init(jax.random.key(0)))
    state = jax.eval_shape(lambda: em.make_state(model.denoiser.init(jax.random.key(0)), setup.optimizer))

    def evaluate(k: Any, p: Any, observations: Any, x: Any) -> Any:
        return jax.vmap(lambda o, one: model.bind(p, o)(one, jnp.float32(0.5)))(observations, x)

    def images(*lead: int) -> Any:
        return jax.ShapeDtypeStruct((*lead, *shape), jnp.float32)

    def observations(batch: int) -> Any:
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
        return jax.eval_shape(jax.vmap(setup.corruption.sample), keys, images(batch))

    return Work(
        setup,
        evaluate,
        em.make_m_step(model.loss, setup.optimizer, ema_decay=config.m_step.ema_decay),
        lambda batch: (key, params, observations(batch), images(batch)),
        lambda batch: (key, state, images(1, batch), jax.ShapeDtypeStruct((1, batch), jnp.int32)),
        sum(leaf.size for leaf in jax.tree.leaves(params)),
    )


def full_size(name: str, dtype: str) -> Any:
    config = CONFIGS[name][0]()
    config.network.dtype = dtype
    with config.unlocked():
        config.network.native_gradient = True  # what runs on accelerators
    return config


def lowered(function: Callable[..., Any], shapes: tuple[Any, ...]) -> dict[str, float]:
    found = jax.jit(function).lower(*shapes).cost_analysis()
    return {"flops": found["flops"], "bytes": found["bytes accessed"]}


def per_example(function: Callable[..., Any], shapes: Callable[[int], Any]) -> dict[str, float]:
    """FLOPs and bytes an example, and those that a batch costs whatever its size (parameters, optimiser)."""
    two, four = lowered(function, shapes(2)), lowered(function, shapes(4))
    each = {name: (four[name] - two[name]) / 2 for name in two}
    return {**each, **{f"fixed_{name}": two[name] - 2 * each[name] for name in two}}


def count() -> dict[str, Any]:
    """What a round of each config computes."""
    out: dict[str, Any] = {}
    for name, (_, shape, examples) in CONFIGS.items():
        for dtype in DTYPES:
            config = full_size(name, dtype)
            w = work(config, shape)
            out[f"{name} {dtype}"] = {
                "parameters": w.parameters,
                "examples": examples,
                "evaluations": config.e_step.steps,
                "updates": config.m_step.steps,
                "batch": config.m_step.batch_size,
                "e_batch": config.e_step.batch_size,
                "rounds": config.rounds,
                "evaluation": per_example(w.evaluate, w.evaluation_shapes),
                "update": per_example(w.update, w.update_shapes),
            }
            print(name, dtype, out[f"{name} {dtype}"], flush=True)
    return out


CALIBRATION = ("32-64", "64-128")
SMALL: dict[str, dict[str, Any]] = {
    "32-64": {},
    "64-128": {"channels": (64, 128)},
    "48-96-144": {"channels": (48, 96, 144)},
    "32-64, batch 32": {"batch": 32},
    "32-64, 8 steps and 8 updates": {"steps": 8},
}


def small(channels: Any = (32, 64), blocks: int = 1, batch: int = 16, side: int = 16, steps: int = 4) -> Any:
    """Seconds and counts of a small relative of the CIFAR-10 config: an E-step of so many steps, and so many updates."""
    config = cifar10.get_config("mask75")
    config.network.channels, config.network.blocks, config.e_step.steps = channels, blocks, steps
    w = work(config, (side, side, 3))
    model = build.make_model(w.setup, standard_normal(w.setup.shape))
    filled = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype) if not jax.dtypes.issubdtype(s.dtype, jax.dtypes.prng_key) else s,
        (w.evaluation_shapes(batch),),
    )
    key, params = jax.random.key(0), model.denoiser.init(jax.random.key(0))
    observations, slots = filled[0][2], jnp.tile(jnp.arange(batch)[None], (steps, 1))
    x = jax.random.normal(key, (steps, batch, *w.setup.shape))
    e_step = jax.jit(em.make_e_step(model.bind, w.setup.sampler, w.setup.times, w.setup.shape))
    update, state = jax.jit(w.update), em.make_state(params, w.setup.optimizer)
    # XLA counts the body of a loop once: the counts are of one step and of one update.
    once = {
        "e_step": lowered(w.evaluate, w.evaluation_shapes(batch)),
        "m_step": lowered(w.update, w.update_shapes(batch)),
    }
    calls = {
        "e_step": lambda: e_step(key, params, observations, jnp.arange(batch)),
        "m_step": lambda: update(key, state, x, slots),
    }
    return {
        part: {"seconds": seconds, **{name: value * steps for name, value in once[part].items()}}
        for part, seconds in interleave(calls, clock=time.process_time).items()
    }


def check() -> dict[str, Any]:
    """Measures all small networks and predicts some of them from the others."""
    measured = {}
    for name, options in SMALL.items():
        measured[name] = small(**options)
        print(name, measured[name], flush=True)
    return {"clock": "processor seconds", **predict(measured)}


def predict(measured: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Fits seconds = a FLOPs + b bytes, with a and b from two networks, and predicts the others."""
    out: dict[str, Any] = {"calibrated_on": list(CALIBRATION), "rows": []}
    for part in ("e_step", "m_step"):
        rows = [measured[name][part] for name in CALIBRATION]
        matrix = np.array([[row["flops"], row["bytes"]] for row in rows])
        rates = np.linalg.solve(matrix, np.array([row["seconds"] for row in rows]))
        out[part] = {"seconds_a_gflop": rates[0] * 1e9, "seconds_a_gbyte": rates[1] * 1e9}
        for name in measured:
            if name not in CALIBRATION:
                row = measured[name][part]
                told = {"predicted": float(rates @ np.array([row["flops"], row["bytes"]])), "measured": row["seconds"]}
                out["rows"].append(
                    {"part": part, "network": name, **told, "error": told["predicted"] / told["measured"] - 1}
                )
    out["worst"] = max(abs(row["error"]) for row in out["rows"])
    return out


def compiled(step: Any, shapes: tuple[Any, ...]) -> dict[str, Any]:
    """XLA's counts for one device of the compiled program, its memory and its collectives."""
    program = step.lower(*shapes).compile()
    cost, memory = program.cost_analysis(), program.memory_analysis()
    reduced = 0
    for line in re.findall(r"= (.*?) all-reduce(?:-start)?\(", program.as_text()):
        for kind, sides in re.findall(r"\b(f32|bf16|s32|u32|pred)\[([\d,]*)\]", line):
            reduced += {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}[kind] * int(
                np.prod([int(side) for side in sides.split(",") if side] or [1])
            )
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "all_reduce_bytes": reduced,
        "memory_bytes": used - memory.alias_size_in_bytes,
    }


def tpu() -> None:
    """Ahead-of-time compilation for eight chips of TPU v5e."""
    from jax.experimental import topologies

    parallel = make_parallel("jit", topologies.get_topology_desc("v5e:2x4", "tpu").devices)
    path = RESULTS / "scaling_tpu.json"
    out: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name, (_, shape, _count) in CONFIGS.items():
        for dtype in DTYPES:
            config = full_size(name, dtype)
            w = work(config, shape)
            parts = {
                "evaluation": (parallel.map_e_step(w.evaluate), w.evaluation_shapes(config.e_step.batch_size)),
                "update": (parallel.map_m_step(w.update), w.update_shapes(config.m_step.batch_size)),
            }
            for part, (step, shapes) in parts.items():
                if f"{name} {dtype} {part}" not in out:
                    out[f"{name} {dtype} {part}"] = compiled(step, shapes)
                    print(name, dtype, part, out[f"{name} {dtype} {part}"], flush=True)
                    path.write_text(json.dumps(out, indent=1) + "\n")


def main() -> None:
    if "--tpu" in sys.argv:
        tpu()
        return
    if "--page" not in sys.argv:
        one_core()
        write("scaling", {"count": count(), "check": check()})
    write_page()


if __name__ == "__main__":
    main()
