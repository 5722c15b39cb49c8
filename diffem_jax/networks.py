"""Score networks in Flax Linen: a time-conditional MLP over vectors and a U-Net over one, two or three spatial axes.

Networks are batched: (x [B, *X], noise [B], condition [B, ...] or None, train) -> [B, *X]. ``noise`` is log(sigma / alpha).
A network of your own is any Linen module with that call; add it to ``NETWORKS`` or name it as ``module:ClassName``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


def sinusoidal_embedding(noise: Array, features: int) -> Array:
    """[B] -> [B, features]: sines and cosines of the log noise level at geometric frequencies from 1/16 to 16.

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5, with a range made for log sigma in [-7, 5].
    """
    half = features // 2
    frequencies = jnp.exp(jnp.linspace(math.log(1 / 16), math.log(16.0), half))
    angles = noise[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class MLP(nn.Module):
    """A time-conditional multilayer perceptron over flattened x, condition and noise embedding.

    Attributes:
        features: widths of the hidden layers. Published for the manifold: (256, 256, 256).
        embedding: size of the sinusoidal embedding.
        normalize: layer norm after each hidden layer, as published.
        residual: add each hidden layer's input where the widths agree.
        fourier: octaves of random-free Fourier features (sines of 2^k x) added for the inputs x; 0 leaves x alone.

    Source: Rozet et al. 2024, arXiv 2405.13712, appendix; Hosseintabar et al. 2025, arXiv 2510.12691, appendix.
    """

    features: Sequence[int] = (256, 256, 256)
    embedding: int = 64
    normalize: bool = True
    residual: bool = False
    fourier: int = 0

    @nn.compact
    def __call__(self, x: Array, noise: Array, condition: Array | None = None, train: bool = False) -> Array:
        """[B, *X], [B], [B, *C] -> [B, *X]."""
        del train
        shape = x.shape
        inputs = [x.reshape(shape[0], -1)]
        for octave in range(self.fourier):
            angles = inputs[0] * (math.pi / 4 * 2.0**octave)
            inputs += [jnp.sin(angles), jnp.cos(angles)]
        inputs.append(sinusoidal_embedding(noise, self.embedding))
        if condition is not None:
            inputs.append(condition.reshape(shape[0], -1))
        h = jnp.concatenate(inputs, axis=-1)
        for width in self.features:
            out = nn.silu(nn.Dense(width)(h))
            if self.normalize:
                out = nn.LayerNorm()(out)
            h = h + out if self.residual and h.shape == out.shape else out
        size = math.prod(shape[1:])
        return nn.Dense(size, kernel_init=nn.initializers.zeros)(h).reshape(shape)


class ResBlock(nn.Module):
    """x + gate * conv(silu(conv((1 + scale) norm(x) + shift))), modulated by the noise embedding.

    Source: Peebles and Xie 2023, arXiv 2212.09748 (adaptive layer norm), in the convolutional form of Rozet et al. 2024.
    """

    channels: int
    kernel: int = 3
    dropout: float = 0.0
    spatial: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, embedding: Array, train: bool) -> Array:
        """[B, *S, C], [B, E] -> [B, *S, channels]."""
        h = nn.silu(nn.Dense(embedding.shape[-1], dtype=self.dtype)(embedding))
        ones = (1,) * self.spatial
        modulation = nn.Dense(2 * x.shape[-1], kernel_init=nn.initializers.normal(1e-2), dtype=self.dtype)(h)
        scale, shift = jnp.split(modulation.reshape(x.shape[0], *ones, -1), 2, axis=-1)
        gate = nn.Dense(self.channels, kernel_init=nn.initializers.normal(1e-2), dtype=self.dtype)(h)
        gate = gate.reshape(x.shape[0], *ones, -1)
        window = (self.kernel,) * self.spatial
        y = (1 + scale) * nn.LayerNorm(use_scale=False, use_bias=False, dtype=self.dtype)(x) + shift
        y = nn.silu(nn.Conv(self.channels, window, dtype=self.dtype)(y))
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        y = nn.Conv(self.channels, window, dtype=self.dtype)(y)
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, window, dtype=self.dtype)(x)
        return (x + (1 + gate) * y) * (0.5**0.5)


class Attention(nn.Module):
    """Residual multi-head self-attention over all positions."""

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *S, C]."""
        h = nn.LayerNorm(dtype=self.dtype)(x).reshape(x.shape[0], -1, x.shape[-1])
        h = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(h, h)
        return x + h.reshape(x.shape)


