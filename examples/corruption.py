"""A corruption: whole rows of an image are lost, as by a broken scanner.

    diffem --config=digits --config.corruption.name=examples.corruption:RowDropout --config.corruption.rate=0.3 --workdir=runs/rows

It inherits ``Mask``, so the adjoint, the solves, the fitted start and the 'posterior' preconditioning come with it.
"""

import dataclasses

import jax
import jax.numpy as jnp

import diffem_jax as dx


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowDropout(dx.Mask):
    """Erases every row with probability ``rate``, independently of the others."""

    rate: float = 0.3

    def draw_operator(self, key):
        """One mask [H, W, 1]: 1 with probability 1 - rate, the same along a row."""
        rows = jax.random.bernoulli(key, 1.0 - self.rate, (self.shape[0], 1, 1))
        return jnp.broadcast_to(rows, self.mask_shape).astype(jnp.float32)
