"""Linear maps that act along each axis by a small matrix: y = (B_1 x B_2 x ...) x + n."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.corruptions.base import Spectral
from diffem_jax.types import PyTree


def along_axes(x: Array, matrices: tuple[np.ndarray, ...]) -> Array:
    """Applies matrices[i] [n_i, N_i] along axis i of x; axes beyond the matrices stay as they are."""
    for axis, matrix in enumerate(matrices):
        # The default matrix precision of accelerators would be worse than the noise.
        y = jnp.tensordot(jnp.asarray(matrix, x.dtype), x, (1, axis), precision=jax.lax.Precision.HIGHEST)
        x = jnp.moveaxis(y, 0, axis)
    return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Separable(Spectral):
    """Base of the separable corruptions; a subclass gives ``matrices``, one [n_i, N_i] for each spatial axis.

    With B_i B_i^T = U_i diag(l_i) U_i^T the matrix v A A^T + noise_std^2 I is diagonal in the basis of the U_i, with
    the entries v l_1 l_2 ... + noise_std^2. The factors are computed once, in double precision, while tracing.
    """

    def matrices(self) -> tuple[np.ndarray, ...]:
        """B_i, in double precision."""
        raise NotImplementedError

    def forward(self, x: Array, operator: PyTree) -> Array:
        """(B_1 x B_2 x ...) x."""
        del operator
        return along_axes(x, _factors(self)[0])

    def adjoint(self, y: Array, operator: PyTree) -> Array:
        """(B_1^T x B_2^T x ...) y."""
        del operator
        return along_axes(y, tuple(b.T for b in _factors(self)[0]))

    def gram_power(self, r: Array, operator: PyTree, v: Array, power: float) -> Array:
        """By the eigenvectors of every axis."""
        _, vectors, spectrum = _factors(self)
        total = v * jnp.asarray(spectrum, r.dtype) + self.noise_level(operator) ** 2
        return along_axes(along_axes(r, tuple(u.T for u in vectors)) * total**power, vectors)

    def log_det_gram(self, operator: PyTree, v: Array) -> Array:
        """The sum of log(v l + noise_std^2) over the spectrum for a scalar v; dense for a v of ``shape``."""
        if jnp.ndim(v) > 0:
            return super().log_det_gram(operator, v)
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
