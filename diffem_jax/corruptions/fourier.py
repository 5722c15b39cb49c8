"""Fourier subsampling (magnetic resonance imaging): y = m * F S x + n with one coil or several.

Spectra are centred (zero frequency at n // 2) and orthonormal. Complex numbers are two channels, real then imaginary:
x is a complex image [*spatial, 2] where ``complex_image`` is set, and C real channels [*spatial, C] otherwise.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.corruptions.base import Linear, Spectral
from diffem_jax.types import Key, Observation


def to_real(z: Array) -> Array:
    """[..., C] complex -> [..., 2 C] real: the real and imaginary part of each channel in turn."""
    return jnp.stack([z.real, z.imag], -1).reshape(*z.shape[:-1], 2 * z.shape[-1])


def to_complex(x: Array) -> Array:
    """[..., 2 C] real -> [..., C] complex, the inverse of ``to_real``."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    return jax.lax.complex(pairs[..., 0], pairs[..., 1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CartesianFourier(Linear):
    """What one coil and several share: images, transforms and the random mask of lines along the last spatial axis.

    Attributes:
        acceleration: the number of lines over the number of measured ones, >= 1.
        center_fraction: the share of the lines, around the zero frequency, that are always measured.
        complex_image: x is a complex image [*spatial, 2] instead of C real channels.
    """

    acceleration: float = 4.0
    center_fraction: float = 0.08
    complex_image: bool = False
    can_hold_out = True

    def __post_init__(self) -> None:
        fits = len(self.shape) > 1 and (not self.complex_image or self.shape[-1] == 2)
        self._expect("shape", fits, "[*spatial, C], and C = 2 where corruption.complex_image is True")
        self._expect("acceleration", self.acceleration >= 1, "a number >= 1")
        self._expect("center_fraction", 0 <= self.center_fraction <= 1, "a number in [0, 1]")

    @property
    def _channels(self) -> int:
        """Of y."""
        return 2 if self.complex_image else 2 * self.shape[-1]

    def _image(self, x: Array) -> Array:
        return to_complex(x) if self.complex_image else x.astype(jnp.complex64)

    def _unimage(self, z: Array) -> Array:
        return to_real(z) if self.complex_image else z.real

    def _spectrum(self, z: Array, transform: Any = jnp.fft.fftn) -> Array:
        axes = tuple(range(len(self.spatial)))
        return jnp.fft.fftshift(transform(jnp.fft.ifftshift(z, axes), axes=axes, norm="ortho"), axes)

    @property
    def _centre(self) -> slice:
        """The lines that are always measured."""
        n = self.spatial[-1]
        count = max(1, round(self.center_fraction * n))
        first = n // 2 - count // 2
        return slice(first, first + count)

    def _hide_lines(self, key: Key, mask: Array, share: float) -> Array:
        """The mask without a share of the lines beyond the centre; opposite ones, whose values tell of each other, together."""
        n = self.spatial[-1]
        opposite = (2 * (n // 2) - np.arange(n)) % n
        hidden = jax.random.bernoulli(key, share, (n,))
        hidden = hidden[np.minimum(np.arange(n), opposite)].at[self._centre].set(False)
        hidden = hidden & hidden[opposite]
        return jnp.where(hidden[:, None], jnp.zeros_like(mask), mask)

    def draw_operator(self, key: Key) -> Any:
        """A mask [*spatial, 1]: the lines around the centre and, drawn uniformly, N / acceleration lines in all."""
        n, centre = self.spatial[-1], self._centre
        lines = max(centre.stop - centre.start, round(n / self.acceleration))
        scores = jax.random.uniform(key, (n,)).at[centre].set(2.0)
        chosen = jnp.zeros(n).at[jnp.argsort(-scores)[:lines]].set(1.0)
        return jnp.broadcast_to(chosen[:, None], (*self.spatial, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FourierMask(_CartesianFourier, Spectral):
    """One coil: random lines of the Fourier transform are measured, with those at its centre always among them.

    y [*spatial, 2 C] is 0 where nothing is measured. The operator is the mask [*spatial, 1]; any Cartesian mask will do.

    Source: Lustig et al. 2007; the Cartesian masks of Zbontar et al. 2018, arXiv 1811.08839.
    """

    names = ("mask",)

    @property
    def needs_noise(self) -> bool:
        """Whether opposite frequencies of a real image may both be measured, and are then one number seen twice."""
        return not self.complex_image

    def observed(self, operator: Array) -> Array:
        return jnp.broadcast_to(operator, (*self.spatial, self._channels)) > 0

    def hold_out(self, key: Key, observation: Observation, share: float) -> tuple[Observation, Array]:
        """A share of the measured lines; those around the centre stay, and a line goes together with the opposite one."""
        return self._hide(observation, self._hide_lines(key, observation.operator, share))

    def forward(self, x: Array, operator: Array) -> Array:
        return self.keep_observed(to_real(self._spectrum(self._image(x))), operator)

    def adjoint(self, y: Array, operator: Array) -> Array:
        """The zero-filled inverse transform (its real part where x is real)."""
        return self._unimage(self._spectrum(to_complex(self.keep_observed(y, operator)), jnp.fft.ifftn))

    def _mirror(self, a: Array) -> Array:
        """The entry at the opposite frequency."""
        for axis, n in enumerate(self.spatial):
            a = jnp.take(a, (2 * (n // 2) - np.arange(n)) % n, axis)
        return a

    def gram_power(self, r: Array, operator: Array, v: Array, power: float) -> Array:
        """Entry by entry for complex images, frequency pair by frequency pair for real ones.

        For a real x the transform has only conjugate-symmetric values. With both frequencies of a pair measured A A^T
        is the projection on them: 1 on the symmetric part of r, 0 on the rest. With one of them measured it is 1/2.
        """
        seen, noise = self.observed(operator), self.noise_level(operator) ** 2
        r = self.keep_observed(r, operator)
        if self.complex_image:
            return (v + noise) ** power * r
        twin = to_real(jnp.conj(to_complex(self._mirror(r))))
        pair = (v + noise) ** power * (r + twin) / 2 + (v * 0 + noise) ** power * (r - twin) / 2
        return jnp.where(self._mirror(seen), jnp.where(seen, pair, 0.0), (v / 2 + noise) ** power * r)

    def scalar_log_det(self, operator: Array, v: Array) -> Array:
        seen, noise = self.observed(operator), self.noise_level(operator) ** 2
        if self.complex_image:
            return jnp.sum(jnp.where(seen, jnp.log(v + noise), 0.0))
        pair = (jnp.log(v + noise) + jnp.log(v * 0 + noise)) / 2
        return jnp.sum(jnp.where(seen, jnp.where(self._mirror(seen), pair, jnp.log(v / 2 + noise)), 0.0))

    def condition(self, observation: Observation) -> Array:
        """The zero-filled image and the mask, [*spatial, C + 1]."""
        return jnp.concatenate([self.adjoint(*observation), observation.operator.astype(jnp.float32)], -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MulticoilFourier(_CartesianFourier):
    """Several coils: y_j = m * F (s_j x) + n with smooth complex sensitivities s_j, sum_j |s_j|^2 = 1.

    y is [*spatial, coils, 2 C]. The operator is (mask [*spatial, 1], maps [*spatial, coils, 2]). The synthetic maps
    are Gaussian bumps around coils on a ring, which is turned by a random angle for every example.

    Attributes:
        coils: the number of coils, at least 1.

    Source: Pruessmann et al. 1999 (SENSE).
    """

    coils: int = 4
    names = ("mask", "maps")

    def draw_maps(self, angle: Array) -> Array:
        """The sensitivities [*spatial, coils, 2] for a ring turned by ``angle``."""
        axes = (np.linspace(-1, 1, n) for n in self.spatial)
        grid = jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), -1), jnp.float32)
        turns = angle + jnp.arange(self.coils, dtype=jnp.float32) * (2 * jnp.pi / self.coils)
        rank = min(2, len(self.spatial))
        places = 1.2 * jnp.stack([jnp.cos(turns), jnp.sin(turns)], -1)[:, :rank]
        offset = grid[..., None, :rank] - places.reshape((1,) * len(self.spatial) + places.shape)
        size = jnp.exp(-0.5 * jnp.sum(offset**2, -1))
        phase = turns.reshape((1,) * len(self.spatial) + (-1,)) + 0.5 * jnp.sum(offset, -1)
        stacked = size[..., None] * jnp.stack([jnp.cos(phase), jnp.sin(phase)], -1)
        return stacked / jnp.sqrt(jnp.sum(stacked**2, (-2, -1), keepdims=True))

    def draw_operator(self, key: Key) -> tuple[Array, Array]:
        mask_key, map_key = jax.random.split(key)
        return super().draw_operator(mask_key), self.draw_maps(jax.random.uniform(map_key, (), maxval=2 * jnp.pi))

    def observed(self, operator: tuple[Array, Array]) -> Array:
        return jnp.broadcast_to(operator[0][..., None], (*self.spatial, self.coils, self._channels)) > 0

    def forward(self, x: Array, operator: tuple[Array, Array]) -> Array:
        z = to_complex(operator[1]) * self._image(x)[..., None, :]
        return self.keep_observed(to_real(self._spectrum(z)), operator)

    def adjoint(self, y: Array, operator: tuple[Array, Array]) -> Array:
        """The zero-filled images of the coils, combined by the conjugate sensitivities."""
        z = self._spectrum(to_complex(self.keep_observed(y, operator)), jnp.fft.ifftn)
        return self._unimage(jnp.sum(jnp.conj(to_complex(operator[1])) * z, -2))

    def hold_out(self, key: Key, observation: Observation, share: float) -> tuple[Observation, Array]:
        mask, maps = observation.operator
        return self._hide(observation, (self._hide_lines(key, mask, share), maps))

    def condition(self, observation: Observation) -> Array:
        """The combined zero-filled image, the mask and the sensitivities, [*spatial, C + 1 + 2 coils]."""
        mask, maps = observation.operator
        maps = maps.reshape(*self.spatial, -1)
        return jnp.concatenate([self.adjoint(*observation), mask.astype(jnp.float32), maps], -1)
