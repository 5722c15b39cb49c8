"""Corruptions that hide entries of x: y = m * (x + n) with a mask m of zeros and ones."""

from __future__ import annotations

import dataclasses
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

    def __post_init__(self) -> None:
        """Refuses an interpolation that does not exist."""
        if self.fill_iterations < 0 or self.fill_order not in (1, 2) or (self.fill_iterations and len(self.shape) < 2):
            raise UserError(
                f"corruption.fill_iterations: {self.fill_iterations} with fill_order {self.fill_order} for x of shape "
                f"{self.shape}; expected 0 or more iterations, order 1 or 2, and images for more than 0; correct them"
            )

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

        def on_hidden(u: Array) -> Array:
            return hidden * bend(hidden * u)

        return known + hidden * conjugate_gradient(on_hidden, -hidden * bend(known), self.fill_iterations)

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """The mask's shape: [*spatial, 1] for images, the shape of x for vectors."""
        return (*self.shape[:-1], 1) if len(self.shape) > 1 else self.shape

    def operator_names(self) -> list[str]:
        """'mask'."""
        return ["mask"]

    def observed(self, operator: Array) -> Array:
        """Where the mask is positive, of the shape of x."""
        return jnp.broadcast_to(operator, self.shape) > 0

    def forward(self, x: Array, operator: Array) -> Array:
        """The seen entries m * x, with hidden entries never read."""
        return jnp.where(self.observed(operator), x, 0.0)

    def adjoint(self, y: Array, operator: Array) -> Array:
        """The seen entries m * y: a mask is its own adjoint."""
        return self.forward(y, operator)

    def gram_diagonal(self, operator: Array, v: Array) -> Array:
        """Returns v, for wherever something is seen."""
        del operator
        return v

    def null_operator(self) -> Array:
        """The mask that hides everything."""
        return jnp.zeros(self.mask_shape)

    def condition(self, observation: Observation) -> Array:
        """The seen entries and the mask, [*spatial, C + M] for images and [2 D] for vectors; then the fill, if any."""
        mask = observation.operator.astype(jnp.float32)
        filled = self.fill(observation)
        parts = [self.forward(observation.y, mask), mask, *([] if filled is None else [filled])]
        return jnp.concatenate(parts, axis=-1)


def _laplace(x: Array) -> Array:
    """The discrete Laplacian over the spatial axes, with a border that repeats the edge; channels last."""
    out = jnp.zeros_like(x)
    for axis in range(x.ndim - 1):
        steps = jnp.diff(x, axis=axis)
        widths = [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)]
        out = out + jnp.diff(jnp.pad(steps, widths), axis=axis)
    return out


def _check_rate(rate: float) -> None:
    if not 0 <= rate < 1:
        raise UserError(f"corruption.rate: {rate}; expected a number in [0, 1); change corruption.rate")


