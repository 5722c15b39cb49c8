"""Corruptions that lower the resolution: in space (super-resolution) or in colour."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.corruptions.base import AdditiveNoise, DiagonalGram, Linear, Separable, gather_matrix, mirror_columns
from diffem_jax.types import Observation, PyTree

LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Downsampling(Linear):
    """Base of what lowers the resolution in space.

    Attributes:
        factor: the ratio of the sides of x and y; it divides every spatial axis.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        divides = self.factor >= 1 and not any(n % self.factor for n in self.spatial)
        self._expect("factor", divides, f"an integer >= 1 that divides the spatial shape {self.spatial}")

    @property
    def _cell(self) -> int:
        return self.factor ** len(self.spatial)

    def condition(self, observation: Observation) -> Array:
        """The back-projection, scaled so that a constant image stays (nearly) that constant, of the shape of x."""
        return self._cell * self.adjoint(observation.y, observation.operator)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxDownsampling(_Downsampling, DiagonalGram):
    """Every pixel of y is the mean over a block of factor x factor pixels of x (any number of spatial axes)."""

    def forward(self, x: Array, operator: PyTree) -> Array:
        for axis in range(len(self.spatial)):
            cut = (*x.shape[:axis], x.shape[axis] // self.factor, self.factor, *x.shape[axis + 1 :])
            x = x.reshape(cut).mean(axis + 1)
        return x

    def adjoint(self, y: Array, operator: PyTree) -> Array:
        """Every entry of y spread evenly over its block."""
        for axis in range(len(self.spatial)):
            y = jnp.repeat(y, self.factor, axis)
        return y / self._cell

    def gram_diagonal(self, operator: PyTree, v: Array) -> Array:
        """The block means of v over the block's number of pixels."""
        return self.forward(v, operator) / self._cell

    def matrices(self) -> tuple[np.ndarray, ...]:
        means = np.full((1, self.factor), 1 / self.factor)
        return tuple(np.kron(np.eye(n // self.factor), means) for n in self.spatial)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BicubicDownsampling(_Downsampling, Separable):
    """Antialiased bicubic downsampling (Keys' kernel with a = -1/2, stretched by the factor; mirrored borders).

    Source: Keys 1981; the degradation that is usual in super-resolution ("imresize").
    """

    def matrices(self) -> tuple[np.ndarray, ...]:
        """One [N / factor, N] matrix per axis, its rows summing to 1."""
        matrices = []
        for n in self.spatial:
            centre = (np.arange(n // self.factor) + 0.5) * self.factor - 0.5
            near = np.floor(centre)[:, None] + np.arange(-2 * self.factor, 2 * self.factor + 2)
            distance = np.abs(near - centre[:, None]) / self.factor
            inner = 1.5 * distance**3 - 2.5 * distance**2 + 1
            outer = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
            weights = np.where(distance <= 1, inner, np.where(distance < 2, outer, 0.0))
            weights /= weights.sum(1, keepdims=True)
            matrices.append(gather_matrix(mirror_columns(near.astype(int), n), weights, n))
        return tuple(matrices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grayscale(DiagonalGram):
    """y is a weighted mean of the channels, [*spatial, 1].

    Attributes:
        weights: one weight per channel; () is the luma of ITU-R BT.601 for three channels and equal weights otherwise.
    """

    weights: tuple[float, ...] = ()
    condition = AdditiveNoise.condition

    def __post_init__(self) -> None:
        self._expect("weights", len(self.weights) in (0, self.shape[-1]), f"one per channel, {self.shape[-1]}")

    def _weights(self) -> Array:
        channels = self.shape[-1]
        weights = self.weights or (LUMA if channels == 3 else (1 / channels,) * channels)
        return jnp.asarray(weights, jnp.float32).reshape((1,) * (len(self.shape) - 1) + (channels,))

    def forward(self, x: Array, operator: PyTree) -> Array:
        return jnp.sum(self._weights() * x, -1, keepdims=True)

    def adjoint(self, y: Array, operator: PyTree) -> Array:
        return self._weights() * y

    def gram_diagonal(self, operator: PyTree, v: Array) -> Array:
        return jnp.sum(self._weights() ** 2 * v, -1, keepdims=True)
