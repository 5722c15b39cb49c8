"""A network: a residual perceptron whose hidden units are gated by the noise level.

    diffem --config=digits --config.network.name=examples.network:Gated --config.network.width=128 --workdir=runs/gated

Source of the idea: Perez et al. 2018, arXiv 1709.07871 (feature-wise modulation).
"""

import math

import flax.linen as nn
import jax.numpy as jnp

import diffem_jax as dx


class Gated(nn.Module):
    """(x [B, *X], noise [B], condition [B, ...] or None, train) -> [B, *X]."""

    width: int = 256  # of the residual stream
    depth: int = 3  # number of blocks

    @nn.compact
    def __call__(self, x, noise, condition=None, train=False):
        """The last layer begins at zero, so that the first denoiser is its preconditioning alone."""
        inputs = [x.reshape(len(x), -1)]
        if condition is not None:
            inputs.append(condition.reshape(len(x), -1))
        level = dx.sinusoidal_embedding(noise, 32)
        h = nn.Dense(self.width)(jnp.concatenate(inputs, axis=-1))
        for _ in range(self.depth):
            gate = nn.sigmoid(nn.Dense(self.width)(level))
            h = h + gate * nn.Dense(self.width)(nn.silu(nn.Dense(self.width)(nn.LayerNorm()(h))))
        out = nn.Dense(math.prod(x.shape[1:]), kernel_init=nn.initializers.zeros)(h)
        return out.reshape(x.shape)
