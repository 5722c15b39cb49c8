# %% [markdown]
# # The method in two dimensions: watch EM move a distribution
#
# x lies on one of six clusters in the plane. Of each x we see one noisy projection y = a . x + n onto a random direction
# a: a line on which x lies, never the point. From 8,192 such lines EM finds the clusters. Since x has a mixture of
# Gaussians here, the exact posterior p(x | y) is known and stands beside the network's.
#
# About two minutes on two CPU cores.

# %%
import os
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Image, display
from matplotlib.animation import FuncAnimation

import diffem_jax as dx
from diffem_jax.denoisers.losses import BetaMixture, snr_weight
from diffem_jax.metrics import sliced_wasserstein

QUICK = os.environ.get("DIFFEM_COLAB_QUICK") == "1"
COUNT, ROUNDS, UPDATES, BATCH, STEPS = (128, 1, 20, 32, 4) if QUICK else (8192, 12, 600, 512, 64)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The hidden distribution and the observations

# %%
angles = jnp.arange(6) * (2 * jnp.pi / 6)
means = 1.5 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
mixture = dx.Mixture(jnp.full(6, -jnp.log(6.0)), dx.Gaussian(means, jnp.full((6, 2), 0.02), jnp.zeros((6, 0, 2))))
rng = np.random.default_rng(0)
truth = (np.asarray(means)[rng.integers(0, 6, COUNT)] + np.sqrt(0.02) * rng.normal(size=(COUNT, 2))).astype(np.float32)

corruption = dx.Projection(shape=(2,), measurements=1, noise_std=0.05)
keys = jax.random.split(dx.stream_key(0, "data"), COUNT)
observations = jax.jit(jax.vmap(corruption.sample))(keys, truth)

# %% [markdown]
# ## Start, M-step, E-step
#
# The start is a Gaussian fitted by exact EM: it cannot know the clusters. `make_m_step` and `make_e_step` are the whole
# method; everything else here is a loop.

# %%
start = dx.fit(dx.stream_key(0, "start"), corruption, observations, rank=2, iterations=3 if QUICK else 30).mixture
exact_draw = jax.jit(jax.vmap(lambda key, mixture, o: dx.sample_posterior(key, corruption, mixture, o), (0, None, 0)))
x = np.asarray(exact_draw(jax.random.split(dx.stream_key(0, "e_step", 0), COUNT), start, observations))

schedule = dx.VarianceExploding(sigma_min=1e-2, sigma_max=20.0)
network = dx.MLP(features=(16,) if QUICK else (128, 128, 128), embedding=32)
denoiser = dx.posterior_denoiser(network, schedule, corruption, (2,), start)
loss = dx.denoising_loss(denoiser, schedule, corruption, BetaMixture(((2.0, 5.0), (5.0, 2.0))), snr_weight)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-3, UPDATES)))
m_step = jax.jit(dx.make_m_step(loss, optimizer, ema_decay=0.99))

bind = partial(dx.bind, denoiser)
e_step = jax.jit(dx.make_e_step(bind, dx.ddpm(schedule), dx.log_uniform_grid(schedule, STEPS), (2,)))
slots = jnp.tile(jnp.arange(BATCH), (UPDATES, 1))
params = denoiser.init(dx.stream_key(0, "init"))
course = [x]
for number in range(1, ROUNDS + 1):
    state = dx.make_state(params, optimizer)
    batches = x[rng.integers(0, COUNT, (UPDATES, BATCH))]
    state, info = m_step(dx.stream_key(0, "m_step", number), state, batches, slots)
    params = state.params
    x = np.asarray(e_step(dx.stream_key(0, "e_step", number), state.ema_params, observations, jnp.arange(COUNT)))
    course.append(x)
    print(f"round {number}: loss {float(info['loss'].mean()):.3f}")

# %% [markdown]
# ## Round by round
#
# The distance to the hidden points (squared sliced Wasserstein) falls as the reconstructions condense into clusters. `best` is
# the distance that exact posterior draws under the *true* mixture have: no method can be expected to do better.

# %%
distance = [sliced_wasserstein(points, truth, dx.stream_key(0, "distance")).value for points in course]
best = exact_draw(jax.random.split(dx.stream_key(0, "best"), COUNT), mixture, observations)
floor = sliced_wasserstein(np.asarray(best), truth, dx.stream_key(0, "distance")).value
print("rounds:", " ".join(f"{value:.4f}" for value in distance), "| best:", f"{floor:.4f}")

figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.2))


def frame(number):
    for place, points, name in zip(axes, (course[number], truth), (f"round {number}", "hidden truth"), strict=True):
        place.clear()
        place.scatter(points[:4000, 0], points[:4000, 1], s=1, lw=0, color="#1f6fb4")
        place.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), title=name, aspect="equal")


FuncAnimation(figure, frame, frames=len(course)).save(folder / "em.gif", writer="pillow", fps=2, dpi=80)
plt.close(figure)
display(Image(filename=str(folder / "em.gif")))

# %% [markdown]
# ## The exact posterior beside the network's
#
# For three observations: draws of the network after the last round, and exact draws under the true mixture. The grey line
# is what was seen.

# %%
DRAWS = 32 if QUICK else 1000
figure, axes = plt.subplots(2, 3, figsize=(7.2, 5.0), sharex=True, sharey=True)
for column in range(3):
    one = jax.tree.map(lambda a, column=column: jnp.repeat(a[column][None], DRAWS, axis=0), observations)
    learnt = e_step(dx.stream_key(1, "learnt"), state.ema_params, one, jnp.arange(DRAWS))
    exact = exact_draw(jax.random.split(dx.stream_key(1, "exact", column), DRAWS), mixture, one)
    a, y = np.asarray(observations.operator[column][0]), float(observations.y[column][0])
    line = y * a + np.linspace(-4, 4, 2)[:, None] * np.array([-a[1], a[0]])
    for place, points, name in zip(axes[:, column], (learnt, exact), ("network", "exact"), strict=True):
        place.plot(*line.T, color="#999999", lw=0.8)
        place.scatter(*np.asarray(points).T, s=2, lw=0, color="#d1603d")
        place.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), title=name, aspect="equal")
figure.savefig(folder / "posterior.png", dpi=90)
plt.close(figure)
display(Image(filename=str(folder / "posterior.png")))
