"""A stationary Gaussian about a mean image: conditioned by cosine transforms and conjugate gradients, fitted to observations.

x = mean + u, where the coefficients of u's cosine transform are independent between frequencies and correlated between
channels, S = T^T diag(power) T with an orthonormal T. Cosines mirror an image at its border: nothing wraps round. There is no
rank: a fit, a solve and a draw cost a few transforms, each a small matrix product per axis.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.gaussians.linalg import conjugate_gradient, cosines, full_precision
from diffem_jax.types import Key, LinearCorruption, Observation, PyTree, example_keys

TOLERANCE, MASK_TOLERANCE = 1e-5, 1e-4  # of a solve's squared error: draws are off by a percent or two of their spread
ITERATIONS = 64  # of a solve, at most; random masks take four or five
REACH = 0.35  # reach of the weights that interpolate between seen entries, in units of their mean distance
FEW, MANY = 512, 2048  # observations of the early iterations of a fit, which have far to go, and of the others
BATCH = 64  # observations in memory at once while fitting
LEVELS = 16  # levels of visibility at which the variances are tabulated
WIDE = 2  # reach of local amplitudes, in units of that of the weights above
STEADY = 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 1e4  # values of c of ``amplitude``; the last leaves 1


class Stationary(NamedTuple):
    """The distribution of x, a table of the variances of x given y, and what local amplitudes are judged by."""

    mean: Array  # [*X]
    basis: Array  # orthonormal matrices between channels and components at each frequency, [C, C, *spatial]
    power: Array  # the variance of each component, [C, *spatial]
    visibility: Array  # increasing levels of how much is seen near an entry, [L]
    hidden: Array  # the variance given y of an entry that is not seen itself, at each level, [L]
    seen: Array  # the same of one that is, []
    score: Array | float = 1.0  # the mean square of the score at a seen entry under the model, []
    steady: Array | float = STEADY[-1]  # c of ``amplitude``, []: the larger, the less amplitudes differ from 1


def _frequencies(x: Array) -> Array:
    """The cosine transform, orthonormal: [*X] -> [C, *spatial]; a vector has one channel."""
    z = x[None] if x.ndim == 1 else jnp.moveaxis(x, -1, 0)
    for n in z.shape[1:]:
        z = jnp.tensordot(z, cosines(n), (1, 0))
    return z


def _places(z: Array, shape: tuple[int, ...]) -> Array:
    """Its inverse, to an x of ``shape``."""
    for n in z.shape[1:]:
        z = jnp.tensordot(z, cosines(n), (1, 1))
    return z[0] if len(shape) == 1 else jnp.moveaxis(z, 0, -1)


@full_precision
def components(model: Stationary, x: Array) -> Array:
    """T x, [*X] -> [C, *spatial]."""
    z = _frequencies(x)
    return sum(model.basis[c] * z[c][None] for c in range(len(z)))  # type: ignore[return-value]


@full_precision
def from_components(model: Stationary, z: Array) -> Array:
    """T^T z, [C, *spatial] -> [*X]."""
    return _places(sum(model.basis[:, k] * z[k][None] for k in range(len(z))), model.mean.shape)  # type: ignore[arg-type]


def scale(model: Stationary, weights: Array, x: Array) -> Array:
    """T^T diag(weights) T x: S x for the weights ``power``, and any function of S."""
    return from_components(model, weights * components(model, x))


def sample(key: Key, model: Stationary) -> Array:
    """One draw of x, [*X]."""
    return model.mean + from_components(model, jnp.sqrt(model.power) * jax.random.normal(key, model.power.shape))


def given_noisy(model: Stationary, x: Array, ratio: Array) -> Stationary:
    """The distribution of x given x + ratio e with e ~ N(0, I), which is stationary about another mean."""
    left = model.power * (ratio**2 / (model.power + ratio**2))
    mean = model.mean + scale(model, model.power / (model.power + ratio**2), x - model.mean)
    return model._replace(mean=mean, power=left)


class Solved(NamedTuple):
    """What r = A (x - mean) + n says of x: x = S score."""

    x: Array  # E[x - mean | r], [*X]
    score: Array  # A^T (A S A^T + noise_std^2 I)^-1 r, [*X]


@full_precision
def solve(corruption: LinearCorruption, model: Stationary, r: Array, operator: PyTree) -> Solved:
    """E[x - mean | r] and the score, by conjugate gradients.

    Under a mask s = x - mean + n is known where something is seen, and its other entries make s^T Q s least, with
    Q = (S + noise_std^2 I)^-1. J replaces them by local averages of the seen ones; the preconditioner is the covariance of J's
    errors, (1 - J) (S + noise_std^2 I) (1 - J)^T. Other corruptions solve (A S A^T + noise_std^2 I) w = r, preconditioned by
    R (A v^2 Q A^T + noise_std^2 I) R with R = (v A A^T + noise_std^2 I)^-1 and v the average of ``power``: exact for S = v I.
    """
    variance = corruption.noise_level(operator) ** 2
    q = 1 / (model.power + variance)
    seen = corruption.observed(operator)
    r = r if seen is True else jnp.where(seen, r, 0.0)
    if corruption.hides_entries:
        kept = jnp.broadcast_to(seen, r.shape).astype(r.dtype)
        smooth = _smoothing(kept)
        # Far from all that is seen the weights vanish in float32: there J = 0, and the preconditioner is S itself.
        weight = (1 - kept) / jnp.maximum(smooth(kept), 1e-4)

        def on_hidden(u: Array) -> Array:
            return (1 - kept) * scale(model, q, u)

        def precondition(u: Array) -> Array:
            error = scale(model, model.power + variance, u - kept * smooth(weight * u))
            return (1 - kept) * error - weight * smooth(kept * error)

        s = r + weight * smooth(r)
        s = s - conjugate_gradient(on_hidden, on_hidden(s), ITERATIONS, precondition, MASK_TOLERANCE)
        score = scale(model, q, s)
        return Solved(s - variance * score, kept * score)

    typical = jnp.mean(model.power)

    def gram(weights: Array, w: Array) -> Array:
        return corruption.forward(scale(model, weights, corruption.adjoint(w, operator)), operator) + variance * w

    def commute(w: Array) -> Array:
        w = corruption.solve_gram(w, operator, typical)
        return corruption.solve_gram(gram(typical**2 * q, w), operator, typical)

    w = conjugate_gradient(lambda w: gram(model.power, w), r, ITERATIONS, commute, TOLERANCE)
    score = corruption.adjoint(w, operator)
    return Solved(scale(model, model.power, score), score)


def _smoothing(kept: Array, times: float = 1.0) -> Callable[[Array], Array]:
    """Weighted sums with weights proportional to exp(-distance / reach), mirrored at the border."""
    spatial = kept.shape[:-1] if kept.ndim > 1 else kept.shape
    reach = times * REACH * jnp.maximum(jnp.mean(kept), 1 / kept.size) ** (-1 / len(spatial))
    waves = sum(np.square(f) for f in np.meshgrid(*(np.pi * np.arange(n) / n for n in spatial), indexing="ij"))
    response = (1 + reach**2 * jnp.asarray(waves, jnp.float32)) ** (-(len(spatial) + 1) / 2)
    return lambda u: _places(response[None] * _frequencies(u), kept.shape)


def posterior_mean(corruption: LinearCorruption, model: Stationary, observation: Observation) -> Array:
    """E[x | y], [*X]."""
    y, operator = observation
    return model.mean + solve(corruption, model, y - corruption.forward(model.mean, operator), operator).x


def amplitude(model: Stationary, kept: Array, score: Array) -> Array:
    """The local variance of x in units of the model's, [*X], by the scores b at what is seen, ``kept`` [*X] in {0, 1}.

        a^2 = (average of b^2 / E[b^2] + c) / (share seen + c)

    with averages over a neighbourhood and over channels. Images are flat here and textured there: given a^2 they are nearly
    Gaussian, which they are not without.

    Source: Wainwright and Simoncelli 2000, "Scale mixtures of Gaussians and the statistics of natural images".
    """
    smooth = _smoothing(kept, WIDE)
    channels = (-1,) * (kept.ndim > 1)
    sums = (jnp.maximum(smooth(a), 0.0) for a in (score**2 / model.score, kept))
    found, share = (jnp.mean(a, channels, keepdims=True) for a in sums)
    return jnp.broadcast_to((found + model.steady) / (share + model.steady), kept.shape)


def draw(key: Key, corruption: LinearCorruption, model: Stationary, observation: Observation) -> Array:
    """One draw of p(x | y), [*X]: E[x | y] and a E[u - E[u | A u + n]] with u and n of the model, a the local ``amplitude``."""
    prior_key, noise_key = jax.random.split(key)
    y, operator = observation
    u = sample(prior_key, model) - model.mean
    noise = corruption.noise_level(operator) * jax.random.normal(noise_key, y.shape)
    r = jnp.stack([y - corruption.forward(model.mean, operator), corruption.forward(u, operator) + noise])
    solved = jax.vmap(lambda r: solve(corruption, model, r, operator))(r)
    rest = u - solved.x[1]
    if corruption.hides_entries:
        rest = jnp.sqrt(amplitude(model, _kept(corruption, model, operator), solved.score[0])) * rest
    return model.mean + solved.x[0] + rest


def moments(corruption: LinearCorruption, model: Stationary, observation: Observation) -> tuple[Array, Array]:
    """E[x | y] and Var[x | y] by entry, both [*X]; the variance by the table, of masks by how much is seen nearby and the amplitude."""
    y, operator = observation
    solved = solve(corruption, model, y - corruption.forward(model.mean, operator), operator)
    if not corruption.hides_entries:
        return model.mean + solved.x, jnp.full(solved.x.shape, jnp.mean(model.hidden))
    kept = _kept(corruption, model, operator)
    variance = jnp.where(kept > 0, model.seen, jnp.interp(_visibility(kept), model.visibility, model.hidden))
    return model.mean + solved.x, variance * amplitude(model, kept, solved.score)


def _kept(corruption: LinearCorruption, model: Stationary, operator: PyTree) -> Array:
    return jnp.broadcast_to(corruption.observed(operator), model.mean.shape).astype(jnp.float32)


def _visibility(kept: Array) -> Array:
    share = kept.astype(jnp.float32)
    return _smoothing(share)(share)


def first_guess(mean: Array, variance: float) -> Stationary:
    """A first guess: a constant, and a spectrum that falls with the power of the frequency that natural images have."""
    spatial, channels = (mean.shape[:-1], mean.shape[-1]) if mean.ndim > 1 else (mean.shape, 1)
    waves = sum(np.square(f) for f in np.meshgrid(*(np.arange(n) / n for n in spatial), indexing="ij"))
    power = (waves + (0.5 / max(spatial)) ** 2) ** (-0.5 * (len(spatial) + 1))
    one = (1,) * len(spatial)
    level = jnp.mean(mean, axis=tuple(range(len(spatial))), keepdims=True)
    return Stationary(
        jnp.broadcast_to(level, mean.shape),
        jnp.broadcast_to(jnp.eye(channels).reshape(channels, channels, *one), (channels, channels, *spatial)),
        jnp.broadcast_to(jnp.asarray(variance * power / power.mean(), jnp.float32), (channels, *spatial)),
        jnp.arange(LEVELS, dtype=jnp.float32),
        jnp.full((LEVELS,), variance, jnp.float32),
        jnp.full((), variance, jnp.float32),
    )


def fit(
    key: Key, corruption: LinearCorruption, observations: Observation, guess: Stationary, *,
    iterations: int, report: Callable[[int], None] = lambda done: None,
) -> Stationary:  # fmt: skip
    """Fits mean and spectrum to observations, then tabulates the variances given y, and chooses c of the amplitudes.

    With the score b = A^T (A S A^T + noise_std^2 I)^-1 (y - A mean) of an observation, B = E[b b^T] over the data and H the same
    over y drawn from the model under the same operators, the likelihood's gradient in S is (B - H) / 2. At each frequency the
    channels' covariance K moves to

        K' = H^-1 # (K B K),    the geometric mean of matrices,

    which maximises a lower bound of the likelihood and, other than a step of EM, is no shorter where little is seen.
    ``FEW`` of the observations [N, ...] serve all but the last third of the iterations, which begin at ``guess``, then ``MANY``;
    ``key`` gives the model's own observations, and ``report`` takes the number of steps done.

    Source: Sun, Babu and Palomar 2016, arXiv 1506.07094 (the bound for structured covariances); Sawada et al. 2013,
    "Multichannel extensions of non-negative matrix factorization with complex-valued data" (its matrix form).
    """
    total = len(observations.y)
    chosen = np.linspace(0, total - 1, min(total, MANY)).astype(int)
    order = np.random.Generator(np.random.Philox(total)).permutation(chosen)
    model = guess

    def take(number: int, most: int) -> tuple[Array, Observation]:
        size = min(most, len(order)) // BATCH * BATCH or len(order)
        index = order[(number * FEW + np.arange(size)) % len(order)]
        keys = example_keys(jax.random.fold_in(key, number), jnp.asarray(index))
        return keys, jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[index]), observations)

    for i in range(iterations):
        early = i < iterations - max(1, iterations // 3)
        keys, batch = take(i, FEW if early else MANY)
        model = _step(model, *_statistics(corruption, keys, model, batch)[:3], len(keys), 2.0 if early else 1.0)
        report(i + 1)
    keys, batch = take(iterations, FEW)
    *_, score, square = _statistics(corruption, keys, model, batch)
    model = _tabulated(corruption, model, batch.operator, np.asarray(square))
    if corruption.hides_entries:
        share = jnp.mean(jax.vmap(lambda o: _kept(corruption, model, o))(batch.operator))
        model = model._replace(score=score / share)
        best = jnp.argmin(_surprise(corruption, model, *take(iterations + 1, FEW)))
        model = model._replace(steady=jnp.asarray(STEADY)[best])
    return model


@functools.partial(jax.jit, static_argnums=0)
def _surprise(corruption: LinearCorruption, model: Stationary, keys: Array, observations: Observation) -> Array:
    """For each c of ``STEADY`` the negative log-likelihood of an eighth of what was seen given the rest, up to a constant."""

    def one(given: tuple[Array, Observation]) -> Array:
        key, (y, operator) = given
        left = jax.tree.map(lambda a: a * jax.random.bernoulli(key, 0.875, a.shape).astype(a.dtype), operator)
        rest = Observation(corruption.keep_observed(y, left), left)
        by = jax.vmap(lambda c: moments(corruption, model._replace(steady=c), rest), out_axes=(None, 0))
        mean, variance = by(jnp.asarray(STEADY))
        total = variance + corruption.noise_level(operator) ** 2
        held = _kept(corruption, model, operator) - _kept(corruption, model, left)
        misfit = ((y - mean) ** 2)[None] / total + jnp.log(total)
        return jnp.sum(held[None] * misfit, axis=tuple(range(1, total.ndim)))

    return jnp.sum(jax.lax.map(one, (keys, observations), batch_size=BATCH), axis=0)


@functools.partial(jax.jit, static_argnums=0)
def _statistics(
    corruption: LinearCorruption, keys: Array, model: Stationary, observations: Observation
) -> tuple[Array, Array, Array, Array, Array]:
    """Averages over [N] of b, b b^T and h h^T in units where K = I, and of the score's square; squared errors [N, *X]."""

    def one(key: Key, model: Stationary, observation: Observation) -> tuple[Array, Array, Array, Array, Array]:
        prior_key, noise_key = jax.random.split(key)
        y, operator = observation
        x = sample(prior_key, model)
        made = corruption.observe(noise_key, x, operator)
        residuals = jnp.stack([y, made]) - corruption.forward(model.mean, operator)[None]
        solved = jax.vmap(lambda r: solve(corruption, model, r, operator))(residuals)
        b, h = jax.vmap(lambda score: jnp.sqrt(model.power) * components(model, score))(solved.score)
        square = (x - model.mean - solved.x[1]) ** 2
        return b, b[:, None] * b[None], h[:, None] * h[None], jnp.mean(solved.score[1] ** 2), square

    def add(sums: tuple, batch: tuple[Array, Observation]) -> tuple[tuple, Array]:
        *new, square = jax.vmap(one, (0, None, 0))(batch[0], model, batch[1])
        return jax.tree.map(lambda a, b: a + jnp.sum(b, axis=0) / len(keys), sums, tuple(new)), square

    batches = jax.tree.map(lambda a: a.reshape(-1, min(BATCH, len(a)), *a.shape[1:]), (keys, observations))
    zero = jnp.zeros_like(model.power), jnp.zeros_like(model.basis), jnp.zeros_like(model.basis), jnp.zeros(())
    sums, square = jax.lax.scan(add, zero, batches)
    return *sums, square.reshape(-1, *model.mean.shape)


