"""Random projections: y = A x + n with a dense random matrix A, or with one that is never written out."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.corruptions.base import Linear, Spectral
from diffem_jax.gaussians.linalg import cholesky, solve_psd
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
    can_hold_out = True

    def draw_operator(self, key: Key) -> Array:
        rows = jax.random.normal(key, (self.measurements, self.size))
        return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)

    def forward(self, x: Array, operator: Array) -> Array:
        return operator @ x.reshape(-1)

    def adjoint(self, y: Array, operator: Array) -> Array:
        return (y @ operator).reshape(self.shape)

    def _gram_matrix(self, operator: Array, v: Array) -> Array:
        scaled = operator * jnp.broadcast_to(v, self.shape).reshape(1, -1)
        return scaled @ operator.T + self.noise_std**2 * jnp.eye(self.measurements)

    def solve_gram(self, r: Array, operator: Array, v: Array) -> Array:
        """By a Cholesky factor of the M x M matrix."""
        return solve_psd(self._gram_matrix(operator, v), r)

    def log_det_gram(self, operator: Array, v: Array) -> Array:
        return 2 * jnp.sum(jnp.log(jnp.diagonal(cholesky(self._gram_matrix(operator, v)))))

    def hold_out(self, key: Key, observation: Observation, share: float) -> tuple[Observation, Array]:
        """A share of the rows, at least one; a row of zeros is a measurement that was not made."""
        _, at = jax.lax.top_k(jax.random.uniform(key, (self.measurements,)), max(1, round(share * self.measurements)))
        held = jnp.zeros(self.measurements, bool).at[at].set(True)
        y, operator = observation
        return Observation(jnp.where(held, 0.0, y), jnp.where(held[:, None], 0.0, operator)), held

    def condition(self, observation: Observation) -> Array:
        """For vectors of at most 32 entries (A^+ y, A^+ A), for longer ones (A^+ y, y, A), for images A^+ y alone.

        A^+ y = A^T (A A^T + noise_std^2 I)^-1 y is the mean of x given y under N(0, I), and A^+ A [D, D] shows which
        directions y tells of: all that y says but for the noise's shape, without the network having to invert A.
        """
        y, a = observation.y, observation.operator
        gram = self._gram_matrix(a, jnp.ones(())) + 1e-6 * jnp.eye(self.measurements)
        back = self.adjoint(solve_psd(gram, y), a)
        if len(self.shape) > 1:
            return back
        if self.size <= 32:
            return jnp.concatenate([back, (a.T @ solve_psd(gram, a)).reshape(-1)])
        return jnp.concatenate([back, y, a.reshape(-1)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressedSensing(Spectral):
    """y = S C D x + n: random signs D, an orthonormal cosine transform C over all axes, M of its entries S.

    The rows are orthonormal, A A^T = I, and nothing of size M x D is ever formed. The operator is (signs of the shape
    of x, indices [M] of the entries kept); an index of D, beyond them all, is a measurement that was not made.

    Attributes:
        ratio: M / D, the share of measurements, in (0, 1].

    Source: subsampled randomised transforms, Ailon and Chazelle 2009; Do et al. 2012, arXiv 1106.5037.
    """

    ratio: float = 0.5
    can_hold_out = True
    needs_noise = False
    names = ("signs", "indices")

    def __post_init__(self) -> None:
        self._expect("ratio", 0 < self.ratio <= 1, "a number in (0, 1]")

    @property
    def measurements(self) -> int:
        return max(1, round(self.ratio * self.size))

    def draw_operator(self, key: Key) -> tuple[Array, Array]:
        sign_key, index_key = jax.random.split(key)
        signs = jax.random.rademacher(sign_key, self.shape, dtype=jnp.float32)
        _, indices = jax.lax.top_k(jax.random.uniform(index_key, (self.size,)), self.measurements)
        return signs, indices

    def observed(self, operator: tuple[Array, Array]) -> Array:
        return operator[1] < self.size

    def forward(self, x: Array, operator: tuple[Array, Array]) -> Array:
        signs, indices = operator
        return jax.scipy.fft.dctn(signs * x, norm="ortho").reshape(-1).at[indices].get(mode="fill", fill_value=0.0)

    def adjoint(self, y: Array, operator: tuple[Array, Array]) -> Array:
        signs, indices = operator
        spread = jnp.zeros(self.size, y.dtype).at[indices].set(y, mode="drop")
        return signs * jax.scipy.fft.idctn(spread.reshape(self.shape), norm="ortho")

    def gram_power(self, r: Array, operator: tuple[Array, Array], v: Array, power: float) -> Array:
        return self.keep_observed((v + self.noise_level(operator) ** 2) ** power * r, operator)

    def scalar_log_det(self, operator: tuple[Array, Array], v: Array) -> Array:
        return jnp.sum(self.observed(operator), dtype=v.dtype) * jnp.log(v + self.noise_level(operator) ** 2)

    def hold_out(self, key: Key, observation: Observation, share: float) -> tuple[Observation, Array]:
        signs, indices = observation.operator
        held = jax.random.bernoulli(key, share, indices.shape)
        return self._hide(observation, (signs, jnp.where(held, self.size, indices)))

    def condition(self, observation: Observation) -> Array:
        """The back-projection A^T y, the signs, and which entries of the cosine transform were measured; 3 C channels."""
        signs, indices = observation.operator
        measured = jnp.zeros(self.size).at[indices].set(1.0, mode="drop").reshape(self.shape)
        return jnp.concatenate([self.adjoint(observation.y, observation.operator), signs, measured], -1)
