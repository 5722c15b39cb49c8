"""The score error of every round beside the bound, on a linear-Gaussian model where all else is known.

    python -m experiments.theory.run [--report]

x ~ N(m, S) in R^3 is seen through one fixed 4 x 3 operator and noise. Each round trains a conditional network on the
draws of the round before and draws again. With pi^k the Gaussian of the draws' moments, a round:

    KL exact    KL(P_Y || pi_Y^k) of exact rounds, in closed form
    KL          the same of the network's rounds
    moved       KL(pi^{k+1} || pi^k), in closed form
    error       E |score error|^2 along the sampler's own paths, summed over its steps as the theorem counts it
    bound       KL_k - moved + error, what KL_{k+1} may not exceed

A step of the sampler from sigma_t to sigma_s draws x_s from a Gaussian of variance sigma_s^2 p, p = 1 - sigma_s^2 /
sigma_t^2, whose mean moves by p times the denoiser's error. Its part of KL(path of the network || path of the exact
denoiser) is p E |error|^2 / (2 sigma_s^2). What the exact denoiser's own steps leave undone is not in the bound.

Writes results.json, docs/theory.png and the tables of README.md.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffem_jax import em
from diffem_jax.corruptions.base import Linear
from diffem_jax.denoisers import bind, edm_denoiser, gaussian_denoiser
from diffem_jax.denoisers.losses import BetaMixture, denoising_loss, snr_weight
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.networks.mlp import MLP
from diffem_jax.samplers import schedules
from diffem_jax.samplers.samplers import ddpm
from diffem_jax.storage.reconstructions import index_stream
from diffem_jax.types import Observation, example_keys, stream_key
from experiments import common, figures
from experiments.theory import exact

HERE = Path(__file__).parent
OPERATOR = ((1.0, 0.2, 0.0), (0.0, 1.0, 0.3), (0.1, 0.0, 1.0), (0.5, 0.5, 0.0))
NOISE = 0.5
CHANNEL = exact.Channel(np.array([OPERATOR]), NOISE)
TRUTH = exact.Normal(np.array([0.5, -1.0, 0.3]), np.array([[1.0, 0.5, -0.2], [0.5, 0.7, 0.1], [-0.2, 0.1, 0.4]]))
START = exact.Normal(np.zeros(3), 2.0 * np.eye(3))
TITLES = {"exact": "exact rounds (closed form)", "kl": "network rounds", "bound": "bound on the network's"}
TITLES |= {"error": "score error"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed(Linear):
    """One known matrix for every example."""

    def forward(self, x: Any, operator: Any) -> Any:
        """A x."""
        return jnp.asarray(OPERATOR) @ x


class Row(NamedTuple):
    """One round."""

    round: int
    exact: float
    kl: float
    moved: float | None = None
    error: float | None = None
    bound: float | None = None
    denoiser_error: float | None = None


def as_gaussian(normal: exact.Normal) -> Gaussian:
    """The distribution as the package writes it."""
    root = np.linalg.cholesky(normal.cov - 1e-4 * np.eye(3)).T
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), Gaussian(normal.mean, np.full(3, 1e-4), root))


def moments(x: np.ndarray) -> exact.Normal:
    """The Gaussian of some draws."""
    x = np.asarray(x, np.float64)
    return exact.Normal(x.mean(0), np.cov(x.T))


def make_path_error(schedule: Any, corruption: Any, denoiser: Any, times: Any) -> Any:
    """(key, params, normal, observation) -> (the draw, its part of the path divergence, mean squared denoiser error)."""
    sampler = ddpm(schedule)

    def path(key, params, normal, observation):
        ours = bind(denoiser, params, observation)
        theirs = gaussian_denoiser(schedule, normal, corruption, observation)
        state = sampler.init(jax.random.fold_in(key, 0), times[0], (3,))

        def step(state, part):
            index, t, s = part
            off = jnp.sum((ours(state.x, t) - theirs(state.x, t)) ** 2)
            (_, sigma_t), (_, sigma_s) = schedule(t), schedule(s)
            pull = 1 - (sigma_s / sigma_t) ** 2
            state, _ = sampler.step(jax.random.fold_in(key, index), state, t, s, ours)
            return state, (pull * off / (2 * sigma_s**2), off)

        # The key of a step serves it alone; the exact denoiser draws nothing.
        steps = (jnp.arange(1, len(times)), times[:-1], times[1:])
        state, (parts, off) = jax.lax.scan(step, state, steps)
        return sampler.final(state, times[-1]), jnp.sum(parts), jnp.mean(off)

    return path


def network_course(rounds: int, updates: int, count: int, steps: int = 48, batch: int = 1024) -> list[Row]:
    """Trains and draws round after round."""
    corruption = Fixed(shape=(3,), noise_std=NOISE)
    schedule = schedules.VarianceExploding(0.02, 20.0)
    denoiser = edm_denoiser(MLP(features=(64, 64), embedding=16), schedule, corruption, (3,))
    rate = optax.cosine_decay_schedule(4e-3, updates, alpha=0.01)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    loss = denoising_loss(denoiser, schedule, corruption, BetaMixture(((1.5, 1.5),)), snr_weight)
    m_step = jax.jit(em.make_m_step(loss, optimizer, ema_decay=0.995))
    path = make_path_error(schedule, corruption, denoiser, schedules.log_uniform_grid(schedule, steps))

    def e_step(key, params, normal, observations):
        keys = example_keys(key, jnp.arange(count))
        return jax.lax.map(lambda a: path(a[0], params, normal, a[1]), (keys, observations), batch_size=2048)

    e_step = jax.jit(e_step)
    rng = np.random.default_rng(0)
    truth = rng.multivariate_normal(TRUTH.mean, TRUTH.cov, count)
    y = truth @ np.asarray(OPERATOR).T + NOISE * rng.normal(size=(count, 4))
    observations = Observation(jnp.asarray(y, jnp.float32), ())
    # P_Y is what was observed: the distribution that the draws are to explain.
    seen = moments(y)

    def divergence(normal: exact.Normal) -> float:
        return exact.kl(seen, exact.observed(normal, np.asarray(OPERATOR), NOISE))

    x = rng.multivariate_normal(START.mean, START.cov, count).astype(np.float32)
    normal, params = moments(x), denoiser.init(stream_key(0, "init"))
    wanted = [exact.observation_kl(TRUTH, each, CHANNEL) for each in exact.course(START, TRUTH, CHANNEL, rounds)]
    rows = [Row(0, wanted[0], divergence(normal))]
    slots = jnp.tile(jnp.arange(batch, dtype=jnp.int32), (updates, 1))
    for number in range(1, rounds + 1):
        batches = index_stream(0, number, count, batch)
        chosen = np.stack([next(batches) for _ in range(updates)])
        state, _ = m_step(stream_key(0, "m_step", number), em.make_state(params, optimizer), x[chosen], slots)
        params = state.params
        key = stream_key(0, "e_step", number)
        draws, parts, off = e_step(key, state.ema_params, as_gaussian(normal), observations)
        before, x = normal, np.asarray(draws)
        normal = moments(x)
        moved, error = exact.kl(normal, before), float(np.mean(parts))
        bound = rows[-1].kl - moved + error
        rows.append(Row(number, wanted[number], divergence(normal), moved, error, bound, float(np.sqrt(np.mean(off)))))
    return rows


def tables(results: dict[str, Any]) -> str:
    """The part of the README that is made from the results."""
    parts = [f"{results['count']:,} observations, {results['seconds']:.0f} s."]
    parts[0] += f" Predicted factor of KL per round near the truth: {results['predicted_factor']:.3f}."
    heads = ["round", "KL exact", "KL", "moved", "score error", "bound on KL", "rms error of x-hat"]
    for label, rows in results["courses"].items():
        cells = [[n, *("" if v is None else f"{v:.4f}" for v in rest)] for n, *rest in map(dict.values, rows)]
        parts += [label, common.markdown(heads, cells)]
    picture = "![KL of exact rounds and of a network's, the score error and the bound](../../docs/theory.png)"
    return "\n\n".join([*parts, picture])


def draw(results: dict[str, Any], place: Path) -> None:
    """KL of exact and network rounds, the score error and the bound, for several lengths of training."""
    panels = []
    for label, rows in results["courses"].items():
        known = {name: [row for row in rows if row[name] is not None] for name in TITLES}
        lines = {title: [[(row["round"], row[name]) for row in known[name]]] for name, title in TITLES.items()}
        panels.append(figures.Panel(lines, f"round ({label})", "nats", log_y=True))
    figures.draw(place / "theory.png", panels)


def measure(rounds: int = 6, lengths: tuple[int, ...] = (50, 600), count: int = 8192) -> dict[str, Any]:
    """What results.json holds: the predicted rate, the seconds and each course's rows."""
    began, predicted = time.monotonic(), exact.predicted_rate(TRUTH, CHANNEL)
    courses = {f"{n} updates per round": [row._asdict() for row in network_course(rounds, n, count)] for n in lengths}
    return {"predicted_factor": predicted, "seconds": time.monotonic() - began, "count": count, "courses": courses}


if __name__ == "__main__":
    file = HERE / "results.json"
    if "--report" not in sys.argv:
        file.write_text(json.dumps(measure(), indent=1) + "\n")
    results = json.loads(file.read_text())
    common.write_page(HERE / "README.md", tables(results))
    draw(results, common.ROOT / "docs")
