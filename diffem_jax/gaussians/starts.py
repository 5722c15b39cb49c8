"""Round zero: a Gaussian or a mixture of factor analysers fitted to the observations by exact EM, or a stationary Gaussian.

Both steps of EM are in closed form (``factor_analysis``); nothing is sampled while fitting. With one component this is the
Gaussian start (of rank D, the dimension of x, it has any covariance). The published start (Rozet et al. 2024, arXiv 2405.13712, section 5;
Hosseintabar et al. 2025, arXiv 2510.12691) fits one Gaussian by sampling.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffem_jax.gaussians import stationary
from diffem_jax.gaussians.factor_analysis import em_iteration, relax
from diffem_jax.gaussians.gaussians import Mixture, Start, has_exact_diagonal, sample_posterior
from diffem_jax.gaussians.linalg import Gaussian, conjugate_gradient
from diffem_jax.gaussians.stationary import Stationary
from diffem_jax.types import Key, LinearCorruption, Observation, PyTree, example_keys

LENGTHEN = 1.2  # by how much the stride of a Gaussian's EM grows with every step that raised the likelihood
PATIENCE = 3  # steps in a row that gained too little, after which a fit with growing strides ends
COARSE = 4096  # with at least twice this many observations, this many are fitted first: early iterations then cost less
MEAN_ITERATIONS = 8  # conjugate-gradient iterations for the first mean

Report = Callable[[int, int, float], None]  # (iteration, iterations in all, log-likelihood) -> None


class Fit(NamedTuple):
    """A fitted start and its course over all observations: their mean log-likelihood before each iteration."""

    mixture: Mixture
    log_likelihoods: list[float]


def make_start_draw(corruption: LinearCorruption) -> Callable[[Key, Start, Observation], Array]:
    """The draw of round zero for one example: (key, start, observation) -> an exact posterior draw [*X]."""
    return lambda key, start, observation: sample_posterior(key, corruption, start, observation)


def gaussian_start(key: Key, corruption: LinearCorruption, observations: Observation, **options: Any) -> Mixture:
    """One Gaussian fitted by ``fit``; options as there."""
    return mixture_start(key, corruption, observations, **{**options, "components": 1})


def mixture_start(key: Key, corruption: LinearCorruption, observations: Observation, **options: Any) -> Mixture:
    """A mixture of factor analysers fitted by ``fit``; options as there."""
    return fit(key, corruption, observations, **options).mixture


def stationary_start(
    key: Key, corruption: LinearCorruption, observations: Observation, *,
    iterations: int, report: Report = lambda *course: None, **options: Any,
) -> Stationary:  # fmt: skip
    """A stationary Gaussian about a mean image (``stationary``), begun at the least-squares mean and variance."""
    seen = back_project(jax.random.fold_in(key, 0), corruption, _spaced(observations, 2048))
    variance = float(jnp.mean(seen.residual**2) / jnp.clip(seen.seen, 1e-3, 1.0))
    guess = stationary.first_guess(seen.mean, variance)
    return stationary.fit(
        key, corruption, observations, guess, iterations=iterations, report=lambda i: report(i, iterations, math.nan)
    )


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


STARTS: dict[str, Any] = {"gaussian": gaussian_start, "mixture": mixture_start, "stationary": stationary_start}
"""Starts by name. One of your own is a function (key, corruption, observations [N, ...], fields of the section) -> Mixture."""


def fit(
    key: Key, corruption: LinearCorruption, observations: Observation, *, rank: int, components: int = 1, iterations: int = 30,
    tolerance: float = 1e-4, variance_floor: float = 1e-4, shrinkage: float = 0.0, batch_size: int = 0,
    report: Report = lambda *course: None,
) -> Fit:  # fmt: skip
    """Fits the start to observations [N, ...]: a Gaussian first, then, for components > 1, a mixture seeded by its draws.

    Of many observations ``COARSE``, or eight per factor of the model where that is more, are fitted first, by at most half of
    the iterations; the others begin where that ends.
    ``rank`` is R of each of K ``components``, ``iterations`` are EM's at most, for the Gaussian and again for the mixture. A fit
    ends where the log-likelihood per example and coordinate gains less than ``tolerance``, for one Gaussian three times in a row:
    its steps are lengthened (``relax``) as long as the likelihood rises, since plain EM takes shorter steps the fewer coordinates
    are seen. ``shrinkage`` examples without correlations are added, which shrinks the covariance towards its diagonal (Schaefer
    and Strimmer 2005); below 0 as many as give the highest likelihood to what fits to three quarters of the observations leave
    out. ``variance_floor`` is the least variance of a coordinate given z, ``batch_size`` the examples in memory at once (0: by
    the model's size), and ``report`` takes (iteration, iterations in all, log-likelihood).
    """
    size, count = math.prod(corruption.shape), len(observations.y)
    rank = min(rank, size)
    total = iterations * (1 if components == 1 else 2)
    # One variance per coordinate where solves with it are exact (diagonal or small), else one for all.
    scalar = not has_exact_diagonal(corruption)
    subset = _spaced(observations, 2048)
    gaussian_rank = rank if components == 1 else min(size, max(rank, 16))
    seen = back_project(jax.random.fold_in(key, 2 * total + 1), corruption, subset)  # type: ignore[arg-type]
    mixture = initial_gaussian(seen, gaussian_rank, scalar_variance=scalar)
    climb = partial(
        _climb, key, corruption, tolerance=tolerance, variance_floor=variance_floor, batch_size=batch_size,
    )  # fmt: skip
    if shrinkage < 0:
        shrinkage = _best_shrinkage(partial(climb, subset, mixture, range(iterations)), len(subset.y))
    climb = partial(climb, shrinkage=shrinkage, report=lambda i, value: report(i, total, value))

    def run(mixture: Mixture, first: int) -> Fit:
        done, coarse = first, max(COARSE, 8 * math.prod(mixture.components.factor.shape[:2]))
        if count >= 2 * coarse and iterations > 1:
            few, done = climb(_spaced(observations, coarse), mixture, range(first, first + iterations // 2))
            mixture = few.mixture
        return climb(observations, mixture, range(done, first + iterations))[0]

    result = run(mixture, 0)
    if components > 1:
        sample_rows = np.linspace(0, count - 1, len(subset.y)).astype(int)
        keys = example_keys(jax.random.fold_in(key, total), jnp.asarray(sample_rows))
        draws = jax.jit(jax.vmap(make_start_draw(corruption), (0, None, 0)))(keys, result.mixture, subset)
        result = run(spread_components(result.mixture, np.asarray(draws), components, rank), iterations)
    return result


class BackProjection(NamedTuple):
    """What the observations say of x without any model of it (``back_project``)."""

    mean: Array  # m with average(P) m = average(b), [*X]; 0 in directions that nothing sees
    residual: Array  # b - P m of each example, [N, *X]
    seen: Array  # the average share of x that an observation sees, trace(P) / D


@partial(jax.jit, static_argnames="corruption")
def back_project(key: Key, corruption: LinearCorruption, observations: Observation) -> BackProjection:
    """First moments from b = A^T G^-1 y and P = A^T G^-1 A with G = A A^T + noise_std^2 I, by least squares.

    b alone understates x by what its operator does not see: for a mask that hides nine pixels of ten the average of b is a
    tenth of the mean of x.
    """

    def pull(y: Array, operator: PyTree) -> Array:
        return corruption.adjoint(corruption.solve_gram(y, operator, jnp.ones(())), operator)

    def project(u: Array, operator: PyTree) -> Array:
        return pull(corruption.forward(u, operator), operator)

    each = partial(jax.lax.map, batch_size=64)

    def average(u: Array) -> Array:
        return jnp.mean(each(lambda o: project(u, o.operator), observations), axis=0) + 1e-3 * u

    b = each(lambda o: pull(*o), observations)
    mean = conjugate_gradient(average, jnp.mean(b, axis=0), MEAN_ITERATIONS)
    residual = each(lambda o: pull(o.y, o.operator) - project(mean, o.operator), observations)
    signs = jax.random.rademacher(key, (len(b), *corruption.shape), jnp.float32)
    seen = each(lambda a: jnp.mean(a[0] * project(a[0], a[1].operator)), (signs, observations))
    return BackProjection(mean, residual, jnp.mean(seen))


def initial_gaussian(seen: BackProjection, rank: int, *, scalar_variance: bool = False) -> Mixture:
    """A first guess: the least-squares mean, and the residuals' leading principal axes as factors."""
    mean, residual = np.asarray(seen.mean), np.asarray(seen.residual)
    shape, flat = mean.shape, residual.reshape(len(residual), -1)
    share = float(np.clip(seen.seen, 1e-3, 1.0))
    _, scale, axes = np.linalg.svd(flat, full_matrices=False)
    scale = np.pad(scale / math.sqrt(len(flat)), (0, max(0, rank - len(scale))))[:rank]
    axes = np.pad(axes, ((0, max(0, rank - len(axes))), (0, 0)))[:rank]
    # Half of the spread, corrected for the share that is not seen, is left to the factors and half to the variances; EM settles the rest.
    factor = 0.5 / math.sqrt(share) * np.maximum(scale, 0.05)[:, None] * axes
    variance = np.full((1,) if scalar_variance else (1, *shape), max(0.05, 0.5 * float(flat.var()) / share), np.float32)
    component = Gaussian(mean[None], variance, factor.reshape(1, rank, *shape))  # type: ignore[arg-type]
    return Mixture(jnp.zeros((1,)), jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), component))


