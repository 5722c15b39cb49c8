"""What corruptions share: Gaussian noise, and defaults for linear operators that a family replaces by closed forms.

The docstrings here are the contract. An override has one of its own where it adds a formula or a shape.
"""

import dataclasses
import functools
import inspect
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.errors import UserError
from diffem_jax.gaussians.linalg import cholesky, conjugate_gradient, full_precision, quadratic_log
from diffem_jax.types import Key, Observation, PyTree

DENSE = 1024  # measurements up to which a log-determinant is that of the dense matrix
PROBES, LANCZOS_STEPS = 4, 24  # random vectors, and Lanczos steps from each, of the estimate above that


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdditiveNoise:
    """Base of the corruptions y = A(x) + n, n ~ N(0, noise_std^2 I).

    A subclass writes ``draw_operator``, ``forward`` and, where the defaults do not serve, ``condition``. Whatever else the
    package asks of a corruption has its default here or in ``Linear``.

    Attributes:
        shape: the shape of x: [*spatial, C], or [D] for a vector.
        noise_std: the standard deviation of n in data units (data live in [-2, 2]), >= 0.
        names: of the operator's arrays, where 'operator' or 'operator_0', ... do not say enough.
    """

    shape: tuple[int, ...]
    noise_std: float = 0.01
    names: ClassVar[tuple[str, ...]] = ()
    is_linear: ClassVar[bool] = False  # y = A x + n with a linear A, so that the closed forms of ``Linear`` are there
    hides_entries: ClassVar[bool] = False  # y is x with some entries hidden, beside the noise

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Matrix products of every corruption, a user's own included, are in full float32."""
        super().__init_subclass__(**kwargs)
        for name, member in list(vars(cls).items()):
            if inspect.isfunction(member) and not name.startswith("__"):
                setattr(cls, name, full_precision(member))

    def _expect(self, field: str, holds: bool, expected: str) -> None:
        """Refuses a field's value."""
        if not holds:
            value = getattr(self, field)
            raise UserError(f"corruption.{field}: {value!r:.100}; expected {expected}; change corruption.{field}")

    @property
    def size(self) -> int:
        """The number of entries of x."""
        return math.prod(self.shape)

    @property
    def spatial(self) -> tuple[int, ...]:
        """The spatial part of ``shape``: all but the channels; the whole of it for a vector."""
        return self.shape[:-1] if len(self.shape) > 1 else self.shape

    @property
    def random_operator(self) -> bool:
        """Whether different keys draw different operators."""
        return True

    @property
    def has_diagonal_gram(self) -> bool:
        """Whether A diag(v) A^T is diagonal, and ``gram_diagonal`` yields its diagonal."""
        return False

    @property
    def can_hold_out(self) -> bool:
        """Whether ``hold_out`` can hide a share of the measurements of an observation."""
        return False

    def draw_operator(self, key: Key) -> PyTree:
        """One operator; () where there is a single, fixed one."""
        return ()

    def operator_names(self) -> list[str]:
        """What the operator's arrays are called in a user's file, in the order of ``jax.tree.leaves``."""
        if self.names:
            return list(self.names)
        count = len(jax.tree.leaves(jax.eval_shape(self.draw_operator, jax.random.key(0))))
        return ["operator"] if count == 1 else [f"operator_{i}" for i in range(count)]

    def forward(self, x: Array, operator: PyTree) -> Array:
        """A x, without noise; differentiable where that makes sense. The default sees all of x."""
        return x

    def observed(self, operator: PyTree) -> Array | bool:
        """Which entries of y carry a measurement: True for all, or an array of y's shape; the others are 0."""
        return True

    def keep_observed(self, y: Array, operator: PyTree) -> Array:
        """y, and exactly 0 where nothing is observed, whatever y holds there."""
        seen = self.observed(operator)
        return y if seen is True else jnp.where(seen, y, 0.0)

    def noise_level(self, operator: PyTree) -> Array | float:
        """The standard deviation of n given the operator, a scalar."""
        return self.noise_std

    def noise_variance(self, x: Array, operator: PyTree) -> Array | float:
        """The variance of the observed entries of y given x and the operator: a scalar, or an array of y's shape."""
        return self.noise_level(operator) ** 2

    def observe(self, key: Key, x: Array, operator: PyTree) -> Array:
        """Draws y ~ p(y | x, operator): ``forward`` and noise, exactly 0 where nothing is observed."""
        clean = self.forward(x, operator)
        return self.keep_observed(clean + self.noise_level(operator) * jax.random.normal(key, clean.shape), operator)

    def sample(self, key: Key, x: Array) -> Observation:
        """Draws the operator, and y given it."""
        operator_key, noise_key = jax.random.split(key)
        operator = self.draw_operator(operator_key)
        return Observation(self.observe(noise_key, x, operator), operator)

    def hold_out(self, key: Key, observation: Observation, share: float) -> tuple[Observation, Array]:
        """The observation with a share of its measurements hidden as well, and where those are, of y's shape.

        Only where ``can_hold_out``, else a ``UserError``. What is left is again an observation of this corruption.
        """
        expected = "a mask, a projection or another corruption with can_hold_out"
        cure = f"expected {expected}; choose a measure that needs none, such as 'observation_score'"
        raise UserError(f"corruption: {type(self).__name__} cannot hold measurements back; {cure}")

    def _hide(self, observation: Observation, operator: PyTree) -> tuple[Observation, Array]:
        """What is left of an observation under an operator that sees less, and which of its entries were removed."""
        left = Observation(self.keep_observed(observation.y, operator), operator)
        return left, jnp.asarray(self.observed(observation.operator)) & ~jnp.asarray(self.observed(operator))

    def fill(self, observation: Observation) -> Array | None:
        """An interpolation of y, of ``shape``, which then stands for the mean of x given y; None where there is none."""
        return None

    def condition(self, observation: Observation) -> Array:
        """What the network sees of an observation: [*spatial, K] for images, a vector otherwise; the default is y itself."""
        return observation.y


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(AdditiveNoise):
    """Base of the linear corruptions: adjoint by transposition, gram solves by conjugate gradients.

    Both are right for any linear ``forward``; a family with a closed form overrides them. Entries of y that are not
    observed take no part: solutions are 0 there, and they add nothing to the log-determinant.
    """

    is_linear = True

    @property
    def needs_noise(self) -> bool:
        """Whether A A^T itself may have no inverse, so that solves need a noise_std > 0."""
        return True

    def adjoint(self, y: Array, operator: PyTree) -> Array:
        """A^T y, of ``shape``."""
        return jax.linear_transpose(lambda x: self.forward(x, operator), jnp.zeros(self.shape))(y)[0]

    def gram(self, r: Array, operator: PyTree, v: Array) -> Array:
        """(A diag(v) A^T + noise_std^2 I) r for a scalar v or a v of ``shape``."""
        return self.forward(v * self.adjoint(r, operator), operator) + self.noise_level(operator) ** 2 * r

    def gram_diagonal(self, operator: PyTree, v: Array) -> Array:
        """The diagonal of A diag(v) A^T, of y's shape, for a v of ``shape``; only where ``has_diagonal_gram``."""
        raise NotImplementedError

    def precondition(self, r: Array, operator: PyTree, v: Array) -> Array:
        """An approximation of (A diag(v) A^T + noise_std^2 I)^-1 r, symmetric positive definite; it speeds up the conjugate gradients."""
        return r

    def solve_gram(self, r: Array, operator: PyTree, v: Array) -> Array:
        """(A diag(v) A^T + noise_std^2 I)^-1 r by conjugate gradients; ``solve_residual`` says what they leave."""
        return conjugate_gradient(
            lambda u: self.gram(u, operator, v),
            self.keep_observed(r, operator),
            precondition=lambda u: self.precondition(u, operator, v),
        )

    def solve_residual(self, r: Array, operator: PyTree, v: Array) -> Array:
        """The root mean square over the observed entries of (A diag(v) A^T + noise_std^2 I) solve_gram(r) - r, over noise_std.

        A draw A x misses y by that much more than the noise: at 0.3 the misfit grows by 4%, sqrt(1 + 0.3^2).
        """
        r = self.keep_observed(r, operator)
        rest = self.gram(self.solve_gram(r, operator, v), operator, v) - r
        return jnp.sqrt(jnp.sum(rest**2) / jnp.maximum(self._count(operator), 1.0)) / self.noise_level(operator)

    def log_det_gram(self, operator: PyTree, v: Array) -> Array:
        """The log det(A diag(v) A^T + noise_std^2 I), exact for at most ``DENSE`` measurements, else estimated.

        The estimate takes the same random vectors at every call, so that the values for several v can be compared.
        """
        y_shape = self._y_shape(operator)
        size = math.prod(y_shape)
        if size > DENSE:
            signs = jax.random.rademacher(jax.random.key(0), (PROBES, *y_shape), jnp.float32)
            signs = self.keep_observed(signs, operator)
            return jnp.mean(
                jax.vmap(lambda z: quadratic_log(lambda u: self.gram(u, operator, v), z, LANCZOS_STEPS))(signs)
            )
        units = jnp.eye(size).reshape(size, *y_shape)
        dense = jax.vmap(self.gram, (0, None, None))(units, operator, v).reshape(size, size)
        seen = jnp.broadcast_to(jnp.asarray(self.observed(operator)), y_shape).reshape(-1)
        dense = jnp.where(seen[:, None] & seen[None, :], dense, jnp.eye(size))
        return 2 * jnp.sum(jnp.log(jnp.diagonal(cholesky(dense))))

    def _y_shape(self, operator: PyTree) -> tuple[int, ...]:
        return jax.eval_shape(self.forward, jax.ShapeDtypeStruct(self.shape, jnp.float32), operator).shape

    def _count(self, operator: PyTree) -> Array:
        """The number of observed entries of y, []."""
        seen = jnp.broadcast_to(jnp.asarray(self.observed(operator)), self._y_shape(operator))
        return jnp.sum(seen, dtype=jnp.float32)

    def matrices(self) -> tuple[np.ndarray, ...] | None:
        """[n_i, N_i] along each spatial axis of x, in double precision, whose Kronecker product is A; None where A is not separable."""
        return None

    def condition(self, observation: Observation) -> Array:
        """The back-projection A^T y, which has the shape of x."""
        return self.adjoint(observation.y, observation.operator)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiagonalGram(Linear):
    """Base of the linear corruptions with a diagonal A diag(v) A^T, ``gram_diagonal``: every solve is a division."""

    has_diagonal_gram = True
    needs_noise = False

    def _total(self, operator: PyTree, v: Array) -> Array:
        total = self.gram_diagonal(operator, jnp.broadcast_to(v, self.shape)) + self.noise_level(operator) ** 2
        return jnp.where(self.observed(operator), total, 1.0)

    def solve_gram(self, r: Array, operator: PyTree, v: Array) -> Array:
        return self.keep_observed(r / self._total(operator, v), operator)

    def log_det_gram(self, operator: PyTree, v: Array) -> Array:
        return jnp.sum(jnp.log(self._total(operator, v)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectral(Linear):
    """Base of the linear corruptions for which powers of v A A^T + noise_std^2 I are cheap when v is a scalar.

    A subclass writes ``gram_power`` and ``scalar_log_det``. For a v of ``shape`` conjugate gradients are preconditioned by the
    same matrix with the geometric mean of v: their speed depends on the spread of v alone, however small the noise.
    """

    def gram_power(self, r: Array, operator: PyTree, v: Array, power: float) -> Array:
        """(v A A^T + noise_std^2 I)^power r for a scalar v."""
        raise NotImplementedError

    def scalar_log_det(self, operator: PyTree, v: Array) -> Array:
        """Returns log det(v A A^T + noise_std^2 I) for a scalar v."""
        raise NotImplementedError

    def precondition(self, r: Array, operator: PyTree, v: Array) -> Array:
        return self.gram_power(r, operator, jnp.exp(jnp.mean(jnp.log(v))), -1.0)

    def solve_gram(self, r: Array, operator: PyTree, v: Array) -> Array:
        return self.gram_power(r, operator, v, -1.0) if jnp.ndim(v) == 0 else super().solve_gram(r, operator, v)

    def log_det_gram(self, operator: PyTree, v: Array) -> Array:
        return self.scalar_log_det(operator, v) if jnp.ndim(v) == 0 else super().log_det_gram(operator, v)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(DiagonalGram):
    """Additive noise alone: y = x + n."""

    def adjoint(self, y: Array, operator: PyTree) -> Array:
        return y

    def gram_diagonal(self, operator: PyTree, v: Array) -> Array:
        return v

    def matrices(self) -> tuple[np.ndarray, ...]:
        return tuple(np.eye(n) for n in self.spatial)


def along_axes(x: Array, matrices: tuple[np.ndarray, ...]) -> Array:
    """Applies matrices[i] [n_i, N_i] along axis i of x; axes beyond the matrices stay as they are."""
    for axis, matrix in enumerate(matrices):
        x = jnp.moveaxis(jnp.tensordot(jnp.asarray(matrix, x.dtype), x, (1, axis)), 0, axis)
    return x


def mirror_columns(columns: np.ndarray, n: int) -> np.ndarray:
    """Indices below 0 or beyond n - 1 mirrored at the edges of an axis of n entries, the edge entry twice."""
    columns = columns % (2 * n)
    return np.where(columns < n, columns, 2 * n - 1 - columns)


def gather_matrix(columns: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """[M, n] with row i the sum of weights[i, j] at columns[i, j], for columns [M, J]."""
    matrix = np.zeros((len(columns), n))
    np.add.at(matrix, (np.arange(len(columns))[:, None], columns), np.broadcast_to(weights, columns.shape))
    return matrix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Separable(Spectral):
    """Base of the separable corruptions; a subclass gives ``matrices``, one B_i [n_i, N_i] for each spatial axis.

    With B_i B_i^T = U_i diag(l_i) U_i^T the matrix v A A^T + noise_std^2 I is diagonal in the basis of the U_i, with
    the entries v l_1 l_2 ... + noise_std^2. The factors are computed once, in double precision, while tracing.
    """

    def matrices(self) -> tuple[np.ndarray, ...]:
        raise NotImplementedError

    def forward(self, x: Array, operator: PyTree) -> Array:
        """(B_1 x B_2 x ...) x."""
        return along_axes(x, _factors(self)[0])

    def adjoint(self, y: Array, operator: PyTree) -> Array:
        """(B_1^T x B_2^T x ...) y."""
        return along_axes(y, tuple(b.T for b in _factors(self)[0]))

    def gram_power(self, r: Array, operator: PyTree, v: Array, power: float) -> Array:
        _, vectors, spectrum = _factors(self)
        total = v * jnp.asarray(spectrum, r.dtype) + self.noise_level(operator) ** 2
        return along_axes(along_axes(r, tuple(u.T for u in vectors)) * total**power, vectors)

    def scalar_log_det(self, operator: PyTree, v: Array) -> Array:
        """The sum of log(v l + noise_std^2) over the spectrum l, once per channel."""
        spectrum = jnp.asarray(_factors(self)[2], jnp.float32)
        copies = self.shape[-1] if len(self.shape) > 1 else 1
        return copies * jnp.sum(jnp.log(v * spectrum + self.noise_level(operator) ** 2))


@functools.lru_cache(maxsize=64)
def _factors(corruption: Separable) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], np.ndarray]:
    """The B_i, the U_i, and the products of the l_i, with a last axis of length 1 for the channels."""
    matrices = corruption.matrices()
    values, vectors = zip(*(np.linalg.eigh(b @ b.T) for b in matrices), strict=True)
    spectrum = functools.reduce(np.multiply.outer, (np.maximum(value, 0.0) for value in values))
    return matrices, vectors, spectrum[..., None] if len(corruption.shape) > 1 else spectrum
