"""The contract of corruptions."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.corruptions import AdditiveNoise
from diffem_jax.testing.base import require
from diffem_jax.types import Corruption, Observation, PyTree


def check_corruption(corruption: Corruption, *, seed: int = 0, samples: int = 512, dense_limit: int = 1024) -> None:
    """Checks that a corruption keeps the contract of ``diffem_jax.types.Corruption``, or of ``LinearCorruption``.

    Checked are: hashing and equality; shapes, ``jit`` and ``vmap``; determinism, and different operators for different
    keys (unless ``corruption.random_operator`` is False); mean and variance of y, and the independence of the noise of
    neighbouring entries; what ``hold_out`` takes, where it can; that neither hidden entries of x nor unmeasured
    entries of y, replaced by NaN, change anything; the condition's spatial shape. For linear ones: adjointness,
    ``solve_gram``, its derivatives and ``log_det_gram`` against dense matrices.

    Use a small shape: the dense matrices have as many columns as x has entries.

    Args:
        corruption: the instance to check.
        seed: of all the keys used.
        samples: how many observations the statistical checks draw.
        dense_limit: the checks against dense matrices are left out where y is larger than this.

    Raises:
        AssertionError: naming what does not hold.
    """
    base = "inherit from diffem_jax.corruptions.AdditiveNoise, or from Linear where y = A x + n: what you do not write has its default there"
    require(isinstance(corruption, AdditiveNoise), f"{type(corruption).__name__} must {base}")
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(corruption.shape, np.float32).clip(-1.95, 1.95)
    observation = _check_draws(corruption, x, jax.random.key(seed), samples)
    if corruption.can_hold_out:
        _check_hold_out(corruption, x, observation, jax.random.key(seed))
    if not corruption.is_linear:
        return
    _check_linear(corruption, observation.operator, rng)
    if observation.y.size <= dense_limit:
        _check_dense(corruption, observation.operator, rng)


def _check_hold_out(corruption: Any, x: np.ndarray, observation: Observation, key: jax.Array) -> None:
    """What is held back was measured, is not in what is left, and the rest is as it was."""
    taken = 0
    for one in jax.random.split(key, 16):
        left, held = jax.jit(corruption.hold_out, static_argnums=2)(one, observation, 0.3)
        seen = np.broadcast_to(np.asarray(corruption.observed(observation.operator)), observation.y.shape)
        held = np.asarray(held)
        require(held.shape == seen.shape and not (held & ~seen).any(), "hold_out must hold back what was measured")
        require(not np.asarray(left.y)[held].any(), "what hold_out holds back must be 0 in the y that is left")
        spoiled = observation._replace(y=jnp.where(held, jnp.nan, observation.y))
        again, _ = corruption.hold_out(jax.random.clone(one), spoiled, 0.3)
        require(_equal(again, left), "what is left must not depend on what is held back")
        kept = np.where(held, 0.0, corruption.forward(x, observation.operator))
        require(
            np.allclose(corruption.forward(x, left.operator), kept, atol=1e-5), "the operator left must be the rest"
        )
        taken += int(held.sum())
    require(taken > 0, "hold_out never holds anything back")


def _equal(a: PyTree, b: PyTree) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(p), np.asarray(q), equal_nan=True) for p, q in leaves)


class _Draw(NamedTuple):
    observation: Observation
    condition: Any
    clean: Any
    variance: Any
    observed: Any


def _check_draws(corruption: Any, x: np.ndarray, key: jax.Array, samples: int) -> Observation:
    """All that can be seen from draws of observations; yields one of them."""
    twin = copy.copy(corruption)
    require(len({twin, corruption}) == 1, "equal instances must hash and compare equal")

    def draw(key: jax.Array, x: jax.Array) -> _Draw:
        observation = corruption.sample(key, x)
        variance = corruption.noise_variance(x, observation.operator)
        observed = corruption.observed(observation.operator)
        shape = observation.y.shape
        return _Draw(
            observation,
            corruption.condition(observation),
            corruption.forward(x, observation.operator),
            jnp.broadcast_to(jnp.asarray(variance, jnp.float32), shape),
            jnp.broadcast_to(jnp.asarray(observed), shape),
        )

    keys = jax.random.split(key, samples)
    with jax.debug_key_reuse(True):
        single = jax.jit(draw)
        single(jax.random.clone(keys[0]), x)
    # Determinism is seen by using a key twice.
    with jax.debug_key_reuse(False):
        batched = jax.jit(jax.vmap(draw, (0, None)))
        batch, again = (jax.tree.map(np.asarray, batched(keys, x)) for _ in range(2))
        one = jax.tree.map(np.asarray, single(keys[0], x))
        require(_equal(batch, again), "the same keys must draw the same observations")
        for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(one), strict=True):
            require(a[0].shape == b.shape, f"vmap changes a shape: {a[0].shape}, {b.shape}")
            require(np.allclose(a[0], b, atol=1e-4), "vmap and a single call must draw the same observation")
        _check_shapes(corruption, batch)
        _check_noise(batch)
        spoil = None
        if corruption.is_linear:

            def spoil(hidden: np.ndarray) -> Observation:
                return single(keys[0], np.where(hidden, np.float32(np.nan), x)).observation

        _check_leaks(corruption, one, spoil)
    return one.observation


def _check_shapes(corruption: Any, batch: _Draw) -> None:
    observation, condition = batch.observation, batch.condition
    y, clean = observation.y, batch.clean
    require(y.dtype == np.float32, f"y must be float32, is {y.dtype}")
    require(clean.shape == y.shape, f"forward yields {clean.shape[1:]}, sample {y.shape[1:]}")
    operators = jax.tree.leaves(observation.operator)
    if operators and corruption.random_operator:
        require(any(not np.array_equal(a[0], b) for a in operators for b in a[1:]), "all keys draw the same operator")
    require(bool(np.isfinite(condition).all()), "the condition must be finite")
    spatial, rank = corruption.shape[:-1], len(corruption.shape)
    require(
        condition.ndim == rank + 1 and condition.shape[1:-1] == spatial,
        f"the condition's shape {condition.shape[1:]} must be {spatial} and channels",
    )


def _check_noise(batch: _Draw) -> None:
    """Mean, variance and correlation of y - A x, scaled by the stated standard deviation."""
    rest, variance = batch.observation.y - batch.clean, batch.variance
    require(not rest[~batch.observed].any(), "y must be 0 where nothing is observed")
    if not (variance > 0).any():
        require(np.abs(rest).max() < 1e-5, "without noise y must be A(x)")
        return
    samples, seen = len(rest), batch.observed.reshape(len(rest), -1)
    scaled = np.where(batch.observed, rest.astype(float) / np.sqrt(variance.astype(float)), 0.0).reshape(samples, -1)
    count = seen.sum()
    require(count > 0, "nothing is ever observed")
    mean, second = scaled.sum() / count, (scaled**2).sum() / count
    spread = max(2.0, (scaled**4).sum() / count - second**2)
    require(abs(mean) < 5 / np.sqrt(count), f"the mean of y - A x is {mean:.4f} standard deviations, not 0")
    require(
        abs(second - 1) < 5 * np.sqrt(spread / count) + 1e-3, f"the variance of y is {second:.4f} times the stated one"
    )
    for lag in {1, rest.shape[-1], rest.shape[-1] * (rest.shape[-2] if rest.ndim > 2 else 1)}:
        if 0 < lag < scaled.shape[1]:
            both = (seen[:, lag:] & seen[:, :-lag]).sum()
            product = (scaled[:, lag:] * scaled[:, :-lag]).sum() / max(both, 1)
            require(both == 0 or abs(product) < 5 / np.sqrt(both) + 1e-3, f"noise {lag} entries apart is correlated")


def _check_leaks(corruption: Any, one: _Draw, spoil: Any) -> None:
    """NaN in hidden entries of x must not reach y; NaN in unmeasured entries of y must not reach anything.

    ``spoil`` draws the same observation with NaN in the given entries of x; None for nonlinear corruptions, where the
    entries of x that are hidden cannot be told.
    """
    observation, missing = one.observation, ~one.observed

    @jax.jit
    def use(y: jax.Array, operator: PyTree) -> dict[str, jax.Array]:
        uses = {"the condition": corruption.condition(Observation(y, operator))}
        if spoil is not None:
            uses["the adjoint"] = corruption.adjoint(y, operator)
            uses["solve_gram"] = corruption.solve_gram(y, operator, jnp.ones(()))
        return uses

    if spoil is not None:
        probe = np.random.default_rng(0).standard_normal(missing.shape, np.float32)
        hidden = np.asarray(use(probe, observation.operator)["the adjoint"]) == 0
        if hidden.any():
            require(_equal(spoil(hidden), observation), "hidden entries of x leak into the observation")
    if missing.any():
        right = use(*observation)
        spoiled = use(np.where(missing, np.float32(np.nan), observation.y), observation.operator)
        for name in right:
            require(_equal(right[name], spoiled[name]), f"unmeasured entries of y leak into {name}")


def _check_linear(corruption: Any, operator: PyTree, rng: np.random.Generator) -> None:
    x, z = (rng.standard_normal(corruption.shape, np.float32) for _ in range(2))
    y = rng.standard_normal(jax.eval_shape(corruption.forward, x, operator).shape, np.float32)

    @jax.jit
    def run(x: jax.Array, z: jax.Array, y: jax.Array, operator: PyTree) -> tuple[jax.Array, jax.Array]:
        images = jnp.stack([x, z, x + 2 * z])
        return jax.vmap(lambda x: corruption.forward(x, operator))(images), corruption.adjoint(y, operator)

    (ax, az, both), back = map(np.asarray, run(x, z, y, operator))
    require(back.shape == corruption.shape, f"the adjoint's shape is {back.shape}, not {corruption.shape}")
    require(np.allclose(both, ax + 2 * az, atol=1e-4), "forward must be linear")
    left, right = np.vdot(ax, y), np.vdot(x, back)
    require(
        abs(left - right) < 1e-5 * np.linalg.norm(x) * np.linalg.norm(y), f"<A x, y> = {left} but <x, A^T y> = {right}"
    )


def _check_dense(corruption: Any, operator: PyTree, rng: np.random.Generator) -> None:
    """solve_gram, its derivatives and log_det_gram against double-precision dense matrices, with noise_std 0.3 where it can be set."""
    corruption = dataclasses.replace(corruption, noise_std=0.3)
    y_shape = jax.eval_shape(corruption.forward, jnp.zeros(corruption.shape), operator).shape
    seen = np.broadcast_to(np.asarray(corruption.observed(operator)), y_shape)
    level = float(corruption.noise_level(operator))
    r, w = (np.where(seen, rng.standard_normal(y_shape, np.float32), np.float32(0.0)) for _ in range(2))
    scales = {
        "a scalar": np.asarray(0.7, np.float32),
        "an array": rng.uniform(0.5, 1.5, corruption.shape).astype(np.float32),
    }

    def projected(r: jax.Array, v: jax.Array, operator: PyTree) -> jax.Array:
        return jnp.vdot(w, corruption.solve_gram(r, operator, v))

    @jax.jit
    def run(r: jax.Array, operator: PyTree, scales: dict[str, jax.Array]) -> tuple[jax.Array, dict, dict, dict, list]:
        basis = jnp.eye(math.prod(corruption.shape)).reshape(-1, *corruption.shape)
        columns = jax.vmap(lambda x: corruption.forward(x, operator))(basis)
        solutions = {name: corruption.solve_gram(r, operator, v) for name, v in scales.items()}
        gradients = {name: jax.grad(projected, (0, 1))(r, v, operator) for name, v in scales.items()}
        log_dets = {name: corruption.log_det_gram(operator, v) for name, v in scales.items()}
        factors = jnp.array([1e-6, 1e-3, 1e3])
        wide = [
            jax.vmap(lambda f, v=v: jax.grad(projected, (0, 1))(r, f * v, operator))(factors) for v in scales.values()
        ]
        return columns, solutions, gradients, log_dets, wide

    columns, solutions, gradients, log_dets, wide = run(r, operator, scales)
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(wide))
    require(finite, "the derivative of solve_gram must be finite for v from 1e-6 to 1e3")
    flat = seen.reshape(-1)
    a = np.asarray(columns, np.float64).reshape(len(columns), -1).T[flat]
    for name, v in scales.items():
        gram = (a * np.broadcast_to(v, corruption.shape).reshape(-1)) @ a.T + level**2 * np.eye(len(a))
        truth, dual = np.linalg.solve(gram, np.stack([r.reshape(-1)[flat], w.reshape(-1)[flat]], 1)).T
        slope = -((a.T @ truth) * (a.T @ dual)).reshape(corruption.shape)
        by_r, by_v = gradients[name]
        pairs = {
            "solve_gram": (solutions[name], truth),
            "the derivative of solve_gram in r": (by_r, dual),
            "the derivative of solve_gram in v": (by_v, slope if np.ndim(v) else slope.sum()),
        }
        for what, (found, right) in pairs.items():
            found = np.asarray(found, np.float64).reshape(-1)
            found = found[flat] if right is truth or right is dual else found
            error = np.linalg.norm(found - np.ravel(right)) / max(float(np.linalg.norm(right)), 1e-3)
            require(error < 1e-3, f"{what} for {name} v is off by {error:.1e} of the dense solution")
        require(
            not np.asarray(solutions[name]).reshape(-1)[~flat].any(), "solve_gram must be 0 where nothing is observed"
        )
        log_det, dense = float(log_dets[name]), np.linalg.slogdet(gram)[1]
        require(
            abs(log_det - dense) < 1e-4 * (len(a) + abs(dense)),
            f"log_det_gram for {name} v is {log_det}, the dense matrix has {dense}",
        )
