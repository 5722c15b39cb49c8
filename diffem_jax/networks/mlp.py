"""A multilayer perceptron for vectors and small images.

h_0 = (x, embedding of log sigma, condition),  h_i = norm(silu(W_i h_{i-1} + b_i)),  output = W h_n, with W = 0 at first
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from diffem_jax.networks.embedding import sinusoidal_embedding


class MLP(nn.Module):
    """A time-conditional multilayer perceptron over flattened x, condition and noise embedding.

    Attributes:
        features: widths of the hidden layers. Published for the manifold: (256, 256, 256).
        embedding: size of the sinusoidal embedding.
        normalize: layer norm after each hidden layer, as published.
        dtype: what the hidden layers compute in, float32 or bfloat16; parameters and output stay float32.

    Source: Rozet et al. 2024, arXiv 2405.13712, appendix; Hosseintabar et al. 2025, arXiv 2510.12691, appendix.
    """

    features: Sequence[int] = (256, 256, 256)
    embedding: int = 64
    normalize: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, noise: Array, condition: Array | None = None, train: bool = False) -> Array:
        """[B, *X], [B], [B, *C] -> [B, *X]."""
        shape = x.shape
        inputs = [x.reshape(shape[0], -1), sinusoidal_embedding(noise, self.embedding)]
        if condition is not None:
            inputs.append(condition.reshape(shape[0], -1))
        h = jnp.concatenate(inputs, axis=-1).astype(self.dtype)
        # A batch of one goes on as a vector: under the vmap over examples an axis of length 1 beside theirs makes XLA copy
        # every activation in another layout for the kernels' gradients, which doubles the time of an update on the CPU.
        h = h[0] if shape[0] == 1 else h
        for width in self.features:
            h = nn.silu(nn.Dense(width, dtype=self.dtype)(h))
            h = nn.LayerNorm(dtype=self.dtype)(h) if self.normalize else h
        last = nn.Dense(math.prod(shape[1:]), kernel_init=nn.initializers.zeros, dtype=self.dtype)
        return last(h).astype(jnp.float32).reshape(shape)
