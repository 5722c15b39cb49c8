"""The contract of corruptions."""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.corruptions import AdditiveNoise
from diffem_jax.testing.base import equal, require
from diffem_jax.types import Corruption, Observation, PyTree

DENSE_LIMIT = 1024  # entries of y; above, nothing is compared with dense matrices


def check_corruption(corruption: Corruption, *, seed: int = 0, samples: int = 512) -> None:
    """Checks that a corruption keeps the contract of ``diffem_jax.types.Corruption``, or of ``LinearCorruption``.

    Hashing, shapes, ``jit`` and ``vmap``; equal draws for equal keys, other operators for others (``random_operator``);
    mean, variance and independence of the noise over ``samples`` draws; ``hold_out``, where it can; that NaN in hidden
    entries of x or unmeasured ones of y changes nothing; the condition's spatial shape; of linear ones also adjoint,
    ``solve_gram``, its derivatives and ``log_det_gram`` by dense ones: use a small shape. AssertionError for a fault.
    """
    base = "AdditiveNoise, or from Linear where y = A x + n: what you do not write has its default there"
    what = f"{type(corruption).__name__} must inherit from diffem_jax.corruptions.{base}"
    require(isinstance(corruption, AdditiveNoise), what)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(corruption.shape, np.float32).clip(-1.95, 1.95)
    one = _check_draws(corruption, x, jax.random.key(seed), samples)
    if corruption.can_hold_out:
        _check_hold_out(corruption, x, one, jax.random.key(seed))
    if corruption.is_linear:
        _check_linear(corruption, one.observation.operator, rng)
        if one.clean.size <= DENSE_LIMIT:
            _check_dense(corruption, one, rng)


class _Draw(NamedTuple):
    observation: Observation
    condition: Any
    clean: Any
    variance: Any
    observed: Any


def _check_draws(corruption: Any, x: np.ndarray, key: jax.Array, samples: int) -> _Draw:
    """All that can be seen from draws of observations; returns one of them."""
    require(len({copy.copy(corruption), corruption}) == 1, "equal instances must hash and compare equal")

    def draw(key: jax.Array, x: jax.Array) -> _Draw:
        observation = corruption.sample(key, x)
        y, operator = observation
        clean, condition = corruption.forward(x, operator), corruption.condition(observation)
        variance = jnp.broadcast_to(jnp.float32(corruption.noise_variance(x, operator)), y.shape)
        return _Draw(observation, condition, clean, variance, jnp.broadcast_to(corruption.observed(operator), y.shape))

    keys, compiled = jax.random.split(key, samples), jax.jit(draw)

    def single(x: Any) -> _Draw:
        """The first key's draw; a key that the corruption uses twice is refused."""
        with jax.debug_key_reuse(True):
            return jax.tree.map(np.asarray, compiled(jax.random.clone(keys)[0], x))

    one = single(x)
    # Determinism is seen by using a key twice.
    with jax.debug_key_reuse(False):
        batched = jax.jit(jax.vmap(draw, (0, None)))
        batch, again = (jax.tree.map(np.asarray, batched(keys, x)) for _ in range(2))
    require(equal(batch, again), "the same keys must draw the same observations")
    for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(one), strict=True):
        require(a[0].shape == b.shape, f"vmap changes a shape: {a[0].shape}, {b.shape}")
        require(np.allclose(a[0], b, atol=1e-4), "vmap and a single call must draw the same observation")
    _check_shapes(corruption, batch)
    _check_noise(batch)
    _check_leaks(corruption, one, lambda hidden: single(np.where(hidden, np.float32(np.nan), x)))
    return one


