"""Blurs: y = k * x + n with a kernel k that is given, or drawn for every example."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.corruptions.base import AdditiveNoise, Separable, Spectral, along_axes, gather_matrix, mirror_columns
from diffem_jax.types import Key, Observation, PyTree

BINOMIAL = ((0.0625, 0.125, 0.0625), (0.125, 0.25, 0.125), (0.0625, 0.125, 0.0625))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianBlur(Separable):
    """Blur by a Gaussian along every spatial axis (cut off at five standard deviations, weights summing to 1).

    Attributes:
        std: the Gaussian's standard deviation in pixels, > 0.
        border: 'circular' (the image repeats) or 'reflect' (it is mirrored at its edge, the edge pixel twice: what
            scipy.ndimage calls 'reflect' and numpy.pad 'symmetric').

    Source: the blur of Hosseintabar et al. 2025, arXiv 2510.12691, section 4 (std 2 on CIFAR-10).
    """

    std: float = 2.0
    border: str = "circular"
    condition = AdditiveNoise.condition

    def __post_init__(self) -> None:
        self._expect("border", self.border in ("circular", "reflect"), "'circular' or 'reflect'")
        self._expect("std", self.std > 0, "a number > 0 ('denoising' does not blur)")

    def matrices(self) -> tuple[np.ndarray, ...]:
        """One circulant, or mirrored, matrix of Gaussian weights per axis."""
        reach = math.ceil(5 * self.std)
        offsets = np.arange(-reach, reach + 1)
        weights = np.exp(-0.5 * (offsets / self.std) ** 2)
        weights /= weights.sum()
        wrap = np.remainder if self.border == "circular" else mirror_columns
        return tuple(gather_matrix(wrap(np.arange(n)[:, None] + offsets, n), weights, n) for n in self.spatial)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircularConvolution(Spectral):
    """Base of the circular convolutions with a kernel, whose origin is the entry n // 2 of every axis."""

    condition = AdditiveNoise.condition

    def kernel(self, operator: PyTree) -> Array:
        """The kernel, one axis for each spatial axis, of any size."""
        raise NotImplementedError

    def _transfer(self, operator: PyTree) -> Array:
        """The kernel's Fourier transform on the image's frequencies, [*spatial] complex."""
        kernel, waves = self.kernel(operator).astype(jnp.complex64), []
        for n, size in zip(self.spatial, kernel.shape, strict=True):
            phase = np.outer(np.arange(n), np.arange(size) - size // 2) % n
            waves.append(np.exp(-2j * np.pi * phase / n))
        # As a product of small matrices it wraps round kernels that are larger than the image.
        return along_axes(kernel, tuple(waves))

    def _filter(self, x: Array, transfer: Array) -> Array:
        axes = tuple(range(len(self.spatial)))
        half = transfer[..., : self.spatial[-1] // 2 + 1]
        half = half.reshape(half.shape + (1,) * (x.ndim - len(axes)))
        return jnp.fft.irfftn(jnp.fft.rfftn(x, axes=axes) * half, s=self.spatial, axes=axes)

    def forward(self, x: Array, operator: PyTree) -> Array:
        """The convolution k * x, channel by channel."""
        return self._filter(x, self._transfer(operator))

    def adjoint(self, y: Array, operator: PyTree) -> Array:
        return self._filter(y, jnp.conj(self._transfer(operator)))

    def _total(self, operator: PyTree, v: Array) -> Array:
        """V |k^|^2 + noise_std^2, [*spatial]."""
        transfer = self._transfer(operator)
        return v * (transfer.real**2 + transfer.imag**2) + self.noise_level(operator) ** 2

    def gram_power(self, r: Array, operator: PyTree, v: Array, power: float) -> Array:
        return self._filter(r, (self._total(operator, v) ** power).astype(jnp.complex64))

    def scalar_log_det(self, operator: PyTree, v: Array) -> Array:
        """The sum of log(v |k^|^2 + noise_std^2), once per channel."""
        return (self.shape[-1] if len(self.shape) > 1 else 1) * jnp.sum(jnp.log(self._total(operator, v)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelBlur(CircularConvolution):
    """Circular blur by a given kernel.

    Attributes:
        weights: the kernel as nested tuples, one level for each spatial axis; used as it is, not normalised.
    """

    weights: tuple = BINOMIAL

    def __post_init__(self) -> None:
        fits = np.ndim(self.weights) == len(self.spatial)
        self._expect("weights", fits, f"nested tuples, a level for each of the spatial axes {self.spatial}")

    def kernel(self, operator: PyTree) -> Array:
        return jnp.asarray(np.asarray(self.weights, np.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionBlur(CircularConvolution):
    """Circular blur along a straight line whose direction is drawn uniformly for every example; images [H, W, C].

    The operator is the kernel [K, K]: 1 on the line, falling to 0 one pixel away from it, summing to 1.

    Attributes:
        length: the line's length in pixels, >= 1.
    """

    length: float = 9.0

    def __post_init__(self) -> None:
        self._expect("shape", len(self.shape) == 3, "[H, W, C] for motion_blur (kernel_blur takes any)")
        self._expect("length", self.length >= 1, "a number >= 1 ('denoising' does not blur)")

    def draw_operator(self, key: Key) -> Array:
        angle, reach = jax.random.uniform(key, (), maxval=jnp.pi), math.ceil(self.length / 2)
        rows, columns = np.indices((2 * reach + 1,) * 2).astype(np.float32) - reach
        along = jnp.cos(angle) * columns - jnp.sin(angle) * rows
        across = jnp.sin(angle) * columns + jnp.cos(angle) * rows
        beyond = jnp.maximum(jnp.abs(along) - (self.length - 1) / 2, 0.0)
        weights = jnp.maximum(1.0 - jnp.sqrt(across**2 + beyond**2), 0.0)
        return weights / jnp.sum(weights)

    def kernel(self, operator: Array) -> Array:
        return operator

    def condition(self, observation: Observation) -> Array:
        """y, its back-projection and the kernel's second moments as constant planes, [H, W, 2 C + 3]."""
        kernel = observation.operator
        reach = kernel.shape[0] // 2
        rows, columns = (np.indices(kernel.shape).astype(np.float32) - reach) / reach
        moments = [jnp.sum(kernel * m) for m in (rows**2, rows * columns, columns**2)]
        planes = jnp.broadcast_to(jnp.stack(moments)[None, None, :], (*self.spatial, 3))
        return jnp.concatenate([observation.y, self.adjoint(observation.y, kernel), planes], axis=-1)
