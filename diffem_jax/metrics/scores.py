"""How well reconstructions predict observations: a proper score, which needs no clean data."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from diffem_jax.errors import UserError
from diffem_jax.types import Key, Observation

POOL = CHUNK = 64


@functools.partial(jax.jit, static_argnames="observe")
def _scores(observe: Callable[..., Array], keys: Key, observed: Observation, x: Array, at: Array) -> Array:
    def one(key: Key, observation: Observation, at: Array) -> Array:
        pool = x[at]
        made = jax.vmap(observe, in_axes=(0, 0, None))(jax.random.split(key, len(pool)), pool, observation.operator)
        made = made.reshape(len(pool), -1)
        error = jnp.sqrt(jnp.sum((made - observation.y.reshape(1, -1)) ** 2, axis=1))
        # Disjoint pairs: unbiased, and linear in the pool's size.
        pairs = jnp.sqrt(jnp.sum((made[0::2] - made[1::2]) ** 2, axis=1))
        return jnp.mean(error) - 0.5 * jnp.mean(pairs)

    return jax.lax.map(lambda args: one(*args), (keys, observed, at), batch_size=CHUNK)


def observation_scores(
    observe: Callable[..., Array], observed: Observation, x: ArrayLike, key: Key, pool: int = POOL
) -> np.ndarray:
    """The energy score of each observation under fresh corruptions, by its own operator, of other reconstructions.

        s_i = E_j |y'_ij - y_i| - E_jk |y'_ij - y'_ik| / 2,    y'_ij ~ p(y | x_j, operator_i), j and k not i.

    The mean over observations is strictly proper: with enough rows it is least where p(y | operator) is that of the data, for
    every operator. With the same key the scores of two rounds share their randomness and can be compared row by row.

    ``observe`` is (key, x, operator) -> y; of N observations and reconstructions x [N, ...] come N scores, each by ``pool`` of
    the reconstructions, an even number, or fewer where there are fewer.

    Source: Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", section 4.2.
    """
    x = np.asarray(x, np.float32)
    count = len(x)
    pool = min(pool, (count - 1) // 2 * 2)
    if pool < 2 or len(observed.y) != count:
        found = f"{len(observed.y)} observations, {count} reconstructions"
        raise UserError(f"observation_scores: {found}; expected equally many, at least 3")
    pick, noise = jax.random.split(key)
    # Distances that differ from 0 and from each other: no observation meets its own reconstruction.
    shifts = 1 + np.asarray(jax.random.permutation(pick, count - 1))[:pool]
    at = (np.arange(count)[:, None] + shifts) % count
    return np.asarray(_scores(observe, jax.random.split(noise, count), observed, x, at), np.float64)