def _check_shapes(corruption: Any, batch: _Draw) -> None:
    (y, operator), condition = batch.observation, batch.condition
    require(y.dtype == np.float32, f"y must be float32, is {y.dtype}")
    require(batch.clean.shape == y.shape, f"forward yields {batch.clean.shape[1:]}, sample {y.shape[1:]}")
    operators = jax.tree.leaves(operator)
    if operators and corruption.random_operator:
        require(any(not np.array_equal(a[0], b) for a in operators for b in a[1:]), "all keys draw the same operator")
    require(bool(np.isfinite(condition).all()), "the condition must be finite")
    spatial = corruption.shape[:-1]
    fits = condition.ndim == len(corruption.shape) + 1 and condition.shape[1:-1] == spatial
    require(fits, f"the condition's shape {condition.shape[1:]} must be {spatial} and channels")


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
    margin = 5 * np.sqrt(max(2.0, (scaled**4).sum() / count - second**2) / count) + 1e-3
    require(abs(mean) < 5 / np.sqrt(count), f"the mean of y - A x is {mean:.4f} standard deviations, not 0")
    require(abs(second - 1) < margin, f"the variance of y is {second:.4f} times the stated one")
    for lag in {1, rest.shape[-1], rest.shape[-1] * (rest.shape[-2] if rest.ndim > 2 else 1)}:
        if 0 < lag < scaled.shape[1]:
            both = (seen[:, lag:] & seen[:, :-lag]).sum()
            product = (scaled[:, lag:] * scaled[:, :-lag]).sum() / max(both, 1)
            require(both == 0 or abs(product) < 5 / np.sqrt(both) + 1e-3, f"noise {lag} entries apart is correlated")


def _check_leaks(corruption: Any, one: _Draw, spoil: Callable[[np.ndarray], _Draw]) -> None:
    """NaN in hidden entries of x must not reach y, nor NaN in unmeasured ones of y anything; ``spoil`` draws with NaN in x."""
    (y, operator), missing = one.observation, ~one.observed

    @jax.jit
    def use(y: jax.Array, operator: PyTree) -> dict[str, jax.Array]:
        uses = {"the condition": corruption.condition(Observation(y, operator))}
        if corruption.is_linear:
            uses["the adjoint"] = corruption.adjoint(y, operator)
            uses["solve_gram"] = corruption.solve_gram(y, operator, jnp.ones(()))
        return uses

    if corruption.is_linear:
        probe = np.random.default_rng(0).standard_normal(missing.shape, np.float32)
        hidden = np.asarray(use(probe, operator)["the adjoint"]) == 0
        if hidden.any():
            require(equal(spoil(hidden).observation, one.observation), "hidden entries of x leak into the observation")
    if missing.any():
        right, spoiled = use(y, operator), use(np.where(missing, np.float32(np.nan), y), operator)
        for name in right:
            require(equal(right[name], spoiled[name]), f"unmeasured entries of y leak into {name}")


def _check_hold_out(corruption: Any, x: np.ndarray, one: _Draw, key: jax.Array) -> None:
    """What is held back was measured, is not in what is left, and the rest is as it was."""

    @jax.jit
    def hide(key: jax.Array, y: jax.Array) -> tuple[Any, ...]:
        left, held = corruption.hold_out(key, Observation(y, one.observation.operator), 0.3)
        return left, held, corruption.forward(x, left.operator)

    (y, _), seen, taken = one.observation, one.observed, 0
    for each in jax.random.split(key, 16):
        left, held, rest = jax.tree.map(np.asarray, hide(each, y))
        require(held.shape == seen.shape and not (held & ~seen).any(), "hold_out must hold back what was measured")
        require(not left.y[held].any(), "what hold_out holds back must be 0 in the y that is left")
        again, *_ = hide(jax.random.clone(each), np.where(held, np.float32(np.nan), y))
        require(equal(again, left), "what is left must not depend on what is held back")
        require(np.allclose(rest, np.where(held, 0.0, one.clean), atol=1e-5), "the operator left must be the rest")
        taken += int(held.sum())
    require(taken > 0, "hold_out never holds anything back")


