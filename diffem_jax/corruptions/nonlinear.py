"""Nonlinear corruptions: JPEG, clipping, quantisation, Fourier magnitudes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.corruptions.base import AdditiveNoise
from diffem_jax.gaussians.linalg import cosines
from diffem_jax.types import Observation, PyTree

# Tables K.1 and K.2 of ITU-T T.81 (the JPEG standard), for quality 50.
LUMINANCE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
CHROMINANCE = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""
# Y, Cb, Cr from R, G, B (JFIF 1.02, section 7).
COLOUR = np.array([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])


@jax.custom_jvp
def round_through(x: Array) -> Array:
    """The nearest integer, halves away from zero, with the derivative of the identity (straight-through)."""
    # The nudge keeps exact halves, which are common among cosine coefficients, from being split by round-off.
    return jnp.sign(x) * jnp.floor(jnp.abs(x) + (0.5 + 1e-4))


round_through.defjvp(lambda primals, tangents: (round_through(*primals), tangents[0]))


def quantisation_table(base: str, quality: int) -> np.ndarray:
    """The 8 x 8 table of a quality from 1 to 100, by the scaling of the Independent JPEG Group."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((np.array(base.split(), int).reshape(8, 8) * scale + 50) // 100, 1, 255)


def _code_plane(plane: Array, table: np.ndarray) -> Array:
    """One plane [H, W] of levels 0..255 coded and decoded: the blocks' cosine coefficients rounded to the table."""
    height, width = plane.shape
    padded = jnp.pad(plane, ((0, -height % 8), (0, -width % 8)), mode="edge") - 128.0
    rows, columns = padded.shape[0] // 8, padded.shape[1] // 8
    blocks = padded.reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3)
    dct, step = jnp.asarray(cosines(8).T, plane.dtype), jnp.asarray(table, plane.dtype)[None, None]
    coefficients = jnp.einsum("ij,abjk,lk->abil", dct, blocks, dct)
    # Encoders keep the coefficients to an eighth before they divide by the table.
    coefficients = step * round_through(round_through(8 * coefficients) / (8 * step))
    blocks = jnp.einsum("ji,abjk,kl->abil", dct, coefficients, dct)
    padded = blocks.transpose(0, 2, 1, 3).reshape(padded.shape) + 128.0
    return jnp.clip(round_through(padded), 0.0, 255.0)[:height, :width]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JPEG(AdditiveNoise):
    """JPEG compression of an image [H, W, 1 or 3], decoded again; [-2, 2] stands for the levels 0 to 255.

    Everything that the standard loses is lost here (levels, colour transform, cosine coefficients of 8 x 8 blocks); the
    lossless entropy coding is left out. The derivative is that of the same map without rounding.

    Attributes:
        quality: 1 (worst) to 100.
        chroma_subsampling: halve the resolution of the colour planes (4:2:0) instead of keeping it (4:4:4).

    Source: ITU-T T.81 and JFIF 1.02; qualities 20, 50 and 70 in Hosseintabar et al. 2025, arXiv 2510.12691.
    """

    noise_std: float = 0.0
    quality: int = 50
    chroma_subsampling: bool = False

    def __post_init__(self) -> None:
        self._expect("quality", 1 <= self.quality <= 100, "1 to 100")
        self._expect("shape", len(self.shape) == 3 and self.shape[-1] in (1, 3), "[H, W, 1] or [H, W, 3] for jpeg")

    def _chroma(self, plane: Array, table: np.ndarray) -> Array:
        if not self.chroma_subsampling:
            return _code_plane(plane, table)
        height, width = plane.shape
        even = jnp.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
        small = round_through(even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).mean((1, 3)))
        return jax.image.resize(_code_plane(small, table), even.shape, "linear")[:height, :width]

    def forward(self, x: Array, operator: PyTree) -> Array:
        levels = jnp.clip(round_through((x + 2.0) * (255 / 4)), 0.0, 255.0)
        luminance, chrominance = (quantisation_table(t, self.quality) for t in (LUMINANCE, CHROMINANCE))
        if self.shape[-1] == 1:
            levels = _code_plane(levels[..., 0], luminance)[..., None]
        else:
            centre = jnp.array([0.0, 128.0, 128.0])[None, None]
            colours = jnp.matmul(levels, jnp.asarray(COLOUR.T, x.dtype)) + centre
            colours = jnp.clip(round_through(colours), 0.0, 255.0)
            planes = [_code_plane(colours[..., 0], luminance)]
            planes += [self._chroma(colours[..., i], chrominance) for i in (1, 2)]
            levels = jnp.matmul(jnp.stack(planes, -1) - centre, jnp.asarray(np.linalg.inv(COLOUR).T, x.dtype))
            levels = jnp.clip(round_through(levels), 0.0, 255.0)
        return levels * (4 / 255) - 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clipping(AdditiveNoise):
    """Values outside [low, high] are cut off (a saturated sensor).

    Attributes:
        low: the smallest value that is distinguished.
        high: the largest.
    """

    low: float = -1.0
    high: float = 1.0

    def forward(self, x: Array, operator: PyTree) -> Array:
        return jnp.clip(x, self.low, self.high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantisation(AdditiveNoise):
    """Values are rounded to ``levels`` equidistant ones from -2 to 2; the derivative is that of clipping to [-2, 2].

    Attributes:
        levels: how many, at least 2.
    """

    noise_std: float = 0.0
    levels: int = 4

    def __post_init__(self) -> None:
        self._expect("levels", self.levels >= 2, "an integer >= 2")

    def forward(self, x: Array, operator: PyTree) -> Array:
        top = self.levels - 1
        return round_through((jnp.clip(x, -2.0, 2.0) + 2.0) * (top / 4)) * (4 / top) - 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase(AdditiveNoise):
    """Phase retrieval: y = |F pad(x + offset)| + n, the magnitudes of the orthonormal Fourier transform, centred.

    Attributes:
        oversampling: x is padded by zeros to this many times its size along each spatial axis.
        offset: added to x first; 2 makes images in [-2, 2] non-negative, which rules out the sign's ambiguity.

    Source: Fienup 1982; the noise is added to the magnitudes as in Chung et al. 2023, arXiv 2209.14687.
    """

    oversampling: int = 2
    offset: float = 0.0

    def __post_init__(self) -> None:
        self._expect("oversampling", self.oversampling >= 1, "an integer >= 1")

    def forward(self, x: Array, operator: PyTree) -> Array:
        axes = tuple(range(len(self.spatial)))
        padding = [(0, (self.oversampling - 1) * n) for n in self.spatial] + [(0, 0)] * (x.ndim - len(axes))
        spectrum = jnp.fft.fftn(jnp.pad(x + self.offset, padding), axes=axes, norm="ortho")
        return jnp.abs(jnp.fft.fftshift(spectrum, axes))

    def condition(self, observation: Observation) -> Array:
        """log(1 + |y|), each cell of oversampled frequencies as channels: [*spatial, oversampling^d C]."""
        y = jnp.log1p(jnp.abs(observation.y))
        if len(self.shape) == 1:
            return y
        d, cells = len(self.spatial), [side for n in self.spatial for side in (n, self.oversampling)]
        y = y.reshape(*cells, self.shape[-1])
        return y.transpose(*range(0, 2 * d, 2), *range(1, 2 * d, 2), 2 * d).reshape(*self.spatial, -1)
