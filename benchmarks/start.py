"""The Gaussian start: closed-form EM against the published way of fitting it by sampling, and where little is seen.

    python -m benchmarks.start

Manifold, 16,384 points in R^5. The published way runs 16 EM iterations, each of which draws from the posterior under
the current Gaussian by 256-step diffusion sampling with the analytic denoiser, and refits mean and covariance to the
draws. Both are judged by the observed log-likelihood per example (higher is better) of all points; the closed form is
fitted to all of them and, as a Gaussian in R^5 has few parameters, to 4,096 (``start.num_examples``).

Little seen: digits with nine of ten pixels erased, rank 24, at most 40 iterations. The fit that ships against plain EM, which
begins with the mean and the principal axes of A^T (A A^T + noise_std^2 I)^-1 y as if all of x were seen, and whose steps keep
their own length. Judged by the observed log-likelihood per example, and by the squared sliced Wasserstein distance of
posterior draws, one per observation, to the hidden truth (lower is better).
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import write
from configs import digits, manifold
from diffem_jax import em, samplers
from diffem_jax.build.problem import load_problem
from diffem_jax.denoisers.edm import gaussian_denoiser
from diffem_jax.gaussians import factor_analysis, starts
from diffem_jax.gaussians.gaussians import Mixture, condition_on_observation
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.metrics import sliced_wasserstein
from diffem_jax.run.start import fit_start
from diffem_jax.samplers.schedules import VarianceExploding, log_uniform_grid
from diffem_jax.types import example_keys, stream_key

SAMPLED_ITERATIONS = 16


def log_likelihood(corruption: Any, observations: Any) -> Callable[[Mixture], float]:
    """The observed log-likelihood per example of the first component of a mixture."""

    @jax.jit
    def mean(mixture: Mixture) -> Any:
        gaussian = jax.tree.map(lambda leaf: leaf[0], mixture.components)
        one = partial(condition_on_observation, corruption, gaussian)
        return jnp.mean(jax.lax.map(lambda o: one(o).log_prob, observations, batch_size=64))

    return lambda mixture: float(mean(mixture))


def published_way(problem: Any, observations: Any) -> tuple[Mixture, float]:
    """Mean and covariance refitted to diffusion samples, and the seconds that takes."""
    schedule, shape = VarianceExploding(1e-3, 10.0), problem.setup.shape
    times, indices = log_uniform_grid(schedule, 256), jnp.arange(problem.num_examples)

    @jax.jit
    def iteration(key: Any, gaussian: Gaussian) -> Gaussian:
        def one(k: Any, o: Any) -> Any:
            denoise = gaussian_denoiser(schedule, gaussian, problem.setup.corruption, o)
            return samplers.sample(k, samplers.ddpm(schedule), denoise, times, shape)

        x = jax.vmap(one)(example_keys(key, indices), observations)
        mean = jnp.mean(x, axis=0)
        covariance = (x - mean[None]).T @ (x - mean[None]) / len(x) + 1e-6 * jnp.eye(x.shape[1])
        return Gaussian(mean, jnp.full(mean.shape, 1e-4), jnp.linalg.cholesky(covariance).T)

    gaussian = Gaussian(jnp.zeros(shape), jnp.full(shape, 1e-4), jnp.eye(*shape))
    jax.block_until_ready(iteration(stream_key(0, "warm"), gaussian))
    began = time.perf_counter()
    for i in range(SAMPLED_ITERATIONS):
        gaussian = iteration(stream_key(0, "sampled", i), gaussian)
    jax.block_until_ready(gaussian)
    return Mixture(jnp.zeros(1), jax.tree.map(lambda leaf: leaf[None], gaussian)), time.perf_counter() - began


def manifold_start() -> dict[str, Any]:
    problem = load_problem(manifold.get_config("quick"))
    corruption: Any = problem.setup.corruption
    observations = jax.tree.map(jnp.asarray, problem.observations)
    judge = log_likelihood(corruption, observations)
    sampled, sampled_seconds = published_way(problem, observations)

    def closed_form(count: int) -> dict[str, float]:
        used = jax.tree.map(lambda leaf: leaf[:count], problem.observations)
        jax.clear_caches()
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            mixture = starts.fit(stream_key(0, "start"), corruption, used, rank=5, iterations=60).mixture
            jax.block_until_ready(mixture)
            seconds.append(time.perf_counter() - began)
        median = float(np.median(seconds[1:]))
        found = {"seconds": median, "seconds_with_compile": seconds[0], "log_likelihood": judge(mixture)}
        return found | {"speedup": sampled_seconds / median}

    fitted = {"fitted to all": closed_form(problem.num_examples), "fitted to 4096": closed_form(4096)}
    found = {"published_seconds": sampled_seconds, "published_log_likelihood": judge(sampled)}
    return {**found, "closed_form": fitted}


def little_seen() -> dict[str, Any]:
    problem = load_problem(digits.get_config("mask90"))
    config, corruption = problem.setup.config, problem.setup.corruption
    observations = jax.tree.map(jnp.asarray, problem.observations)
    truth, indices = np.asarray(problem.truth), jnp.arange(problem.num_examples)
    judge = log_likelihood(corruption, observations)
    draw = jax.jit(em.map_examples(starts.make_start_draw(corruption)))  # type: ignore[arg-type]

    def judged(mixture: Mixture) -> dict[str, float]:
        x = draw(stream_key(config.seed, "draws"), mixture, observations, indices)
        distance = sliced_wasserstein(np.asarray(x), truth, stream_key(config.seed, "directions"))
        return {"log_likelihood": judge(mixture), "sliced_wasserstein": distance.value}

    @jax.jit
    def back_projections(observations: Any) -> Any:
        return jax.vmap(lambda o: corruption.adjoint(corruption.solve_gram(*o, jnp.ones(())), o.operator))(observations)  # type: ignore[attr-defined]

    b = back_projections(observations)
    centred = starts.BackProjection(b.mean(0), b - b.mean(0)[None], jnp.ones(()))
    mixture = starts.initial_gaussian(centred, config.start.rank)
    given = observations, indices, jnp.ones(problem.num_examples)
    fixed: Any = {"variance_floor": config.start.variance_floor, "batch_size": problem.num_examples}
    for i in range(config.start.iterations):
        key = stream_key(config.seed, "plain", i)
        mixture, _ = factor_analysis.em_iteration(key, mixture, *given, corruption=corruption, **fixed)
    shipped = fit_start(problem.setup, problem.observations, lambda line: None, quiet=True)
    return {"as shipped": judged(shipped), "plain": judged(mixture)}


if __name__ == "__main__":
    write("start", {**manifold_start(), "little_seen": little_seen()})
