# %% [markdown]
# # Your own sampler, in ten lines
#
# A sampler is three pure functions for one example: `init` draws the noisiest state, `step` goes from time t to s, `final` hands over x. It
# calls `denoise(x, t)`, an estimate of E[x | x_t], and knows nothing else. Here the denoiser is the exact one of a Gaussian mixture,
# so that what is measured is the sampler's own error, against the number of evaluations.
#
# About a minute on two CPU cores.

# %%
import os
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display

import diffem_jax as dx
from diffem_jax.metrics import sliced_wasserstein
from diffem_jax.samplers.samplers import EVALUATIONS, SAMPLERS

QUICK = os.environ.get("DIFFEM_COLAB_QUICK") == "1"
COUNT, BUDGETS = (256, (4, 8)) if QUICK else (8192, (4, 8, 16, 32, 64))
NAMES = ("ddpm", "heun") if QUICK else tuple(SAMPLERS)
folder = Path(tempfile.mkdtemp())


# %% [markdown]
# ## The sampler
#
# A cross between `ddim` and `ddpm`: a share `eta` of the noise in x is replaced by fresh noise at every step.


# %%
def half_fresh(schedule, data_std=1.0, eta=0.5):
    def init(key, t, shape):
        alpha, sigma = schedule(t)
        return jnp.sqrt((alpha * data_std) ** 2 + sigma**2) * jax.random.normal(key, shape)

    def step(key, x, t, s, denoise):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        clean = denoise(x, t)
        direction = (x - alpha_t * clean) / sigma_t
        ratio = (sigma_s * alpha_t) / (sigma_t * alpha_s)
        fresh = eta * jnp.sqrt(1 - ratio**2)
        mixed = jnp.sqrt(1 - fresh**2) * direction + fresh * jax.random.normal(key, x.shape)
        return alpha_s * clean + sigma_s * mixed, {}

    return dx.Sampler(init, step, lambda x, t: x / schedule(t)[0])


# %% [markdown]
# ## Quality against evaluations
#
# Distance of the draws to fresh draws of the distribution, squared sliced Wasserstein; the dotted line is the distance of two sets of exact draws.

# %%
angles = jnp.arange(6) * (2 * jnp.pi / 6)
means = 1.5 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
mixture = dx.Mixture(jnp.full(6, -jnp.log(6.0)), dx.Gaussian(means, jnp.full((6, 2), 0.02), jnp.zeros((6, 0, 2))))
rng = np.random.default_rng(0)


def exact():
    noise = np.sqrt(0.02) * rng.normal(size=(COUNT, 2))
    return (np.asarray(means)[rng.integers(0, 6, COUNT)] + noise).astype(np.float32)


truth = exact()
schedule = dx.VarianceExploding(sigma_min=1e-2, sigma_max=40.0)
denoise = dx.mixture_denoiser(schedule, mixture)
keys = jax.random.split(dx.stream_key(0, "draws"), COUNT)
makers = {name: SAMPLERS[name] for name in NAMES} | {"half_fresh": half_fresh}
results = {}
for name, make in makers.items():
    cost = EVALUATIONS.get(name, 1)
    for budget in BUDGETS:
        times = dx.log_uniform_grid(schedule, budget // cost)
        one = partial(dx.sample, sampler=make(schedule), denoise=denoise, times=times, shape=(2,))
        draws = np.asarray(jax.jit(jax.vmap(one))(keys))
        error = sliced_wasserstein(draws, truth, dx.stream_key(0, "distance")).value
        results.setdefault(name, []).append(float(error))
    print(f"{name:13}", " ".join(f"{error:.5f}" for error in results[name]))
floor = float(sliced_wasserstein(exact(), truth, dx.stream_key(0, "distance")).value)
print(f"{'exact draws':13} {floor:.5f}")

# %%
figure, axes = plt.subplots(figsize=(5, 3.4))
for name, errors in results.items():
    axes.loglog(BUDGETS, errors, marker="o", ms=3, lw=2.2 if name == "half_fresh" else 1, label=name)
axes.axhline(floor, color="#888888", ls=":", lw=1)
axes.set(xlabel="evaluations of the denoiser", ylabel="distance to the distribution")
axes.legend(fontsize=7)
figure.tight_layout()
figure.savefig(folder / "samplers.png", dpi=90)
plt.close(figure)
display(Image(filename=str(folder / "samplers.png")))

# %% [markdown]
# To train with it: `config.e_step.sampler = "mymodule:half_fresh"`.