@functools.partial(jax.jit, static_argnums=(4, 5))
@full_precision
def _step(model: Stationary, first: Array, data: Array, own: Array, count: int, stride: float) -> Stationary:
    """One step of mean and spectrum; the mean's change has the prior N(0, S), and a thousandth of an observation is as before."""
    eye = jnp.broadcast_to(jnp.eye(len(data)), (*data.shape[2:], len(data), len(data)))
    b, h = (jnp.moveaxis(m, (0, 1), (-2, -1)) + 1e-3 * eye for m in (data, own))
    moved = jnp.linalg.solve(h + eye / count, jnp.moveaxis(first, 0, -1)[..., None])[..., 0]
    mean = model.mean + from_components(model, jnp.sqrt(model.power) * jnp.moveaxis(moved, -1, 0))
    h_root, h_inverse = _matrix_power(h, 0.5), _matrix_power(h, -0.5)
    ratio = _matrix_power(h_inverse @ _matrix_power(h_root @ b @ h_root, 0.5) @ h_inverse, stride)
    root = jnp.moveaxis(model.basis * jnp.sqrt(model.power)[None], (0, 1), (-2, -1))
    power, basis = jnp.linalg.eigh(root @ ratio @ jnp.swapaxes(root, -1, -2))
    power = jnp.maximum(jnp.moveaxis(power, -1, 0), 1e-7 * jnp.mean(power))
    return model._replace(mean=mean, basis=jnp.moveaxis(basis, (-2, -1), (0, 1)), power=power)


