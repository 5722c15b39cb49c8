"""Tables, series and volumes: posterior draws against imputers that know one value only.

    python -m experiments.kinds.run [--only=wine30] [--report]

For each config: train, draw 64 posteriors for every observation, and compare the error of the posterior mean on missing
entries with classical answers; coverage is how often central intervals of the draws hold the hidden value. Writes
results.json and the table in README.md.
"""

import pathlib
from typing import Any

import numpy as np
from scipy.interpolate import griddata
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from configs import series, tables, volumes
from diffem_jax import metrics
from diffem_jax.build.problem import load_problem, rows
from diffem_jax.run.train import run_em
from experiments import common

HERE = pathlib.Path(__file__).parent
KINDS: dict[str, Any] = {name: (tables, name) for name in tables.VARIANTS}
KINDS |= {"series": (series, "gaps"), "volumes": (volumes, "mask50")}
DRAWS = {"series": 32, "volumes": 16}
"""Draws an observation; 64 for tables."""
ROWS = {"series": 512, "volumes": 128}
HEADS = ("data", "missing", "draws' mean", "start's mean", "classical", "coverage 80 %", "95 %", "start's 80 %", "95 %")


def interpolate(v: np.ndarray, m: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Linear interpolation of one example's entries on a grid [N, dimensions], the nearest beyond its hull."""
    near = griddata(grid[m > 0], v[m > 0], grid, "nearest")
    linear = griddata(grid[m > 0], v[m > 0], grid, "linear")
    return np.where(np.isfinite(linear), linear, near)


def impute(name: str, y: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """What fills gaps without draws: scikit-learn's imputers for tables, interpolation elsewhere."""
    if name in ("series", "volumes"):
        grid = np.stack(np.meshgrid(*map(np.arange, y.shape[1:-1]), indexing="ij"), -1).reshape(-1, y.ndim - 2)
        pairs = zip(y.reshape(len(y), -1), mask.reshape(len(y), -1), strict=True)
        return {"linear interpolation": np.stack([interpolate(v, m, grid) for v, m in pairs]).reshape(y.shape)}
    gaps = np.where(mask > 0, y, np.nan)
    return {
        "IterativeImputer": IterativeImputer(max_iter=30, random_state=0).fit_transform(gaps),
        "KNNImputer": KNNImputer().fit_transform(gaps),
    }


def measure(name: str) -> dict[str, Any]:
    """Trains (a finished run is passed over), draws, and compares."""
    module, variant = KINDS[name]
    config = module.get_config(variant)
    folder = run_em(config, common.ROOT / "runs" / "experiments" / "kinds" / name)
    problem = load_problem(config)
    count, samples = min(ROWS.get(name, 10**6), problem.num_examples), DRAWS.get(name, 64)
    observed, truth = rows(problem.observations, np.arange(count)), np.asarray(problem.truth[:count])

    def draws(number: int) -> np.ndarray:
        return common.posterior_draws(folder, problem.setup, number, observed, samples, "kinds")

    drawn, first = draws(config.rounds), draws(0)
    missing = np.broadcast_to(observed.operator, observed.y.shape) == 0

    def error(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean((x - truth)[missing] ** 2)))

    def cover(x: np.ndarray) -> list[float]:
        shares = metrics.coverage(x[:, missing][..., None], truth[missing][..., None], (0.8, 0.95))
        return [float(share.value) for share in shares]

    parts = ("m_step_seconds", "e_step_seconds")  # compilation is in them
    seconds = sum(record.get(part, 0.0) for record in folder.records() for part in parts)
    classical = {n: error(x) for n, x in impute(name, observed.y, observed.operator).items()}
    errors = {"mean": error(drawn.mean(0)), "start": error(first.mean(0)), "classical": classical}
    held = {"coverage": cover(drawn), "start_coverage": cover(first)}
    return {"missing": float(missing.mean()), **errors, **held, "seconds": seconds}


def tables(results: dict[str, Any]) -> str:
    """A line per set, the least error in bold."""
    lines = []
    for name, r in results.items():
        errors = (r["mean"], r["start"], *r["classical"].values())
        mean, start, *others = (f"**{v:.3f}**" if v == min(errors) else f"{v:.3f}" for v in errors)
        classical = ", ".join(f"{n} {v}" for n, v in zip(r["classical"], others, strict=True))
        cells = [f"{r['missing']:.0%}", mean, start, classical]
        cells += [f"{c:.3f}" for c in (*r["coverage"], *r["start_coverage"])] + [f"{r['seconds']:.0f}"]
        lines.append([f"`{name}`", *cells])
    return common.markdown((*HEADS, "seconds of training"), lines)


if __name__ == "__main__":
    common.run_each(__doc__, HERE / "results.json", "README.md", KINDS, measure, tables)
