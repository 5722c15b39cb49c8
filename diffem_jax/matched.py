"""The law of t matched to the loss: how large the weighted loss is at each noise level, told by the fitted start.

The untrained network cannot say: with 'edm' and the published weight its loss is that of x-hat = c_skip x_t, 1 at every
level for data of the assumed spread, however much of it a network could remove. What stays after training is
E |E[x | x_t, y] - x|^2, and the start has that conditional mean in closed form; for the base 'start' it is the untrained
denoiser itself. Under ``loss_weight`` 'base' this is about 1 everywhere, by that weight's construction: the law is then
nearly its base, and nothing is gained.

The variance that is least is that of the loss; its gradient's also depends on how the network's output is scaled. With 'edm'
a network that is far from trained has another loss than the start's, and the law is not matched to it. No gain in quality
was measured (``python -m benchmarks.time_laws``), which is why it is not the default.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax import schedules
from diffem_jax.build import Setup, is_unconditional, make_model
from diffem_jax.gaussians import Mixture, mixture_posterior_mean, sample_gaussian
from diffem_jax.parallel import agree
from diffem_jax.types import Key, LinearCorruption, UserError, stream_key

LEVELS, EXAMPLES = 33, 128


def settle(setup: Setup, start: Mixture) -> Setup:
    """The setup with its law of t: for ``m_step.time_law`` 'matched' the measured one, else as it is.

    The table follows from the seed and the start alone, both of which a resumed run has; the first process's holds for all,
    and sizes are rounded to three digits, so that other devices give the same one. All processes call it.

    Raises:
        UserError: the start leaves no loss, or one that is not finite.
    """
    config = setup.config
    if config.m_step.time_law != "matched":
        return setup
    key = stream_key(config.seed, "time_law")
    sizes = tuple(float(f"{size:.3g}") for size in agree(np.asarray(loss_sizes(key, setup, start))))
    base = setup.time_law
    assert isinstance(base, schedules.BetaMixture)
    try:
        return setup._replace(time_law=schedules.Matched(base, sizes))
    except ValueError as error:
        raise UserError(
            f"config.m_step.time_law: 'matched'; expected a finite loss of the fitted start ({error}); use 'beta'"
        ) from error


def loss_sizes(key: Key, setup: Setup, start: Mixture, examples: int = EXAMPLES) -> Array:
    """sqrt(E[(weight |E[x | x_t, y'] - x|^2)^2]) at ``LEVELS`` equally spaced t, [LEVELS], with x and E of the start.

    Args:
        key: of x, y' and the noise, the same ones at every level, so that sizes can be compared.
        setup: corruption, schedule and loss weight; its own law of t plays no part.
        start: the fitted start.
        examples: draws that the mean is over.
    """
    config = setup.config
    corruption: LinearCorruption | None = None if is_unconditional(config) else setup.corruption  # type: ignore[assignment]
    weight = schedules.LOSS_WEIGHTS.get(config.m_step.loss_weight)
    denoiser = make_model(setup, start).denoiser if weight is None else None

    def one(key: Key, t: Array, start: Mixture) -> Array:
        choice_key, x_key, y_key, noise_key = jax.random.split(key, 4)
        choice = jax.random.categorical(choice_key, start.log_weights)
        x = sample_gaussian(x_key, jax.tree.map(lambda leaf: leaf[choice], start.components))
        observation = None if corruption is None else corruption.sample(y_key, x)
        alpha, sigma = setup.schedule(t)
        x_t = alpha * x + sigma * jax.random.normal(noise_key, x.shape)
        error = jnp.mean((mixture_posterior_mean(corruption, start, x_t, alpha, sigma, observation) - x) ** 2)
        if weight is not None:
            return weight(sigma / alpha, config.denoiser.sigma_data) * error
        assert denoiser is not None and denoiser.open_variance is not None and observation is not None
        return error / denoiser.open_variance(t, denoiser.prepare(observation), 1.0)

    @jax.jit
    def sizes(key: Key, start: Mixture) -> Array:
        keys = jax.random.split(key, examples)

        def at(t: Array) -> Array:
            return jnp.sqrt(jnp.mean(jax.vmap(one, (0, None, None))(jax.random.clone(keys), t, start) ** 2))

        return jax.lax.map(at, jnp.linspace(0.0, 1.0, LEVELS))

    return sizes(key, start)
