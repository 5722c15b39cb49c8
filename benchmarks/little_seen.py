"""The Gaussian start where little is seen: the fit that ships against plain EM from the moments of back-projections.

    python -m benchmarks.little_seen

Digits with nine of ten pixels erased, rank 24, at most 40 iterations. Both sides are EM for the same model; the plain one
begins with the mean and the principal axes of A^T (A A^T + noise_std^2 I)^-1 y, as if all of x were seen, and its steps keep
their own length. Judged by the observed log-likelihood per example (higher is better), and by the squared sliced Wasserstein
distance of posterior draws, one an observation, to the hidden truth.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import one_core, write
from configs import digits
from diffem_jax.build.problem import load_problem
from diffem_jax.gaussians import factor_analysis, starts
from diffem_jax.gaussians.gaussians import Mixture, condition_on_observation
from diffem_jax.gaussians.starts import BackProjection, initial_gaussian
from diffem_jax.metrics import sliced_wasserstein
from diffem_jax.run.start import fit_start
from diffem_jax.types import example_keys, stream_key


def main() -> None:
    one_core()
    problem = load_problem(digits.get_config("mask90"))
    config, corruption = problem.setup.config, problem.setup.corruption
    observations = jax.tree.map(jnp.asarray, problem.observations)
    truth, indices = np.asarray(problem.truth), jnp.arange(problem.num_examples)
    draw = starts.make_start_draw(corruption)  # type: ignore[arg-type]

    @jax.jit
    def judge(mixture: Mixture) -> tuple[Any, Any]:
        law = jax.tree.map(lambda leaf: leaf[0], mixture.components)
        each = jax.vmap(lambda o: condition_on_observation(corruption, law, o).log_prob)(observations)  # type: ignore[arg-type]
        keys = example_keys(stream_key(config.seed, "draws"), indices)
        return jnp.mean(each), jax.vmap(draw, (0, None, 0))(keys, mixture, observations)

    def judged(mixture: Mixture) -> dict[str, float]:
        log_likelihood, x = judge(mixture)
        distance = sliced_wasserstein(np.asarray(x), truth, stream_key(config.seed, "directions"))
        return {"log_likelihood": float(log_likelihood), "sliced_wasserstein": distance.value}

    @jax.jit
    def back_projections(observations: Any) -> Any:
        return jax.vmap(lambda o: corruption.adjoint(corruption.solve_gram(*o, jnp.ones(())), o.operator))(observations)  # type: ignore[attr-defined]

    b = back_projections(observations)
    mixture = initial_gaussian(BackProjection(b.mean(0), b - b.mean(0)[None], jnp.ones(())), config.start.rank)
    iterate = factor_analysis.make_em_iteration(corruption, config.start.variance_floor, problem.num_examples)  # type: ignore[arg-type]
    sums, present = factor_analysis.zero_sums(mixture), jnp.ones(problem.num_examples)
    for i in range(config.start.iterations):
        key = stream_key(config.seed, "plain", i)
        mixture, sums, _ = iterate(key, mixture, sums, jnp.ones(()), observations, indices, present)
    shipped = fit_start(problem.setup, problem.observations, lambda line: None, quiet=True)
    write("little_seen", {"digits": {"as shipped": judged(shipped), "plain": judged(mixture)}})


if __name__ == "__main__":
    main()
