"""DiffEM in under 30 lines: train on digits of which half of the pixels are erased, draw what is missing."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import diffem_jax as dx

ROUNDS, STEPS, BATCH = 2, 100, 64
truth = jnp.asarray(load_digits().images[:256] / 4 - 2, jnp.float32).reshape(256, 64)
mask = dx.PixelMask(shape=(64,), rate=0.5, noise_std=0.01)
indices = jnp.arange(len(truth))
seen = jax.vmap(mask.sample)(jax.random.split(dx.stream_key(0, "data"), len(truth)), truth)
start = dx.fit(dx.stream_key(0, "start"), mask, seen, rank=4, iterations=5).mixture
x = jax.vmap(lambda k, o: dx.sample_posterior(k, mask, start, o))(jax.random.split(jax.random.key(1), len(truth)), seen)
schedule, optimizer = dx.VarianceExploding(), optax.adam(1e-3)
denoiser = dx.posterior_denoiser(dx.MLP((128,)), schedule, mask, (64,), start)
loss = dx.denoising_loss(denoiser, schedule, mask, dx.BetaMixture(), dx.snr_weight)
m_step = jax.jit(dx.make_m_step(loss, optimizer, ema_decay=0.99))
times = dx.log_uniform_grid(schedule, 16)
e_step = jax.jit(dx.make_e_step(lambda p, o: dx.bind(denoiser, p, o), dx.ddpm(schedule), times, (64,)))
state = dx.make_state(denoiser.init(dx.stream_key(0, "init")), optimizer)
for number in range(1, ROUNDS + 1):
    rows = jax.random.randint(dx.stream_key(0, "rows", number), (STEPS, BATCH), 0, len(x))
    state, info = m_step(dx.stream_key(0, "m_step", number), state, x[rows], jnp.tile(jnp.arange(BATCH), (STEPS, 1)))
    x = e_step(dx.stream_key(0, "e_step", number), state.ema_params, seen, indices)
    print(f"round {number}: loss {info['loss'].mean():.3f}, error {jnp.sqrt(jnp.mean((x - truth) ** 2)):.3f}")
