"""Round zero: a Gaussian or a mixture of factor analysers fitted to the observations by exact EM, or a stationary Gaussian.

Both steps of EM are in closed form (``factor_analysis``); nothing is sampled while fitting. With one component this is the
Gaussian start (R = D gives a full-rank covariance). The published start (Rozet et al. 2024, arXiv 2405.13712, section 5;
Hosseintabar et al. 2025, arXiv 2510.12691) fits one Gaussian by sampling.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffem_jax.gaussians.factor_analysis import make_em_iteration, relax, zero_sums
from diffem_jax.gaussians.gaussians import Mixture, Start, has_exact_diagonal, sample_posterior
from diffem_jax.gaussians.linalg import Gaussian, conjugate_gradient
from diffem_jax.gaussians.stationary import Stationary, first_stationary, fit_stationary
from diffem_jax.types import Key, LinearCorruption, Observation, PyTree, example_keys

LENGTHEN = 1.2
"""By how much the stride of a Gaussian's EM grows with every step that raised the likelihood."""
PATIENCE = 3
"""Steps in a row that gained too little, after which a fit with growing strides ends: one alone may be a short one."""
COARSE = 4096
"""Of twice as many observations or more, so many are fitted first: early iterations then cost a part of a pass over all."""

MEAN_ITERATIONS = 8
"""Conjugate-gradient iterations for the first mean."""

_kept_iteration = functools.lru_cache(maxsize=8)(make_em_iteration)
"""``make_em_iteration``, compiled once for fits that are alike."""

Report = Callable[[int, int, float], None]
"""(iteration, iterations in all, log-likelihood) -> None."""


class Fit(NamedTuple):
    """A fitted start and its course over all observations: their mean log-likelihood before each iteration."""

    mixture: Mixture
    log_likelihoods: list[float]


def make_start_draw(corruption: LinearCorruption) -> Callable[[Key, Start, Observation], Array]:
    """The draw of round zero for one example: (key, start, observation) -> an exact posterior draw [*X]."""
    return lambda key, start, observation: sample_posterior(key, corruption, start, observation)


def gaussian_start(
    key: Key, corruption: LinearCorruption, observations: Observation, *, rank: int, **options: Any
) -> Mixture:
    """One Gaussian fitted by ``fit``; options as there."""
    options.pop("components", None)
    return fit(key, corruption, observations, rank=rank, **options).mixture


def mixture_start(key: Key, corruption: LinearCorruption, observations: Observation, **options: Any) -> Mixture:
    """A mixture of factor analysers fitted by ``fit``; options as there."""
    return fit(key, corruption, observations, **options).mixture


def stationary_start(
    key: Key,
    corruption: LinearCorruption,
    observations: Observation,
    *,
    iterations: int,
    report: Report | None = None,
    **options: Any,
) -> Stationary:
    """A stationary Gaussian about a mean image (``stationary``), begun at the least-squares mean and variance."""
    del options
    seen = back_project(jax.random.fold_in(key, 0), corruption, _spaced(observations, 2048))
    variance = float(jnp.mean(seen.residual**2) / jnp.clip(seen.seen, 1e-3, 1.0))
    guess = first_stationary(seen.mean, variance)
    done = (lambda i: None) if report is None else (lambda i: report(i, iterations, math.nan))
    return fit_stationary(key, corruption, observations, guess, iterations=iterations, report=done)


def start_arrays(start: Start) -> dict[str, Array]:
    """The arrays of a start by name, as files hold them."""
    if isinstance(start, Stationary):
        return start._asdict()
    return {"log_weights": start.log_weights, **start.components._asdict()}


def start_of_arrays(arrays: Mapping[str, ArrayLike]) -> Start:
    """The start that such arrays hold."""
    found = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in arrays.items()}
    if "log_weights" in found:
        return Mixture(found.pop("log_weights"), Gaussian(**found))
    return Stationary(**found)


