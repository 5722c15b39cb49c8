"""Random projections: y = A x + n with a dense random matrix A."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.corruptions.base import Linear
from diffem_jax.linalg import cholesky, solve_psd
from diffem_jax.types import Key, Observation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Projection(Linear):
    """y = A x + n with A [M, D], its rows drawn uniformly from the unit sphere for every example.

    Attributes:
        measurements: M, the number of rows, at least 1.

    Source: the manifold experiment of Rozet et al. 2024, arXiv 2405.13712, appendix, and of Hosseintabar et al.
    2025, arXiv 2510.12691, section 4.1 (M = 2, D = 5).
    """

    measurements: int = 2

    def draw_operator(self, key: Key) -> Array:
        """A [M, D] with unit rows."""
        rows = jax.random.normal(key, (self.measurements, self.size))
        return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)

    @property
    def size(self) -> int:
        """D, the number of entries of x."""
        size = 1
        for n in self.shape:
            size *= n
        return size

    def forward(self, x: Array, operator: Array) -> Array:
        """A x, [M]."""
        return operator @ x.reshape(-1)

    def adjoint(self, y: Array, operator: Array) -> Array:
        """A^T y, of the shape of x."""
        return (y @ operator).reshape(self.shape)

    def _gram_matrix(self, operator: Array, v: Array) -> Array:
        scaled = operator * jnp.broadcast_to(v, self.shape).reshape(-1)
        return scaled @ operator.T + self.noise_std**2 * jnp.eye(self.measurements)

    def solve_gram(self, r: Array, operator: Array, v: Array) -> Array:
        """(A diag(v) A^T + noise_std^2 I)^-1 r by a Cholesky factor of the M x M matrix."""
        return solve_psd(self._gram_matrix(operator, v), r)

    def log_det_gram(self, operator: Array, v: Array) -> Array:
        """log det of the M x M matrix."""
        return 2 * jnp.sum(jnp.log(jnp.diagonal(cholesky(self._gram_matrix(operator, v)))))

    def null_operator(self) -> Array:
        """A = 0."""
        return jnp.zeros((self.measurements, self.size))

    def condition(self, observation: Observation) -> Array:
        """For vectors (y, A, A^T y) in one vector; for images the back-projection A^T y."""
        back = self.adjoint(observation.y, observation.operator)
        if len(self.shape) > 1:
            return back
        return jnp.concatenate([observation.y, observation.operator.reshape(-1), back])
