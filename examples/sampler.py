"""A sampler: Euler steps on the probability flow, with a little fresh noise before each.

    diffem --config=digits --config.e_step.sampler=examples.sampler:churn --workdir=runs/churn

Source: Karras et al. 2022, arXiv 2206.00364, algorithm 2, without its second-order correction.
"""

import jax
import jax.numpy as jnp

import diffem_jax as dx


def churn(schedule, data_std=1.0, amount=0.3):
    """A sampler that raises the noise level by the factor 1 + amount s / r before a step from r to s, r = sigma / alpha."""

    def init(key, t, shape):
        alpha, sigma = schedule(t)
        return jnp.sqrt((alpha * data_std) ** 2 + sigma**2) * jax.random.normal(key, shape)

    def step(key, x, t, s, denoise):
        (alpha, sigma), (alpha_s, sigma_s) = schedule(t), schedule(s)
        level, next_level = sigma / alpha, sigma_s / alpha_s
        # Never above the level at t = 1: the denoiser was not trained there.
        alpha_1, sigma_1 = schedule(jnp.ones_like(t))
        raised = jnp.minimum(level * (1 + amount * next_level / level), sigma_1 / alpha_1)
        noisier = x / alpha + jnp.sqrt(jnp.maximum(raised**2 - level**2, 0.0)) * jax.random.normal(key, x.shape)
        u = dx.time_at(schedule, raised)
        clean = denoise(schedule(u)[0] * noisier, u)
        return alpha_s * (clean + (next_level / raised) * (noisier - clean)), {"denoised": clean}

    return dx.Sampler(init, step, lambda x, t: x / schedule(t)[0])