STARTS: dict[str, Callable[..., Start]] = {
    "gaussian": gaussian_start,
    "mixture": mixture_start,
    "stationary": stationary_start,
}
"""Starts by name. One of your own is a function (key, corruption, observations [N, ...], fields of the section) -> Mixture."""


def fit(
    key: Key,
    corruption: LinearCorruption,
    observations: Observation,
    *,
    rank: int,
    components: int = 1,
    iterations: int = 30,
    tolerance: float = 1e-4,
    variance_floor: float = 1e-4,
    batch_size: int = 0,
    minibatch: int = 0,
    report: Report | None = None,
) -> Fit:
    """Fits the start to observations: a Gaussian first, then, for components > 1, a mixture seeded by its draws.

    Of many observations ``COARSE``, or eight per factor of the model where that is more, are fitted first, by at most half of
    the iterations; the others begin where that ends.

    Args:
        key: randomness of trace estimates and of the seeding draws.
        corruption: a linear corruption.
        observations: arrays with a leading axis N.
        rank: R of each component, clipped to the number of coordinates.
        components: K, 1 for the Gaussian start.
        iterations: EM iterations at most, for the Gaussian and again for the mixture.
        tolerance: a fit ends early when the log-likelihood per example gains less than this times the number of
            coordinates in an iteration, for one Gaussian in three iterations in a row. Its steps are lengthened
            (``relax``) as long as the likelihood rises, since the fewer coordinates are seen, the shorter EM's own are.
        variance_floor: the least variance of a coordinate given z.
        batch_size: examples in memory at once; 0 chooses by the model's size.
        minibatch: examples an M-step; 0 takes all of them (EM), fewer is stepwise EM with the step sizes
            (k + 2)^-0.6 at M-step k, and an iteration is then a pass over the data.
        report: called with (iteration, iterations in all, log-likelihood).

    Returns:
        the mixture and the log-likelihoods of the last fit.
    """
    size = math.prod(corruption.shape)
    rank = min(rank, size)
    count = len(observations.y)
    total = iterations * (1 if components == 1 else 2)
    # A variance a coordinate where the solves with it are exact: diagonal ones, and small ones.
    scalar = not has_exact_diagonal(corruption)
    subset = _spaced(observations, 2048)
    gaussian_rank = rank if components == 1 else min(size, max(rank, 16))
    seen = back_project(jax.random.fold_in(key, 2 * total + 1), corruption, subset)
    mixture = initial_gaussian(seen, gaussian_rank, scalar_variance=scalar)
    climb = functools.partial(
        _climb, key, corruption, tolerance=tolerance, variance_floor=variance_floor, batch_size=batch_size
    )

    def run(mixture: Mixture, offset: int) -> Fit:
        def report_progress(done: int, value: float) -> None:
            if report is not None:
                report(offset + done, total, value)

        spent, coarse = 0, max(COARSE, 8 * math.prod(mixture.components.factor.shape[:2]))
        if count >= 2 * coarse and not 0 < minibatch < count and iterations > 1:
            some = _spaced(observations, coarse)
            few, spent = climb(some, mixture, offset, iterations // 2, minibatch=0, report=report_progress)
            mixture = few.mixture
        fitted, _ = climb(
            observations,
            mixture,
            offset + spent,
            iterations - spent,
            minibatch=minibatch,
            report=lambda done, value: report_progress(spent + done, value),
        )
        return fitted

    result = run(mixture, 0)
    if components > 1:
        sample_rows = np.linspace(0, count - 1, len(subset.y)).astype(int)
        keys = example_keys(jax.random.fold_in(key, total), jnp.asarray(sample_rows))
        draw = jax.vmap(make_start_draw(corruption), (0, None, 0))
        draws = jax.jit(draw)(keys, result.mixture, subset)
        result = run(spread_components(result.mixture, np.asarray(draws), components, rank), iterations)
    return result


class BackProjection(NamedTuple):
    """What the observations say of x without any model of it (``back_project``).

    Attributes:
        mean: m with average(P) m = average(b), [*X]; 0 in directions that nothing sees.
        residual: b - P m of each example, [N, *X].
        seen: the average share of x that an observation sees, trace(P) / D.
    """

    mean: Array
    residual: Array
    seen: Array


@functools.lru_cache(maxsize=8)
def make_back_projection(corruption: LinearCorruption) -> Callable[[Key, Observation], BackProjection]:
    """The jitted ``back_project`` of one corruption, compiled once for fits that are alike."""

    def pull(y: Array, operator: PyTree) -> Array:
        return corruption.adjoint(corruption.solve_gram(y, operator, jnp.ones(())), operator)

    def project(u: Array, operator: PyTree) -> Array:
        return pull(corruption.forward(u, operator), operator)

    def run(key: Key, observations: Observation) -> BackProjection:
        def average(u: Array) -> Array:
            each = jax.lax.map(lambda o: project(u, o.operator), observations, batch_size=64)
            return jnp.mean(each, axis=0) + 1e-3 * u

        b = jax.lax.map(lambda o: pull(*o), observations, batch_size=64)
        mean = conjugate_gradient(average, jnp.mean(b, axis=0), MEAN_ITERATIONS)
        residual = jax.lax.map(lambda o: pull(o.y, o.operator) - project(mean, o.operator), observations, batch_size=64)
        signs = jax.random.rademacher(key, (len(b), *corruption.shape), jnp.float32)
        seen = jax.lax.map(
            lambda a: jnp.mean(a[0] * project(a[0], a[1].operator)), (signs, observations), batch_size=64
        )
        return BackProjection(mean, residual, jnp.mean(seen))

    return jax.jit(run)


def back_project(key: Key, corruption: LinearCorruption, observations: Observation) -> BackProjection:
    """First moments from b = A^T G^-1 y and P = A^T G^-1 A with G = A A^T + noise_std^2 I, by least squares.

    b alone understates x by what its operator does not see: for a mask that hides nine pixels of ten the average of b is a
    tenth of the mean of x.
    """
    return make_back_projection(corruption)(key, observations)  # type: ignore[arg-type]


def initial_gaussian(seen: BackProjection, rank: int, *, scalar_variance: bool = False) -> Mixture:
    """A first guess: the least-squares mean, and the residuals' leading principal axes as factors."""
    mean, residual = np.asarray(seen.mean), np.asarray(seen.residual)
    shape, flat = mean.shape, residual.reshape(len(residual), -1)
    share = float(np.clip(seen.seen, 1e-3, 1.0))
    _, scale, axes = np.linalg.svd(flat, full_matrices=False)
    scale = np.pad(scale / math.sqrt(len(flat)), (0, max(0, rank - len(scale))))[:rank]
    axes = np.pad(axes, ((0, max(0, rank - len(axes))), (0, 0)))[:rank]
    # Half of the spread, undone of what is not seen, is left to the factors and half to the variances; EM settles the rest.
    factor = 0.5 / math.sqrt(share) * np.maximum(scale, 0.05)[:, None] * axes
    variance = np.full((1,) if scalar_variance else (1, *shape), max(0.05, 0.5 * float(flat.var()) / share), np.float32)
    component = Gaussian(
        jnp.asarray(mean.reshape(1, *shape)), jnp.asarray(variance), jnp.asarray(factor.reshape(1, rank, *shape))
    )
    return Mixture(jnp.zeros((1,)), jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), component))