def _matrix_power(matrix: Array, exponent: float) -> Array:
    """A power of symmetric positive matrices [..., C, C]."""
    value, vector = jnp.linalg.eigh(matrix)
    return (vector * jnp.maximum(value, 1e-12)[..., None, :] ** exponent) @ jnp.swapaxes(vector, -1, -2)


def _tabulated(corruption: LinearCorruption, model: Stationary, operators: PyTree, square: np.ndarray) -> Stationary:
    """The model with its table: the averages of squared errors at levels of visibility, each of as many hidden entries."""
    average = jnp.float32(square.mean())
    model = model._replace(hidden=jnp.broadcast_to(average, (LEVELS,)), seen=average)
    if not corruption.hides_entries:
        return model
    kept = np.asarray(jax.vmap(lambda o: jnp.broadcast_to(corruption.observed(o), model.mean.shape))(operators))
    if min(np.sum(kept), np.sum(~kept)) < LEVELS:
        return model
    near, own = np.asarray(jax.jit(jax.vmap(_visibility))(kept))[~kept], square[~kept]
    order = np.argsort(near)
    visibility, hidden = (np.array([part.mean() for part in np.array_split(a[order], LEVELS)]) for a in (near, own))
    increasing = visibility + 1e-6 * np.arange(LEVELS)
    seen = jnp.float32(square[kept].mean())
    return model._replace(visibility=jnp.asarray(increasing, jnp.float32), hidden=jnp.asarray(hidden), seen=seen)
