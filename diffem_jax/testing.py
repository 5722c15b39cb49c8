"""Contract tests that anyone can call on a corruption of their own."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.types import Corruption, Key, Observation, PyTree


def check_corruption(corruption: Corruption, *, seed: int = 0, samples: int = 512, dense_limit: int = 4096) -> None:
    """Checks that a corruption keeps the contract of ``diffem_jax.types.Corruption``, or of ``LinearCorruption``.

    Checked are: hashing and equality; shapes, ``jit`` and ``vmap``; determinism, and different operators for different
    keys (unless ``corruption.random_operator`` is False); mean and variance of y, and the independence of the noise of
    neighbouring entries; that neither hidden entries of x nor unmeasured entries of y, replaced by NaN, change
    anything; the condition's spatial shape. For linear ones: adjointness, ``solve_gram`` and ``log_det_gram`` against
    dense matrices, and that the null operator observes nothing.

    Use a small shape: the dense matrices have as many columns as x has entries.

    Args:
        corruption: the instance to check.
        seed: of all the keys used.
        samples: how many observations the statistical checks draw.
        dense_limit: the checks against dense matrices are left out where y is larger than this.

    Raises:
        AssertionError: naming what does not hold.
    """
    with jax.debug_key_reuse(True):
        jax.jit(corruption.sample)(jax.random.key(seed), jnp.zeros(corruption.shape))
    # Determinism is seen by using a key twice.
    with jax.debug_key_reuse(False):
        _check_all(corruption, jax.random.split(jax.random.key(seed), 8), samples, dense_limit)


def _check_all(corruption: Any, keys: Key, samples: int, dense_limit: int) -> None:
    x = jnp.clip(jax.random.normal(keys[0], corruption.shape), -1.95, 1.95)
    _check_basics(corruption, keys[1], x)
    _check_noise(corruption, keys[2], x, samples)
    _check_leaks(corruption, keys[3], x)
    if _is_linear(corruption):
        _check_linear(corruption, keys[4], keys[5])
        y_size = math.prod(jax.eval_shape(corruption.sample, keys[1], x).y.shape)
        if y_size <= dense_limit:
            _check_dense(corruption, keys[6], keys[7])


def _require(holds: Any, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def _equal(a: PyTree, b: PyTree) -> bool:
    return all(
        np.array_equal(p, q, equal_nan=True) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def _check_basics(corruption: Any, key: Key, x: jax.Array) -> None:
    twin = copy.copy(corruption)
    _require(hash(twin) == hash(corruption) and twin == corruption, "equal instances must hash and compare equal")

    def draw(key: Key) -> tuple[Observation, jax.Array, jax.Array]:
        observation = corruption.sample(key, x)
        return observation, corruption.condition(observation), corruption.forward(x, observation.operator)

    batch = jax.random.split(key, 4)
    batched = jax.jit(jax.vmap(draw))
    out, again = (jax.tree.map(np.asarray, batched(batch)) for _ in range(2))
    _require(_equal(out, again), "the same keys must draw the same observations")
    single = jax.tree.map(np.asarray, jax.jit(draw)(batch[1]))
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(single), strict=True):
        _require(a[1].shape == b.shape, f"vmap changes a shape: {a[1].shape}, {b.shape}")
        _require(np.allclose(a[1], b, atol=1e-4), "vmap and a single call must draw the same observation")
    observation, condition, forward = out
    _require(observation.y.dtype == np.float32, f"y must be float32, is {observation.y.dtype}")
    _require(forward.shape == observation.y.shape, f"forward yields {forward.shape}, sample {observation.y.shape}")
    operators = jax.tree.leaves(observation.operator)
    if operators and getattr(corruption, "random_operator", True):
        _require(any(not np.array_equal(a[0], b) for a in operators for b in a[1:]), "all keys draw the same operator")
    _require(bool(np.isfinite(condition).all()), "the condition must be finite")
    spatial, rank = corruption.shape[:-1], len(corruption.shape)
    _require(
        condition.ndim == rank + 1 and condition.shape[1:-1] == spatial,
        f"the condition's shape {condition.shape[1:]} must be {spatial} and channels",
    )


def _check_noise(corruption: Any, key: Key, x: jax.Array, samples: int) -> None:
    """Mean, variance and correlation of y - A x, scaled by the stated standard deviation."""

    def residual(key: Key) -> tuple[jax.Array, jax.Array]:
        y, operator = corruption.sample(key, x)
        variance = corruption.noise_std**2
        if hasattr(corruption, "noise_variance"):
            variance = corruption.noise_variance(x, operator)
        return y - corruption.forward(x, operator), jnp.broadcast_to(variance, y.shape)

    rest, variance = jax.jit(jax.vmap(residual))(jax.random.split(key, samples))
    if not bool((variance > 0).any()):
        _require(np.abs(rest).max() < 1e-5, "without noise y must be A(x)")
        return
    scaled = np.asarray(rest, np.float64) / np.sqrt(np.asarray(variance, np.float64))
    seen = scaled != 0
    scaled, seen = scaled.reshape(samples, -1), seen.reshape(samples, -1)
    count = seen.sum()
    _require(count > 0, "nothing is ever observed")
    mean, second = scaled.sum() / count, (scaled**2).sum() / count
    spread = max(2.0, ((scaled**4).sum() / count) - second**2)
    _require(abs(mean) < 5 / np.sqrt(count), f"the mean of y - A x is {mean:.4f} standard deviations, not 0")
    _require(
        abs(second - 1) < 5 * np.sqrt(spread / count) + 1e-3, f"the variance of y is {second:.4f} times the stated one"
    )
    for lag in {1, rest.shape[-1], rest.shape[-1] * (rest.shape[-2] if rest.ndim > 2 else 1)}:
        if 0 < lag < scaled.shape[1]:
            both = (seen[:, lag:] & seen[:, :-lag]).sum()
            product = (scaled[:, lag:] * scaled[:, :-lag]).sum() / max(both, 1)
            _require(both == 0 or abs(product) < 5 / np.sqrt(both) + 1e-3, f"noise {lag} entries apart is correlated")


def _check_leaks(corruption: Any, key: Key, x: jax.Array) -> None:
    """NaN in hidden entries of x must not reach y; NaN in unmeasured entries of y must not reach anything."""
    sample_key, probe_key = jax.random.split(key)
    sample = jax.jit(corruption.sample)
    observation = sample(sample_key, x)

    def use(observation: Observation) -> dict[str, jax.Array]:
        uses = {"the condition": corruption.condition(observation)}
        if _is_linear(corruption):
            uses["the adjoint"] = corruption.adjoint(*observation)
            uses["solve_gram"] = corruption.solve_gram(*observation, jnp.ones(()))
        return uses

    if _is_linear(corruption):
        probe = observation._replace(y=jax.random.normal(probe_key, observation.y.shape))
        hidden = np.asarray(jax.jit(corruption.adjoint)(*probe)) == 0
        if hidden.any():
            spoiled = sample(sample_key, jnp.asarray(np.where(hidden, np.nan, x)))
            _require(_equal(spoiled, observation), "hidden entries of x leak into the observation")
    if hasattr(corruption, "observed"):
        missing = ~np.broadcast_to(np.asarray(corruption.observed(observation.operator)), observation.y.shape)
        if missing.any():
            y = np.asarray(observation.y)
            _require(not y[missing].any(), "y must be 0 where nothing is observed")
            used = jax.jit(use)
            right, spoiled = used(observation), used(observation._replace(y=jnp.asarray(np.where(missing, np.nan, y))))
            for name in right:
                _require(_equal(right[name], spoiled[name]), f"unmeasured entries of y leak into {name}")


def _is_linear(corruption: Any) -> bool:
    return hasattr(corruption, "adjoint") and hasattr(corruption, "solve_gram")


def _check_linear(corruption: Any, key: Key, operator_key: Key) -> None:
    operator = jax.jit(corruption.draw_operator)(operator_key)
    y_shape = jax.eval_shape(corruption.forward, jnp.zeros(corruption.shape), operator).shape
    null = corruption.null_operator()

    @jax.jit
    def run(key: Key) -> tuple[jax.Array, ...]:
        x_key, z_key, y_key = jax.random.split(key, 3)
        x, z = jax.random.normal(x_key, corruption.shape), jax.random.normal(z_key, corruption.shape)
        y = jax.random.normal(y_key, y_shape)
        images = jnp.stack([x, z, x + 2 * z])
        forward = jax.vmap(lambda x: corruption.forward(x, operator))(images)
        return x, y, forward, corruption.adjoint(y, operator)

    x, y, (ax, az, both), back = map(np.asarray, run(key))
    _require(back.shape == corruption.shape, f"the adjoint's shape is {back.shape}, not {corruption.shape}")
    _require(np.allclose(both, ax + 2 * az, atol=1e-4), "forward must be linear")
    left, right = np.vdot(ax, y), np.vdot(x, back)
    _require(
        abs(left - right) < 1e-5 * np.linalg.norm(x) * np.linalg.norm(y), f"<A x, y> = {left} but <x, A^T y> = {right}"
    )
    if null is not None:
        drawn, empty = jax.tree.map(jnp.shape, operator), jax.tree.map(jnp.shape, null)
        _require(drawn == empty, f"the null operator's shapes {empty} must be those of a drawn one, {drawn}")
        _require(not np.asarray(jax.jit(corruption.forward)(x, null)).any(), "the null operator must observe nothing")


def _check_dense(corruption: Any, key: Key, operator_key: Key) -> None:
    """solve_gram and log_det_gram against double-precision dense matrices, with noise_std 0.3 where it can be set."""
    if dataclasses.is_dataclass(corruption) and not isinstance(corruption, type):
        corruption = dataclasses.replace(corruption, noise_std=0.3)  # type: ignore[type-var]
    r_key, v_key = jax.random.split(key)
    operator = jax.jit(corruption.draw_operator)(operator_key)
    basis = np.eye(math.prod(corruption.shape), dtype=np.float32).reshape(-1, *corruption.shape)
    columns = jax.jit(jax.vmap(corruption.forward, (0, None)))(basis, operator)
    a = np.asarray(columns, np.float64).reshape(len(basis), -1).T
    y_shape, level = columns.shape[1:], corruption.noise_std
    seen = np.ones(len(a), bool)
    if hasattr(corruption, "observed"):
        seen = np.broadcast_to(np.asarray(corruption.observed(operator)), y_shape).reshape(-1)
    if hasattr(corruption, "noise_level"):
        level = float(corruption.noise_level(operator))
    r = np.where(seen, np.asarray(jax.random.normal(r_key, (len(a),))), 0.0)
    varying = jax.random.uniform(v_key, corruption.shape, minval=0.5, maxval=1.5)

    def run(r: jax.Array, operator: PyTree, v: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        log_det = corruption.log_det_gram(operator, v) if hasattr(corruption, "log_det_gram") else None
        return corruption.solve_gram(r, operator, v), log_det

    for name, v in (("a scalar", jnp.asarray(0.7)), ("an array", varying)):
        flat = np.broadcast_to(np.asarray(v, np.float64), corruption.shape).reshape(-1)
        gram = (a[seen] * flat) @ a[seen].T + level**2 * np.eye(int(seen.sum()))
        truth = np.zeros(len(a))
        truth[seen] = np.linalg.solve(gram, r[seen])
        got, log_det = jax.jit(run)(r.reshape(y_shape), operator, v)
        error = np.linalg.norm(np.asarray(got).reshape(-1) - truth) / np.linalg.norm(truth)
        _require(error < 1e-3, f"solve_gram for {name} v is off by {error:.1e} of the dense solution")
        if log_det is not None:
            dense = np.linalg.slogdet(gram)[1]
            _require(
                abs(float(log_det) - dense) < 1e-4 * (len(a) + abs(dense)),
                f"log_det_gram for {name} v is {log_det}, the dense matrix has {dense}",
            )