def spread_components(gaussian: Mixture, draws: np.ndarray, components: int, rank: int, shrink: float = 0.5) -> Mixture:
    """A first mixture from a fitted Gaussian: its means are posterior draws far from each other, its shape is shared.

    Args:
        gaussian: a mixture of one component.
        draws: posterior draws under it, [N, *X].
        components: K.
        rank: R of the new components.
        shrink: factor on the standard deviations, in (0, 1].
    """
    shape = draws.shape[1:]
    flat = draws.reshape(len(draws), -1)
    chosen = [0]
    distance = np.sum((flat - flat[0]) ** 2, axis=1)
    rng = np.random.Generator(np.random.Philox(components))
    for _ in range(components - 1):
        # k-means++ seeding (Arthur and Vassilvitskii 2007).
        chosen.append(int(rng.choice(len(flat), p=distance / distance.sum())))
        distance = np.minimum(distance, np.sum((flat - flat[chosen[-1]]) ** 2, axis=1))
    component = jax.tree.map(lambda leaf: leaf[0], gaussian.components)
    count = component.factor.shape[0]
    factor = shrink * component.factor[:rank]
    if rank > count:
        factor = jnp.concatenate([factor, jnp.zeros((rank - count, *shape))])
    shared = Gaussian(component.mean, shrink**2 * component.variance, factor)
    shared = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (components, *leaf.shape)), shared)
    means = jnp.asarray(flat[chosen].reshape(components, *shape), jnp.float32)
    return Mixture(jnp.full((components,), -math.log(components)), shared._replace(mean=means))


