"""The Gaussian start: closed-form EM against the published way of fitting it by sampling.

    python -m benchmarks.start

Manifold, 16,384 points in R^5. The published way runs 16 EM iterations, each of which draws from the posterior under
the current Gaussian by 256-step diffusion sampling with the analytic denoiser, and refits mean and covariance to the
draws. Both are judged by the observed log-likelihood per example (higher is better) of all points; the closed form is
fitted to all of them and, as a Gaussian in R^5 has few parameters, to 4,096 (``start.num_examples``).

Patches, 20,000 crops 32x32x3 with half of the pixels erased, rank 64: stepwise EM, ``PASSES`` passes over the data in
minibatches of ``MINIBATCH``, and the observed log-likelihood a coordinate of 1,024 of them after each pass.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import write
from configs import manifold, patches
from diffem_jax import samplers
from diffem_jax.build.problem import load_problem
from diffem_jax.denoisers.edm import gaussian_denoiser
from diffem_jax.gaussians import starts
from diffem_jax.gaussians.gaussians import condition_on_observation
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.samplers.schedules import VarianceExploding, log_uniform_grid
from diffem_jax.types import example_keys, stream_key

PASSES, MINIBATCH = 2, 1024


def patches_start() -> dict[str, Any]:
    config = patches.get_config("mask50")
    with config.unlocked():
        config.data.shape, config.data.num_examples = (32, 32, 3), 20_000
        config.corruption.fill_iterations, config.denoiser.base = 0, "start"
    problem = load_problem(config)
    corruption: Any = problem.setup.corruption
    seen = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf[:1024])), problem.observations)

    @jax.jit
    def log_likelihood(law: Gaussian) -> Any:
        each = jax.lax.map(lambda o: condition_on_observation(corruption, law, o).log_prob, seen, batch_size=64)
        return jnp.mean(each) / np.prod(problem.setup.shape)

    rows = []
    for passes in range(1, PASSES + 1):
        began = time.perf_counter()
        fitted = starts.fit(
            stream_key(0, "start"),
            corruption,
            problem.observations,
            rank=64,
            iterations=passes,
            minibatch=MINIBATCH,
            tolerance=0.0,
        )
        law = jax.tree.map(lambda leaf: leaf[0], fitted.mixture.components)
        seconds = time.perf_counter() - began
        rows.append({"passes": passes, "seconds": seconds, "log_likelihood_a_coordinate": float(log_likelihood(law))})
        print(rows[-1], flush=True)
    return {"table": rows}


def main() -> None:
    problem = load_problem(manifold.get_config("quick"))
    corruption: Any = problem.setup.corruption
    observations = jax.tree.map(jnp.asarray, problem.observations)
    indices = jnp.arange(problem.num_examples)

    @jax.jit
    def log_likelihood(law: Gaussian) -> Any:
        return jnp.mean(jax.vmap(lambda o: condition_on_observation(corruption, law, o).log_prob)(observations))

    schedule = VarianceExploding(1e-3, 10.0)
    times = log_uniform_grid(schedule, 256)

    @jax.jit
    def sampled_iteration(key: Any, law: Gaussian) -> Gaussian:
        def one(k: Any, o: Any) -> Any:
            denoise = gaussian_denoiser(schedule, law, corruption, o)
            return samplers.sample(k, samplers.ddpm(schedule), denoise, times, problem.setup.shape)

        x = jax.vmap(one)(example_keys(key, indices), observations)
        mean = jnp.mean(x, axis=0)
        centred = x - mean[None]
        covariance = centred.T @ centred / len(x) + 1e-6 * jnp.eye(x.shape[1])
        floor = jnp.full(mean.shape, 1e-4)
        return Gaussian(mean, floor, jnp.linalg.cholesky(covariance).T)

    rank = problem.setup.shape[0]
    begin = Gaussian(jnp.zeros(rank), jnp.full((rank,), 1e-4), jnp.eye(rank))
    jax.block_until_ready(sampled_iteration(stream_key(0, "warm"), begin))
    began, law = time.perf_counter(), begin
    for i in range(16):
        law = sampled_iteration(stream_key(0, "sampled", i), law)
    jax.block_until_ready(law)
    sampled_seconds = time.perf_counter() - began

    def closed_form(count: int) -> dict[str, float]:
        used = jax.tree.map(lambda leaf: leaf[:count], problem.observations)
        starts._kept_iteration.cache_clear()
        jax.clear_caches()
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            mixture = starts.fit(stream_key(0, "start"), corruption, used, rank=rank, iterations=60).mixture
            jax.block_until_ready(mixture)
            seconds.append(time.perf_counter() - began)
        median = float(np.median(seconds[1:]))
        return {
            "seconds": median,
            "seconds_with_compile": seconds[0],
            "log_likelihood": float(log_likelihood(jax.tree.map(lambda leaf: leaf[0], mixture.components))),
            "speedup": sampled_seconds / median,
        }

    write(
        "start",
        {
            "published_seconds": sampled_seconds,
            "published_log_likelihood": float(log_likelihood(law)),
            "closed_form": {
                "fitted to all": closed_form(problem.num_examples),
                "fitted to 4096": closed_form(4096),
            },
            "patches_32": patches_start(),
        },
    )


if __name__ == "__main__":
    main()
