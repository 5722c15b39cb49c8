"""Quality and seconds of a draw against the number of network evaluations, per sampler, conditional and MMPS.

    python -m benchmarks.e_step_cost

Digits, pixels erased with rate 0.5: networks are trained as their configs say, then every sampler draws from them. Quality:
PSNR of a draw against the hidden truth, sliced Wasserstein distance to truths of other examples, and CRPS and coverage of 8
draws for 256 observations. Sides take turns; medians of three.
"""

import itertools
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import interleave, medians, write
from configs import digits
from diffem_jax import em, metrics
from diffem_jax.build import methods as build
from diffem_jax.build.problem import load_problem
from diffem_jax.run.start import load_start
from diffem_jax.run.train import run_em
from diffem_jax.samplers.samplers import EVALUATIONS, SAMPLERS
from diffem_jax.samplers.schedules import TIME_GRIDS
from diffem_jax.storage import checkpoints
from diffem_jax.types import stream_key

COUNTS = (8, 16, 32)
REFERENCE = ("ddpm", 256)
"""The published sampler with its steps; the others gain nothing by so many."""
DRAWS, OBSERVATIONS = 8, 256


def sides(config: Any, choices: list[tuple[str, int]]) -> tuple[Any, dict[Any, Callable[..., Any]]]:
    """A trained problem, and its E-step by every (sampler, number of evaluations), as functions of a seed."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = run_em(config, folder)
        start, state = load_start(workdir), checkpoints.load(workdir.last_round())
    problem = load_problem(config)
    model, schedule = build.make_model(problem.setup, start), problem.setup.schedule
    params, observations = jax.tree.map(jnp.asarray, (state["ema_params"], problem.observations))
    out: dict[Any, Callable[..., Any]] = {}
    for name, evaluations in choices:
        times = TIME_GRIDS[config.e_step.time_grid](schedule, evaluations // EVALUATIONS.get(name, 1))
        step = jax.jit(em.make_e_step(model.bind, SAMPLERS[name](schedule), times, problem.setup.shape))

        def draw(seed: int = 0, rows: int = problem.num_examples, step: Any = step) -> Any:
            taken = jax.tree.map(lambda leaf: leaf[:rows], observations)
            return step(stream_key(seed, "bench"), params, taken, jnp.arange(rows))

        out[name, evaluations] = draw
    return problem, out


def quality(problem: Any, draw: Callable[..., Any]) -> dict[str, float]:
    """What one draw of each observation and eight of some are worth."""
    truth, x = np.asarray(problem.truth), np.asarray(draw())
    half, key = len(x) // 2, stream_key(0, "measure")
    many = np.stack([np.asarray(draw(seed, OBSERVATIONS)) for seed in range(DRAWS)])
    return {
        "psnr": float(metrics.psnr(x, truth).value),
        "sliced_wasserstein_unpaired": float(metrics.sliced_wasserstein(x[:half], truth[half : 2 * half], key).value),
        "crps": float(metrics.crps(many, truth[:OBSERVATIONS]).value),
        "coverage_90": float(metrics.coverage(many, truth[:OBSERVATIONS], (0.9,))[0].value),
    }


def table(method: str, choices: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """A row per sampler and number of evaluations; MMPS with one iteration and the published denoiser."""
    config = digits.get_config()
    with config.unlocked():
        config.method, config.eval.metrics = method, ()
        if method == "em_mmps":
            config.denoiser.preconditioning, config.mmps.iterations = "edm", 1
    problem, draws = sides(config, choices)
    seconds, rows = medians(interleave(draws, repeats=3)), []
    for (name, evaluations), draw in draws.items():
        cost = 1e3 * seconds[name, evaluations] / problem.num_examples
        row = {"method": method, "sampler": name, "evaluations": evaluations, "milliseconds_per_draw": cost}
        rows.append({**row, **quality(problem, draw)})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    rows = table("diffem", [*itertools.product(SAMPLERS, COUNTS), REFERENCE])
    rows += table("em_mmps", [*itertools.product(("ddpm", "ddim"), COUNTS)])
    write("e_step_cost", {"digits": rows})