def _spaced(observations: Observation, most: int) -> Observation:
    """At most so many of the observations, evenly spaced, on the device."""
    count = len(observations.y)
    index = np.linspace(0, count - 1, min(count, most)).astype(int)
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[index]), observations)


def _climb(
    key: Key,
    corruption: LinearCorruption,
    observations: Observation,
    mixture: Mixture,
    offset: int,
    iterations: int,
    *,
    tolerance: float,
    variance_floor: float,
    batch_size: int,
    minibatch: int,
    report: Callable[[int, float], None],
) -> tuple[Fit, int]:
    """EM iterations of a mixture on the observations, and how many they were; the arguments are those of ``fit``.

    Iteration i takes randomness from (key, offset + i); ``report`` takes (iterations done, log-likelihood).
    """
    count, size = len(observations.y), math.prod(corruption.shape)
    k, r = mixture.components.factor.shape[:2]
    part = min(minibatch or count, count)
    rows = batch_size or int(np.clip(2**22 // (k * (r + 1) * size), 1, min(part, 1024)))
    part = -(-part // rows) * rows
    steps = -(-count // part)
    longer = k == 1 and steps == 1
    # In a fixed random order, so that a minibatch looks like the set; EM over all keeps the order as it is.
    order = np.arange(count) if steps == 1 else np.random.Generator(np.random.Philox(count)).permutation(count)
    chosen = order[np.arange(steps * part) % count]
    iterate = _kept_iteration(corruption, variance_floor, rows)  # type: ignore[arg-type]

    def taken(first: int) -> tuple[Observation, Array, Array]:
        """Observations, their indices, and the weight of each."""
        index = chosen[first : first + part]
        present = np.arange(first, first + part) < (count if steps == 1 else steps * part)
        weight = present * (count / part if steps > 1 else 1.0)
        whole = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[index]), observations)
        return whole, jnp.asarray(index), jnp.asarray(weight, jnp.float32)

    everything = taken(0) if steps == 1 else None
    sums, done, quiet, stride, safe = zero_sums(mixture), 0, 0, 1.0, mixture
    values: list[float] = []
    i = -1
    for i in range(iterations):
        before, total_value = mixture, 0.0
        for first in range(0, steps * part, part):
            step_size = 1.0 if done == 0 or steps == 1 else (done + 2) ** -0.6
            batch = everything or taken(first)
            step_key = jax.random.fold_in(key, offset + i)
            mixture, sums, one = iterate(step_key, mixture, sums, jnp.float32(step_size), *batch)
            total_value, done = total_value + float(one), done + 1
        value = total_value / steps
        if stride > 1 and not value > values[-1] - 1e-5 * size:
            # Too far: back to where plain EM was.
            mixture, stride, quiet = safe, 1.0, 0
            continue
        values.append(value)
        report(i + 1, value)
        quiet = quiet + 1 if len(values) > 3 and values[-1] - values[-2] < tolerance * size else 0
        if longer:
            safe = mixture
        if quiet == (PATIENCE if longer else 1):
            break
        if longer:
            stride *= LENGTHEN
            mixture = relax(before, safe, jnp.float32(stride), jnp.float32(variance_floor))
    return Fit(safe if longer else mixture, values), i + 1
