"""Corruptions that hide entries of x: y = m * (x + n) with a mask m of zeros and ones."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.corruptions.base import DiagonalGram
from diffem_jax.errors import UserError
from diffem_jax.gaussians.linalg import conjugate_gradient
from diffem_jax.types import Key, Observation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask(DiagonalGram):
    """Base of the masks: the operator is an array of zeros (hidden) and ones (seen) that broadcasts to x.

    Hidden entries of y are exactly 0: neither x nor noise reaches them, so nothing can leak and a user's file may
    hold anything there. A subclass draws the mask.

    Attributes:
        fill_iterations: > 0 shows the network a smooth interpolation of y beside y and the mask (``fill``), by this many
            conjugate-gradient iterations: 20 for half of the pixels, 40 for a tenth.
        fill_order: 1 for harmonic, 2 for biharmonic interpolation.
    """

    fill_iterations: int = 0
    fill_order: int = 1
    names = ("mask",)
    hides_entries = True

    def __post_init__(self) -> None:
        most = math.inf if len(self.shape) > 1 else 0
        self._expect("fill_iterations", 0 <= self.fill_iterations <= most, "0 for vectors, >= 0 for images")
        self._expect("fill_order", self.fill_order in (1, 2), "1 or 2")

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """The mask's shape: [*spatial, 1] for images, the shape of x for vectors."""
        return (*self.shape[:-1], 1) if len(self.shape) > 1 else self.shape

    def observed(self, operator: Array) -> Array:
        return jnp.broadcast_to(operator, self.shape) > 0

    def forward(self, x: Array, operator: Array) -> Array:
        """The seen entries m * x, with hidden entries never read."""
        return self.keep_observed(x, operator)

    def adjoint(self, y: Array, operator: Array) -> Array:
        """The seen entries m * y: a mask is its own adjoint."""
        return self.forward(y, operator)

    def gram_diagonal(self, operator: Array, v: Array) -> Array:
        return v

    def fill(self, observation: Observation) -> Array | None:
        """The seen entries, and between them the smoothest interpolation: the minimum of <u, (-Laplace)^order u>.

        None where ``fill_iterations`` is 0.

        Source: Chan and Shen 2001, "Mathematical models for local nontexture inpaintings" (order 1); Damelin and Hoang
        2018, "On surface completion and image inpainting by biharmonic functions" (order 2).
        """
        if not self.fill_iterations:
            return None
        known = self.forward(observation.y, observation.operator)
        hidden = 1.0 - self.observed(observation.operator).astype(known.dtype)

        def bend(u: Array) -> Array:
            for _ in range(self.fill_order):
                u = -_laplace(u)
            return u

        right, count = -hidden * bend(known), self.fill_iterations
        return known + hidden * conjugate_gradient(lambda u: hidden * bend(hidden * u), right, count)

    def condition(self, observation: Observation) -> Array:
        """The seen entries and the mask, [*spatial, C + M] for images and [2 D] for vectors; then the fill, if any."""
        mask = observation.operator.astype(jnp.float32)
        parts = self.forward(observation.y, mask), mask, self.fill(observation)
        return jnp.concatenate([part for part in parts if part is not None], axis=-1)