def spread_components(gaussian: Mixture, draws: np.ndarray, components: int, rank: int, shrink: float = 0.5) -> Mixture:
    """A first mixture of ``components``: means are posterior draws [N, *X] far from each other, all share the Gaussian's covariance.

    ``rank`` is that of the new components, and ``shrink`` in (0, 1] multiplies the standard deviations.
    """
    shape = draws.shape[1:]
    flat = draws.reshape(len(draws), -1)
    chosen = [0]
    distance = np.sum((flat - flat[0]) ** 2, axis=1)
    rng = np.random.Generator(np.random.Philox(components))
    for _ in range(components - 1):  # k-means++ (Arthur and Vassilvitskii 2007)
        chosen.append(int(rng.choice(len(flat), p=distance / distance.sum())))
        distance = np.minimum(distance, np.sum((flat - flat[chosen[-1]]) ** 2, axis=1))
    component = jax.tree.map(lambda leaf: leaf[0], gaussian.components)
    factor = shrink * component.factor[:rank]
    factor = jnp.pad(factor, ((0, rank - len(factor)), *((0, 0) for _ in shape)))
    shared = Gaussian(component.mean, shrink**2 * component.variance, factor)
    shared = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (components, *leaf.shape)), shared)
    means = jnp.asarray(flat[chosen].reshape(components, *shape), jnp.float32)
    return Mixture(jnp.full((components,), -math.log(components)), shared._replace(mean=means))