def _check_linear(corruption: Any, operator: PyTree, rng: np.random.Generator) -> None:
    x, z = (rng.standard_normal(corruption.shape, np.float32) for _ in range(2))
    y = rng.standard_normal(jax.eval_shape(corruption.forward, x, operator).shape, np.float32)

    @jax.jit
    def run(operator: PyTree) -> tuple[jax.Array, jax.Array]:
        images = jnp.stack([x, z, x + 2 * z])
        return jax.vmap(lambda x: corruption.forward(x, operator))(images), corruption.adjoint(y, operator)

    (ax, az, both), back = map(np.asarray, run(operator))
    require(back.shape == corruption.shape, f"the adjoint's shape is {back.shape}, not {corruption.shape}")
    require(np.allclose(both, ax + 2 * az, atol=1e-4), "forward must be linear")
    left, right, size = np.vdot(ax, y), np.vdot(x, back), np.linalg.norm(x) * np.linalg.norm(y)
    require(abs(left - right) < 1e-5 * size, f"<A x, y> = {left} but <x, A^T y> = {right}")


def _check_dense(corruption: Any, one: _Draw, rng: np.random.Generator) -> None:
    """solve_gram, its derivatives and log_det_gram against double-precision dense matrices, with noise_std 0.3 where it can be set."""
    corruption = dataclasses.replace(corruption, noise_std=0.3)
    operator, seen, size = one.observation.operator, one.observed, math.prod(corruption.shape)
    r, w = (np.where(seen, rng.standard_normal(seen.shape, np.float32), np.float32(0.0)) for _ in range(2))
    units, forward = np.eye(size).reshape(-1, *corruption.shape), jax.vmap(corruption.forward, (0, None))
    columns, level = jax.jit(lambda o: (forward(jnp.float32(units), o), corruption.noise_level(o)))(operator)
    a, level = np.asarray(columns, np.float64).reshape(size, -1).T[seen.reshape(-1)], float(level)

    @jax.jit
    def run(operator: PyTree, v: jax.Array) -> tuple[jax.Array, ...]:
        solution, pull = jax.vjp(lambda r, v: corruption.solve_gram(r, operator, v), jnp.asarray(r), v)
        return solution, *pull(jnp.asarray(w)), corruption.log_det_gram(operator, v)

    scalar, array = np.float32(0.7), rng.uniform(0.5, 1.5, corruption.shape).astype(np.float32)
    for name, v in {"a scalar": scalar, "an array": array}.items():
        solution, by_r, by_v, log_det = run(operator, v)
        far = [run(operator, np.float32(factor) * v)[1:3] for factor in (1e-6, 1e-3, 1e3)]
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(far))
        require(finite, "the derivative of solve_gram must be finite for v from 1e-6 to 1e3")
        gram = (a * np.broadcast_to(v, corruption.shape).reshape(-1)) @ a.T + level**2 * np.eye(len(a))
        truth, dual = np.linalg.solve(gram, np.stack([r[seen], w[seen]], 1)).T
        slope = -((a.T @ truth) * (a.T @ dual)).reshape(corruption.shape)
        for what, found, right in (
            ("solve_gram", np.asarray(solution)[seen], truth),
            ("the derivative of solve_gram in r", np.asarray(by_r)[seen], dual),
            ("the derivative of solve_gram in v", np.asarray(by_v), slope if v.ndim else slope.sum()),
        ):
            error = np.linalg.norm(np.ravel(found - right)) / max(float(np.linalg.norm(right)), 1e-3)
            require(error < 1e-3, f"{what} for {name} v is off by {error:.1e} of the dense solution")
        require(not np.asarray(solution)[~seen].any(), "solve_gram must be 0 where nothing is observed")
        dense = np.linalg.slogdet(gram)[1]
        close = abs(log_det - dense) < 1e-4 * (len(a) + abs(dense))
        require(close, f"log_det_gram for {name} v is {log_det}, the dense matrix has {dense}")
