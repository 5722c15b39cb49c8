"""The denoising loss of one example, the distributions of t and the weights in it.

E lambda(t) |d(alpha x + sigma z, t | y') - x|^2,  lambda = (alpha/sigma)^2 + 1/s^2,  y' ~ p(y | x) drawn afresh

with s the standard deviation of x (``data_std``).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.denoisers.denoiser import Denoiser
from diffem_jax.denoisers.posterior import open_part
from diffem_jax.samplers.schedules import time_at
from diffem_jax.types import Corruption, Key, Observation, PyTree, Schedule, TimeLaw


@dataclasses.dataclass(frozen=True)
class Uniform:
    """t ~ U(0, 1)."""

    def sample(self, key: Key) -> Array:
        """One t."""
        return jax.random.uniform(key)


@dataclasses.dataclass(frozen=True)
class BetaMixture:
    """t ~ an even mixture of Beta(a, b) distributions.

    ``components`` are the pairs (a, b). Published (arXiv 2510.12691): ((3, 3),) for images, ((2, 5), (5, 2)) for the manifold,
    where the text says Beta(3.5, 1.5) and the runs used the mixture.
    """

    components: tuple[tuple[float, float], ...] = ((3.0, 3.0),)

    def sample(self, key: Key) -> Array:
        """One t."""
        from scipy import stats  # here, since it takes long to import

        choice_key, beta_key = jax.random.split(key)
        levels = np.linspace(0.0, 1.0, 1025)
        table = jnp.asarray(np.stack([stats.beta.ppf(levels, a, b) for a, b in self.components]), jnp.float32)
        row = jax.random.randint(choice_key, (), 0, len(self.components))
        # A tabulated inverse distribution function: jax.random.beta's loop costs more than a small network's update.
        u = jax.random.uniform(beta_key) * (table.shape[1] - 1)
        floor = jnp.floor(u)
        low, frac = floor.astype(jnp.int32), u - floor
        return table[row, low] * (1 - frac) + table[row, jnp.minimum(low + 1, table.shape[1] - 1)] * frac


@dataclasses.dataclass(frozen=True)
class LogNormal:
    """log sigma ~ N(mean, std^2), clipped to the schedule's range.

    Source: Karras et al. 2022, arXiv 2206.00364, table 1 (mean -1.2, std 1.2).
    """

    schedule: Schedule
    mean: float = -1.2
    std: float = 1.2

    def sample(self, key: Key) -> Array:
        """One t."""
        return time_at(self.schedule, jnp.exp(self.mean + self.std * jax.random.normal(key)))


TIME_LAWS: dict[str, Callable[..., TimeLaw]] = {"uniform": Uniform, "beta": BetaMixture, "log_normal": LogNormal}


def snr_weight(sigma: Array, data_std: float) -> Array:
    """1 / sigma^2 + 1 / data_std^2 for sigma = sigma_t / alpha_t: the published weight (data_std = 1).

    It is also the inverse variance of x given x_t under N(mu, data_std^2 I).

    Source: Hosseintabar et al. 2025, arXiv 2510.12691; Karras et al. 2022, arXiv 2206.00364, equation 8.
    """
    return 1 / sigma**2 + 1 / data_std**2


LOSS_WEIGHTS: dict[str, Callable[..., Array]] = {"snr": snr_weight}


class Example(NamedTuple):
    """x with the operators that a loss may want: ``operator`` for the fresh y', ``own`` of the observation that x was drawn for."""

    x: Array
    operator: PyTree = None
    own: PyTree = None


def denoising_loss(
    denoiser: Denoiser,
    schedule: Schedule,
    corruption: Corruption | None,
    time_law: TimeLaw,
    weight: Callable[[Array, float], Array] | None,
    *,
    condition_dropout: float = 0.0,
    data_std: float = 1.0,
    augment: Callable[[Key, Array], Array] | None = None,
    operators: str = "law",
    hidden_weight: float = 1.0,
) -> Callable[[PyTree, Key, PyTree], Array]:
    """The loss of one example: weight(sigma) mean |d(alpha x + sigma z, t | y') - x|^2 with a fresh y' ~ p(y | x).

    It is (params, key, x [*X]) -> loss []. A ``corruption`` of None trains the prior, without an observation. With a
    ``hidden_weight`` h < 1 and the operator A of x's own observation the error e = d - x counts as e^T (h + (1 - h) Q) e,
    Q = A^T (A A^T + noise_std^2 I)^-1 A: the measured part of e has weight 1, the part that the last E-step made up has weight
    h. Operators do not depend on x, so that the true posterior is a fixed point of EM whatever h is, but only the share h of
    an E-step's error reaches the next round (docs/theory.md).

    Args beyond those of the formula:
        weight: (sigma / alpha, data_std) -> weight; None weighs by 1 / ``denoiser.variance``, averaged over coordinates, so
            that the loss at each noise level is relative to the variance that the base leaves open there.
        condition_dropout: the probability that the observation is ignored, which trains the prior with the same network.
        augment: (key, x) -> x, applied before the corruption, so that x and y' belong together.
        operators: where that of y' comes from: 'law' draws it as the corruption does, 'data' takes it from an ``Example``.
        hidden_weight: h above, of linear corruptions; below 1 the example is an ``Example`` with ``own``.

    Source: Hosseintabar et al. 2025, arXiv 2510.12691, algorithm 1.
    """
    given, one = operators == "data" and corruption is not None, jnp.ones(())

    def observe(key: Key, x: Array, operator: PyTree) -> PyTree:
        """The context of a fresh observation, or None."""
        if corruption is None:
            return None
        if given:
            return denoiser.prepare(Observation(corruption.observe(key, x, operator), operator))
        return denoiser.prepare(corruption.sample(key, x))

    def denoise(params: PyTree, context: PyTree, seen: Array, x_t: Array, t: Array, dropout: Key) -> Array:
        if corruption is None:
            return denoiser.prior(params, x_t, t, dropout)
        if condition_dropout == 0:
            return denoiser.posterior(params, context, x_t, t, dropout)
        return denoiser.either(params, context, seen, x_t, t, dropout)

    def left_open(context: PyTree, seen: Array, t: Array) -> Array:
        """The average variance that the base leaves open, []."""
        variance = jnp.mean(denoiser.variance(t, context))
        if corruption is None or condition_dropout == 0:
            return variance
        return jnp.where(seen, variance, jnp.mean(denoiser.variance(t, None)))

    def loss(params: PyTree, key: Key, example: PyTree) -> Array:
        keys = jax.random.split(key, 6)
        x, operator, own = example if isinstance(example, Example) else Example(example)
        if augment is not None:
            x = augment(keys[5], x)
        context = observe(keys[0], x, operator)
        seen = jax.random.bernoulli(keys[3], 1 - condition_dropout)
        t = time_law.sample(keys[1])
        alpha, sigma = schedule(t)
        x_t = alpha * x + sigma * jax.random.normal(keys[2], x.shape)
        error = denoise(params, context, seen, x_t, t, keys[4]) - x
        counted = error
        if hidden_weight < 1:
            counted = error - (1 - hidden_weight) * open_part(corruption, own, one, error)  # type: ignore[arg-type]
        scale = 1 / left_open(context, seen, t) if weight is None else weight(sigma / alpha, data_std)
        return jnp.mean(error * counted) * scale

    return loss