def _spaced(observations: Observation, most: int) -> Observation:
    """At most so many of the observations, evenly spaced, on the device."""
    count = len(observations.y)
    index = np.linspace(0, count - 1, min(count, most)).astype(int)
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[index]), observations)


def _best_shrinkage(climb: Callable[..., tuple[Fit, int]], count: int) -> float:
    """The shrinkage, of five, with the highest likelihood of the quarters of the observations that fits leave out in turn."""
    # Neighbours, which may be alike, are left out together.
    folds = np.arange(count) * 20 // count % 4
    best, highest = 0.0, -math.inf
    for shrinkage in (0.0, count / 64, count / 32, count / 16, count / 8):
        value = sum(climb(shrinkage=shrinkage, left_out=folds == fold)[0].log_likelihoods[-1] for fold in range(4))
        if not value > highest:  # not a number where there are too few to leave any out
            break
        best, highest = shrinkage, value
    return best


def _climb(
    key: Key, corruption: LinearCorruption, observations: Observation, mixture: Mixture, iterations: range, *,
    tolerance: float, variance_floor: float, shrinkage: float, batch_size: int,
    report: Callable[[int, float], None] = lambda i, value: None, left_out: np.ndarray | None = None,
) -> tuple[Fit, int]:  # fmt: skip
    """EM iterations of a mixture, number i with randomness of (key, i), and the number of the next; arguments as of ``fit``.

    Observations that are ``left_out`` [N] take no part; the fit's log-likelihoods then end with theirs.
    """
    count, size = len(observations.y), math.prod(corruption.shape)
    k, r = mixture.components.factor.shape[:2]
    rows = batch_size or int(np.clip(2**22 // (k * (r + 1) * size), 1, min(count, 1024)))
    padded = np.arange(-(-count // rows) * rows)
    index, out = padded % count, np.zeros(count, bool) if left_out is None else left_out
    present, left = (jnp.asarray((padded < count) & (out[index] == part), jnp.float32) for part in (False, True))
    given = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[index]), observations), jnp.asarray(index)
    iterate = partial(em_iteration, corruption=corruption, variance_floor=variance_floor, batch_size=rows)
    longer, good, quiet, stride, i = k == 1, mixture, 0, 1.0, iterations.start - 1
    values: list[float] = []
    for i in iterations:
        before = mixture
        mixture, log_likelihood = iterate(jax.random.fold_in(key, i), mixture, *given, present, jnp.float32(shrinkage))
        value = float(log_likelihood)
        if stride > 1 and not value > values[-1] - 1e-5 * size:
            # Too far: back to where plain EM was.
            mixture, stride, quiet = good, 1.0, 0
            continue
        good = mixture
        values.append(value)
        report(i + 1, value)
        quiet = quiet + 1 if len(values) > 3 and values[-1] - values[-2] < tolerance * size else 0
        if quiet == (PATIENCE if longer else 1):
            break
        if longer:
            stride *= LENGTHEN
            mixture = relax(before, good, jnp.float32(stride), jnp.float32(variance_floor))
    if left_out is not None:
        values.append(float(iterate(key, good, *given, left, jnp.float32(shrinkage))[1]))
    return Fit(good, values), i + 1