def _hide(mask: Mask, observation: Observation, hidden: Array) -> tuple[Observation, Array]:
    """The observation without what is hidden, and which of its entries that took."""
    operator = jnp.where(hidden, jnp.zeros_like(observation.operator), observation.operator)
    left = Observation(mask.forward(observation.y, operator), operator)
    return left, mask.observed(observation.operator) & ~mask.observed(operator)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelMask(Mask):
    """Every pixel is erased with probability ``rate``, independently.

    Attributes:
        rate: the probability that a pixel is erased, in [0, 1).
        per_channel: erase channels independently instead of whole pixels.

    Source: the random-pixel corruption of Daras et al. 2023, arXiv 2305.19256, and Hosseintabar et al. 2025,
    arXiv 2510.12691, section 4.
    """

    rate: float = 0.5
    per_channel: bool = False

    def __post_init__(self) -> None:
        """Refuses a rate outside [0, 1)."""
        super().__post_init__()
        _check_rate(self.rate)

    @property
    def can_hold_out(self) -> bool:
        """True: with more pixels hidden it is still such a mask."""
        return True

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """[*spatial, 1] for whole pixels, the shape of x where channels are erased apart."""
        return self.shape if self.per_channel else super().mask_shape

    def draw_operator(self, key: Key) -> Array:
        """One mask: 1 with probability 1 - rate."""
        return jax.random.bernoulli(key, 1.0 - self.rate, self.mask_shape).astype(jnp.float32)

    def hold_out(self, key: Key, observation: Observation, share: float) -> tuple[Observation, Array]:
        """The observation with a share of its seen pixels hidden as well, and where those are, of the shape of y."""
        return _hide(self, observation, jax.random.bernoulli(key, share, self.mask_shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupMask(Mask):
    """Groups of entries along the last axis are erased together, each with probability ``rate``.

    For tables: a categorical column as one-hot entries is missing as a whole or not at all.

    Attributes:
        rate: the probability that a group is erased, in [0, 1).
        groups: the sizes of the groups, in order; their sum is the length of the last axis. () is one group an entry.
    """

    rate: float = 0.5
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses a rate outside [0, 1), and groups that do not fill the last axis."""
        super().__post_init__()
        _check_rate(self.rate)
        if self.groups and (min(self.groups) < 1 or sum(self.groups) != self.shape[-1]):
            raise UserError(
                f"corruption.groups: {self.groups}; expected positive sizes of sum {self.shape[-1]}, the length of the "
                "last axis of x; correct them"
            )

    @property
    def can_hold_out(self) -> bool:
        """True: with more groups hidden it is still such a mask."""
        return True

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """The shape of x."""
        return self.shape

    def draw_operator(self, key: Key) -> Array:
        """One mask: a group is all 1 with probability 1 - rate, else all 0."""
        sizes = self.groups or (1,) * self.shape[-1]
        seen = jax.random.bernoulli(key, 1.0 - self.rate, (*self.shape[:-1], len(sizes)))
        return jnp.repeat(seen.astype(jnp.float32), np.asarray(sizes), axis=-1, total_repeat_length=self.shape[-1])

    def hold_out(self, key: Key, observation: Observation, share: float) -> tuple[Observation, Array]:
        """The observation with a share of its seen groups hidden as well, and where those are."""
        return _hide(self, observation, dataclasses.replace(self, rate=1.0 - share).draw_operator(key) > 0)


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
        """Whether the box's place is drawn."""
        return self.random

    @property
    def sides(self) -> tuple[int, ...]:
        """The box's sides."""
        return self.box or tuple(max(1, n // 2) for n in self.spatial)

    def __post_init__(self) -> None:
        """Refuses a box that does not fit."""
        super().__post_init__()
        if len(self.sides) != len(self.spatial) or any(
            not 0 < b <= n for b, n in zip(self.sides, self.spatial, strict=True)
        ):
            raise UserError(
                f"corruption.box: {self.sides}; expected one side for each of the spatial axes {self.spatial}, "
                "between 1 and the axis' length; change corruption.box"
            )

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
        """One mask: 0 inside the box."""
        return 1.0 - self._inside(key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outpainting(BoxMask):
    """Only a box of pixels is seen, at the centre or at a place drawn for every example; fields as for ``BoxMask``."""

    def draw_operator(self, key: Key) -> Array:
        """One mask: 1 inside the box."""
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
        """The square's side, once an axis."""
        return self.box or (self.block or max(1, min(self.spatial) // 2),) * len(self.spatial)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedMask(Mask):
    """One given mask for every example.

    Attributes:
        mask: zeros and ones as nested tuples, or the path of a .npy file, of the shape [*spatial], [*spatial, 1] or
            that of x; () is a checkerboard.
    """

    mask: Any = ()

    @property
    def random_operator(self) -> bool:
        """False: the mask is given."""
        return False

    def draw_operator(self, key: Key) -> Array:
        """The mask.

        Raises:
            UserError: a file that cannot be read, a shape that does not fit, an entry that is neither 0 nor 1.
        """
        del key
        if isinstance(self.mask, str):
            try:
                mask = np.load(self.mask, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"corruption.mask: {self.mask}; expected a .npy file of zeros and ones ({error}); "
                    "write it with numpy.save"
                ) from error
        elif self.mask == ():
            mask = sum(np.indices(self.spatial)) % 2
        else:
            mask = np.asarray(self.mask)
        if mask.shape == self.spatial and len(self.shape) > 1:
            mask = mask[..., None]
        if mask.shape not in (self.mask_shape, self.shape):
            raise UserError(
                f"corruption.mask: shape {mask.shape}; expected {self.spatial}, {self.mask_shape} or {self.shape}; "
                "give a mask of the image's size"
            )
        if not np.isin(mask, (0, 1)).all():
            raise UserError("corruption.mask: entries other than 0 and 1; expected 0 (hidden) or 1 (seen); round them")
        return jnp.asarray(mask, jnp.float32)
