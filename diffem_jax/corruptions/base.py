"""What corruptions share: Gaussian noise, and defaults for linear operators that a family replaces by closed forms."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.linalg import cholesky, conjugate_gradient
from diffem_jax.types import Key, Observation, PyTree

CG_ITERATIONS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdditiveNoise:
    """Base of the corruptions y = A(x) + n, n ~ N(0, noise_std^2 I).

    A subclass writes ``draw_operator``, ``forward`` and, where the defaults do not serve, ``condition``.

    Attributes:
        shape: the shape of x.
        noise_std: the standard deviation of n in data units (data live in [-2, 2]), >= 0.
    """

    shape: tuple[int, ...]
    noise_std: float = 0.01

    def draw_operator(self, key: Key) -> PyTree:
        """One operator; the default family has a single, fixed one."""
        del key
        return ()

    def forward(self, x: Array, operator: PyTree) -> Array:
        """A x; the default sees all of x."""
        del operator
        return x

    def sample(self, key: Key, x: Array) -> Observation:
        """Draws the operator and the noise: y = A x + noise_std n."""
        operator_key, noise_key = jax.random.split(key)
        operator = self.draw_operator(operator_key)
        clean = self.forward(x, operator)
        return Observation(clean + self.noise_std * jax.random.normal(noise_key, clean.shape), operator)

    def condition(self, observation: Observation) -> Array:
        """What the network sees; the default is y itself."""
        return observation.y


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(AdditiveNoise):
    """Base of the linear corruptions: adjoint by transposition, gram solves by conjugate gradients.

    Both are right for any linear ``forward``; a family with a closed form overrides them.
    """

    def adjoint(self, y: Array, operator: PyTree) -> Array:
        """A^T y."""
        transpose = jax.linear_transpose(lambda x: self.forward(x, operator), jnp.zeros(self.shape))
        return transpose(y)[0]

    def gram(self, r: Array, operator: PyTree, v: Array) -> Array:
        """(A diag(v) A^T + noise_std^2 I) r."""
        return self.forward(v * self.adjoint(r, operator), operator) + self.noise_std**2 * r

    def solve_gram(self, r: Array, operator: PyTree, v: Array) -> Array:
        """(A diag(v) A^T + noise_std^2 I)^-1 r by conjugate gradients."""
        return conjugate_gradient(lambda u: self.gram(u, operator, v), r, CG_ITERATIONS)

    def log_det_gram(self, operator: PyTree, v: Array) -> Array:
        """log det(A diag(v) A^T + noise_std^2 I) from the dense matrix: for small observations."""
        y_shape = jax.eval_shape(self.forward, jax.ShapeDtypeStruct(self.shape, jnp.float32), operator).shape
        size = math.prod(y_shape)
        basis = jnp.eye(size).reshape(size, *y_shape)
        dense = jax.vmap(lambda e: self.gram(e, operator, v).reshape(-1))(basis)
        return 2 * jnp.sum(jnp.log(jnp.diagonal(cholesky(dense))))

    def null_operator(self) -> PyTree:
        """None: this family cannot express that nothing was observed."""
        return None

    def condition(self, observation: Observation) -> Array:
        """The back-projection A^T y, which has the shape of x."""
        return self.adjoint(observation.y, observation.operator)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(Linear):
    """Additive noise alone: y = x + n."""

    def adjoint(self, y: Array, operator: PyTree) -> Array:
        """y itself."""
        del operator
        return y

    def solve_gram(self, r: Array, operator: PyTree, v: Array) -> Array:
        """r / (v + noise_std^2)."""
        del operator
        return r / (v + self.noise_std**2)

    def log_det_gram(self, operator: PyTree, v: Array) -> Array:
        """The sum of log(v + noise_std^2)."""
        del operator
        return jnp.sum(jnp.log(jnp.broadcast_to(v + self.noise_std**2, self.shape)))