def _laplace(x: Array) -> Array:
    """The discrete Laplacian over the spatial axes, with a border that repeats the edge; channels last."""
    out = jnp.zeros_like(x)
    for axis in range(x.ndim - 1):
        widths = [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)]
        out = out + jnp.diff(jnp.pad(jnp.diff(x, axis=axis), widths), axis=axis)
    return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class _RandomMask(Mask):
    """Masks whose parts are erased independently; with more of them hidden it is still such a mask.

    Attributes:
        rate: the probability that a part is erased, in [0, 1).
    """

    rate: float = 0.5
    can_hold_out = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect("rate", 0 <= self.rate < 1, "a number in [0, 1)")

    def hold_out(self, key: Key, observation: Observation, share: float) -> tuple[Observation, Array]:
        hidden = self._draw(key, share) > 0
        return self._hide(observation, jnp.where(hidden, jnp.zeros_like(observation.operator), observation.operator))

    def draw_operator(self, key: Key) -> Array:
        """One mask: each part is 1 with probability 1 - rate."""
        return self._draw(key, 1.0 - self.rate)

    def _draw(self, key: Key, probability: float) -> Array:
        """Parts of the mask chosen independently with a probability: 1 there, else 0."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelMask(_RandomMask):
    """Every pixel is erased with probability ``rate``, independently.

    Attributes:
        per_channel: erase channels independently instead of whole pixels; the mask then has the shape of x.

    Source: Daras et al. 2023, arXiv 2305.19256; Hosseintabar et al. 2025, arXiv 2510.12691, section 4.
    """

    per_channel: bool = False

    @property
    def mask_shape(self) -> tuple[int, ...]:
        return self.shape if self.per_channel else super().mask_shape

    def _draw(self, key: Key, probability: float) -> Array:
        return jax.random.bernoulli(key, probability, self.mask_shape).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupMask(_RandomMask):
    """Groups of entries along the last axis are erased together, each with probability ``rate``.

    For tables: a categorical column as one-hot entries is missing as a whole or not at all.

    Attributes:
        groups: the sizes of the groups, in order; their sum is the length of the last axis. () is one group per entry.
    """

    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = not self.groups or (min(self.groups) > 0 and sum(self.groups) == self.shape[-1])
        self._expect("groups", fits, f"positive sizes of sum {self.shape[-1]}, the length of the last axis of x")

    @property
    def mask_shape(self) -> tuple[int, ...]:
        return self.shape

    def _draw(self, key: Key, probability: float) -> Array:
        sizes = self.groups or (1,) * self.shape[-1]
        chosen = jax.random.bernoulli(key, probability, (*self.shape[:-1], len(sizes)))
        return jnp.repeat(chosen.astype(jnp.float32), np.asarray(sizes), axis=-1, total_repeat_length=self.shape[-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxMask(Mask):
    """A box of pixels is hidden (inpainting of a box), at the centre or at a place drawn for every example.

    Attributes:
        box: the box's side along each spatial axis; () is half of each.
        random: draw the box's place, uniformly among those inside the image; otherwise it is centred.
    """

    box: tuple[int, ...] = ()
    random: bool = False

    @property
    def random_operator(self) -> bool:
        return self.random

    @property
    def sides(self) -> tuple[int, ...]:
        return self.box or tuple(max(1, n // 2) for n in self.spatial)

    def __post_init__(self) -> None:
        super().__post_init__()
        sides, spatial = self.sides, self.spatial
        fits = len(sides) == len(spatial) and all(0 < b <= n for b, n in zip(sides, spatial, strict=True))
        self._expect("box", fits, f"one side for each of the spatial axes {spatial}, from 1 to the axis' length")

    def _inside(self, key: Key) -> Array:
        """1 inside the box, 0 outside, of the mask's shape."""
        inside = jnp.ones(self.mask_shape, bool)
        for axis, (n, side) in enumerate(zip(self.spatial, self.sides, strict=True)):
            start: int | Array = (n - side) // 2
            if self.random:
                start = jax.random.randint(jax.random.fold_in(key, axis), (), 0, n - side + 1)
            place = jax.lax.broadcasted_iota(jnp.int32, self.mask_shape, axis)
            inside = inside & (place >= start) & (place < start + side)
        return inside.astype(jnp.float32)

    def draw_operator(self, key: Key) -> Array:
        return 1.0 - self._inside(key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outpainting(BoxMask):
    """Only a box of pixels is seen, at the centre or at a place drawn for every example; fields as for ``BoxMask``."""

    def draw_operator(self, key: Key) -> Array:
        return self._inside(key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockMask(BoxMask):
    """A square block is hidden, at a place drawn uniformly for every example.

    Attributes:
        block: the square's side; 0 is half of the shortest spatial axis.
    """

    random: bool = True
    block: int = 0

    @property
    def sides(self) -> tuple[int, ...]:
        return self.box or (self.block or max(1, min(self.spatial) // 2),) * len(self.spatial)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedMask(Mask):
    """One given mask for every example.

    Attributes:
        mask: zeros and ones as nested tuples, or the path of a .npy file, of the shape [*spatial], [*spatial, 1] or
            that of x; () is a checkerboard.
    """

    mask: Any = ()
    random_operator = False

    def draw_operator(self, key: Key) -> Array:
        """The mask; one that cannot be read, does not fit or has other entries than 0 and 1 is a ``UserError``."""
        if isinstance(self.mask, str):
            try:
                mask = np.load(self.mask, allow_pickle=False)
            except (OSError, ValueError) as error:
                expected = f"expected a .npy file of zeros and ones ({error}); write it with numpy.save"
                raise UserError(f"corruption.mask: {self.mask}; {expected}") from error
        else:
            mask = sum(np.indices(self.spatial)) % 2 if self.mask == () else np.asarray(self.mask)
        if mask.shape == self.spatial and len(self.shape) > 1:
            mask = mask[..., None]
        shapes = f"a mask of shape {self.spatial}, {self.mask_shape} or {self.shape}, not {mask.shape}"
        self._expect("mask", mask.shape in (self.mask_shape, self.shape), shapes)
        self._expect("mask", bool(np.isin(mask, (0, 1)).all()), "zeros (hidden) and ones (seen) alone")
        return jnp.asarray(mask, jnp.float32)
