"""The contract of starts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.corruptions import PixelMask
from diffem_jax.gaussians.gaussians import Mixture, condition_on_observation
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.testing.base import finite, law, require
from diffem_jax.types import Observation

COUNT = 256


def check_start(start: Callable[..., Mixture], *, seed: int = 0, **fields: Any) -> None:
    """Checks a start ``(key, corruption, observations [N, ...], **fields) -> Mixture`` on a correlated Gaussian in 6 dimensions.

    Half of the entries are hidden. Checked are: the mixture's shapes; weights that sum to 1, positive variances, finite
    numbers; equal keys fit equally; it explains observations that it was not fitted to better than N(0, I) does, hence
    its exact posterior draws are worth starting from.

    Args:
        start: what a config names.
        seed: of all the keys used.
        **fields: of the section ``start``; those of the default configuration that it takes are given anyhow.

    Raises:
        AssertionError: naming what does not hold.
    """
    shape = (6,)
    corruption: Any = PixelMask(shape=shape, rate=0.5, noise_std=0.1)
    key, rng, gaussian = jax.random.key(seed), np.random.default_rng(seed), law(6)
    shared, own = rng.normal(size=(2 * COUNT, 1)), rng.normal(size=(2 * COUNT, 6))
    x = np.asarray(gaussian.mean) + shared * np.asarray(gaussian.factor) + own * np.sqrt(np.asarray(gaussian.variance))
    mask = rng.random(x.shape) < 0.5
    y = np.where(mask, x + corruption.noise_std * rng.normal(size=x.shape), 0.0)
    observed = Observation(np.float32(y), np.float32(mask))  # type: ignore[arg-type]
    fitted_to = jax.tree.map(lambda a: a[:COUNT], observed)
    held_out = jax.tree.map(lambda a: a[COUNT:], observed)
    accepted = inspect.signature(start).parameters
    usual = {"rank": 2, "components": 2, "iterations": 20, "tolerance": 1e-4, "variance_floor": 1e-4, "report": None}
    every = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    given = {name: value for name, value in usual.items() if every or name in accepted} | fields
    with jax.debug_key_reuse(False):
        mixture, again = (start(key, corruption, fitted_to, **given) for _ in range(2))
    require(
        isinstance(mixture, Mixture) and isinstance(mixture.components, Gaussian),
        f"expected a diffem_jax.Mixture, not a {type(mixture).__name__}",
    )
    weights, (mean, variance, factor) = mixture
    count = len(weights)
    require(mean.shape == (count, *shape), f"mean has shape {mean.shape}; expected {(count, *shape)}")
    require(factor.ndim == 3 and factor.shape[::2] == (count, *shape), f"factor has shape {factor.shape}")
    require(variance.shape in ((count,), mean.shape), f"variance has shape {variance.shape}")
    finite("the mixture", *jax.tree.leaves(mixture))
    require(abs(np.exp(np.asarray(weights)).sum() - 1) < 1e-3, "the weights exp(log_weights) must sum to 1")
    require((np.asarray(variance) > 0).all(), "variances must be positive")
    same = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(mixture), jax.tree.leaves(again), strict=True))
    require(same, "equal keys must fit equally")

    @jax.jit
    def evidence(mixture: Mixture) -> Any:
        def one(observation: Any) -> Any:
            log_probs = jax.vmap(lambda c: condition_on_observation(corruption, c, observation).log_prob)
            return jax.nn.logsumexp(mixture.log_weights + log_probs(mixture.components))

        return jnp.mean(jax.vmap(one)(held_out))

    plain = Mixture(jnp.zeros((1,)), Gaussian(jnp.zeros((1, *shape)), jnp.ones((1, *shape)), jnp.zeros((1, 1, *shape))))
    found, base = float(evidence(mixture)), float(evidence(plain))
    require(found > base, f"log p(y) of new observations is {found:.3f} under it, {base:.3f} under N(0, I)")