class UNet(nn.Module):
    """A U-Net over one, two or three spatial axes, read off from x's rank.

    Spatial sizes must be divisible by 2^(levels - 1). Published for CIFAR-10: channels (128, 256, 384), 5 blocks a level,
    4 heads at level 1, embedding 256, dropout 0.1; for CelebA: channels (128, 256, 384, 512), 3 blocks, 4 heads at level 3.

    Attributes:
        channels: one width a level.
        blocks: residual blocks a level, on the way down and again on the way up.
        heads: level -> attention heads, as pairs (level, heads).
        embedding: size of the noise embedding.
        dropout: dropout rate inside the blocks during training.
        dtype: compute dtype; parameters stay float32.
        remat: recompute the blocks' activations in the backward pass.

    Source: Ronneberger et al. 2015, arXiv 1505.04597; Ho et al. 2020, arXiv 2006.11239; settings of Rozet et al. 2024
    and Hosseintabar et al. 2025, arXiv 2510.12691, appendix.
    """

    channels: Sequence[int] = (128, 256, 384)
    blocks: int = 5
    heads: Sequence[tuple[int, int]] = ((1, 4),)
    embedding: int = 256
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, noise: Array, condition: Array | None = None, train: bool = False) -> Array:
        """[B, *S, C], [B], [B, *S, K] -> [B, *S, C]."""
        spatial = x.ndim - 2
        heads = dict(self.heads)
        block_type = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock

        # Names of their own: with and without remat the parameters and the dropout masks are the same.
        names = (f"ResBlock_{i}" for i in itertools.count())

        def block(h: Array, width: int, level: int) -> Array:
            module = block_type(width, dropout=self.dropout, spatial=spatial, dtype=self.dtype, name=next(names))
            h = module(h, embedding, train)
            return Attention(heads[level], dtype=self.dtype)(h) if level in heads else h

        embedding = sinusoidal_embedding(noise, self.embedding).astype(self.dtype)
        embedding = nn.silu(nn.Dense(4 * self.embedding, dtype=self.dtype)(embedding))
        embedding = nn.Dense(self.embedding, dtype=self.dtype)(embedding)
        out_channels = x.shape[-1]
        h = x if condition is None else jnp.concatenate([x, condition], axis=-1)
        window, strides = (3,) * spatial, (2,) * spatial
        h = nn.Conv(self.channels[0], window, dtype=self.dtype)(h.astype(self.dtype))
        skips = []
        for level, width in enumerate(self.channels):
            if level > 0:
                h = nn.Conv(width, window, strides=strides, dtype=self.dtype)(h)
            for _ in range(self.blocks):
                h = block(h, width, level)
            skips.append(h)
        for level, width in reversed(list(enumerate(self.channels))):
            if level < len(self.channels) - 1:
                h = jnp.concatenate([h, skips[level]], axis=-1)
            for _ in range(self.blocks):
                h = block(h, width, level)
            if level > 0:
                size = skips[level - 1].shape[1:-1]
                h = jax.image.resize(h, (h.shape[0], *size, h.shape[-1]), "nearest")
                h = nn.Conv(self.channels[level - 1], window, dtype=self.dtype)(h)
        h = nn.silu(nn.LayerNorm(dtype=self.dtype)(h))
        last = nn.Conv(out_channels, window, kernel_init=nn.initializers.zeros, dtype=self.dtype)
        return last(h).astype(jnp.float32)


NETWORKS: dict[str, type[nn.Module]] = {"mlp": MLP, "unet": UNet}


def parameter_count(variables: object) -> int:
    """The number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
