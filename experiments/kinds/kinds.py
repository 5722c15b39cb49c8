"""Tables, series and volumes: posterior draws against imputers that know one value only.

    python -m experiments.kinds.kinds [--only=wine30] [--runs=runs/kinds]

For each config: train, draw 64 posteriors for every observation, and compare the error of the posterior mean on missing
entries with classical answers; coverage is how often central intervals of the draws hold the hidden value. Writes
experiments/kinds/results.json, the table in README.md and kinds.png.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import numpy as np

from configs import series, tables, volumes
from diffem_jax import metrics
from diffem_jax.build.problem import load_problem, rows
from diffem_jax.run.train import run_em
from experiments import common

HERE = pathlib.Path(__file__).parent
KINDS: dict[str, Any] = {
    **{name: (tables, name) for name in tables.VARIANTS},
    "series": (series, "gaps"),
    "volumes": (volumes, "mask50"),
}
DRAWS = {"series": 32, "volumes": 16}
"""Draws an observation; 64 for tables."""
ROWS = {"series": 512, "volumes": 128}
HEADS = (
    "missing",
    "draws' mean",
    "start's mean",
    "classical",
    "coverage 80 %",
    "95 %",
    "start's 80 %",
    "95 %",
    "seconds of training",
)


def impute(name: str, y: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """What fills gaps without draws: scikit-learn's imputers for tables, interpolation elsewhere."""
    if name == "series":
        time_axis = np.arange(y.shape[1])
        lines = [np.interp(time_axis, time_axis[m > 0], v[m > 0]) for v, m in zip(y[..., 0], mask[..., 0], strict=True)]
        return {"linear interpolation": np.stack(lines)[..., None]}
    if name == "volumes":
        from scipy.interpolate import griddata

        grid = np.stack(np.meshgrid(*map(np.arange, y.shape[1:-1]), indexing="ij"), -1).reshape(-1, 3)
        filled = []
        for v, m in zip(y.reshape(len(y), -1), mask.reshape(len(y), -1), strict=True):
            near = griddata(grid[m > 0], v[m > 0], grid, "nearest")
            linear = griddata(grid[m > 0], v[m > 0], grid, "linear")
            filled.append(np.where(np.isfinite(linear), linear, near))
        return {"linear interpolation": np.stack(filled).reshape(y.shape)}
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer, KNNImputer

    gaps = np.where(mask > 0, y, np.nan)
    return {
        "IterativeImputer": IterativeImputer(max_iter=30, random_state=0).fit_transform(gaps),
        "KNNImputer": KNNImputer().fit_transform(gaps),
    }


def measure(name: str, runs: pathlib.Path) -> dict[str, Any]:
    module, variant = KINDS[name]
    config = module.get_config(variant)
    folder = run_em(config, runs / name)
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
    return {
        "missing": float(missing.mean()),
        "mean": error(drawn.mean(0)),
        "start": error(first.mean(0)),
        "classical": {n: error(x) for n, x in impute(name, observed.y, observed.operator).items()},
        "coverage": cover(drawn),
        "start_coverage": cover(first),
        "seconds": seconds,
        "picture": [a[:6].tolist() for a in (observed.y, observed.operator, truth)] + [drawn[:16, :6].tolist()],
    }


def table(results: dict[str, Any]) -> str:
    lines = ["| data | " + " | ".join(HEADS) + " |", "|---" * (len(HEADS) + 1) + "|"]
    for name, r in results.items():
        least = min(r["mean"], r["start"], *r["classical"].values())
        mean, start, *others = (
            f"**{v:.3f}**" if v == least else f"{v:.3f}" for v in (r["mean"], r["start"], *r["classical"].values())
        )
        classical = ", ".join(f"{n} {v}" for n, v in zip(r["classical"], others, strict=True))
        cells = [f"{r['missing']:.0%}", mean, start, classical]
        cells += [f"{c:.3f}" for c in (*r["coverage"], *r["start_coverage"])] + [f"{r['seconds']:.0f}"]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(results: dict[str, Any], path: pathlib.Path) -> None:
    """A table's missing entries with their intervals, a series with its gap, slices of a volume."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [name for name in ("wine50", "series", "volumes") if name in results]
    figure, axes = plt.subplots(1, len(shown), figsize=(5.2 * len(shown), 3.6), squeeze=False)
    for axis, name in zip(axes[0], shown, strict=True):
        y, mask, truth, drawn = (np.asarray(a) for a in results[name]["picture"])
        axis.set_title(name)
        if name == "series":
            gap = mask[0, :, 0] == 0
            axis.plot(drawn[:, 0, :, 0].T, color="tab:blue", alpha=0.25, lw=0.8)
            axis.plot(truth[0, :, 0], "k--", lw=1, label="hidden truth")
            axis.plot(np.where(gap, np.nan, y[0, :, 0]), ".", color="tab:orange", ms=3, label="seen")
            axis.legend(loc="upper right")
        elif name == "volumes":
            middle = truth.shape[1] // 2
            seen = np.where(mask[:4, middle, ..., 0] > 0, y[:4, middle, ..., 0], np.nan)
            parts = (seen, drawn[:, :4].mean(0)[:, middle, ..., 0], truth[:4, middle, ..., 0])
            axis.imshow(np.concatenate([np.concatenate(list(p), 1) for p in parts]), cmap="gray", vmin=-2, vmax=2)
            axis.set_axis_off()
            axis.set_title("volumes: seen, mean of the draws, truth (middle slices)")
        else:
            hidden = mask == 0
            order = np.argsort(truth[hidden])
            low, high = np.quantile(drawn[:, hidden], (0.1, 0.9), axis=0)
            place = np.arange(len(order))
            axis.vlines(place, low[order], high[order], color="tab:blue", alpha=0.5, label="80 % of the draws")
            axis.plot(place, truth[hidden][order], "k.", ms=3, label="hidden truth")
            axis.set_xlabel("missing entries of six rows, sorted")
            axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names, separated by commas; the others keep their stored numbers")
    parser.add_argument("--runs", default="runs/kinds")
    arguments = parser.parse_args()
    file, measured = HERE / "results.json", {}
    for name in arguments.only.split(",") if arguments.only else KINDS:
        measured[name] = measure(name, pathlib.Path(arguments.runs))
        print(table({name: measured[name]}).splitlines()[-1], flush=True)
    stored = {**(json.loads(file.read_text()) if file.exists() else {}), **measured}
    results = {name: stored[name] for name in KINDS if name in stored}
    figure(results, HERE / "kinds.png")
    for r in results.values():
        r["picture"] = [np.round(a, 2).tolist() for a in map(np.asarray, r["picture"])]
    file.write_text(json.dumps(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
