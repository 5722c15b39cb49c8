"""Score networks in Flax Linen: a time-conditional MLP over vectors and a U-Net over one, two or three spatial axes.

Networks are batched: (x [B, *X], noise [B], condition [B, ...] or None, train) -> [B, *X]. ``noise`` is log(sigma / alpha).
A network of your own is any Linen module with that call; add it to ``NETWORKS`` or name it as ``module:ClassName``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.networks.convolution import Conv
from diffem_jax.networks.embedding import sinusoidal_embedding


class ResBlock(nn.Module):
    """x + gate * conv(silu(conv((1 + scale) norm(x) + shift))), modulated by the noise embedding.

    Source: Peebles and Xie 2023, arXiv 2212.09748 (adaptive layer norm), in the convolutional form of Rozet et al. 2024.
    """

    channels: int
    kernel: int = 3
    dropout: float = 0.0
    spatial: int = 2
    dtype: jnp.dtype = jnp.float32
    native_gradient: bool = False

    @nn.compact
    def __call__(self, x: Array, embedding: Array, train: bool) -> Array:
        """[B, *S, C], [B, E] -> [B, *S, channels]."""
        h = nn.silu(nn.Dense(embedding.shape[-1], dtype=self.dtype)(embedding))
        ones = (1,) * self.spatial
        modulation = nn.Dense(2 * x.shape[-1], kernel_init=nn.initializers.normal(1e-2), dtype=self.dtype)(h)
        scale, shift = jnp.split(modulation.reshape(x.shape[0], *ones, -1), 2, axis=-1)
        gate = nn.Dense(self.channels, kernel_init=nn.initializers.normal(1e-2), dtype=self.dtype)(h)
        gate = gate.reshape(x.shape[0], *ones, -1)
        conv = partial(
            Conv, window=(self.kernel,) * self.spatial, dtype=self.dtype, native_gradient=self.native_gradient
        )
        y = (1 + scale) * nn.LayerNorm(use_scale=False, use_bias=False, dtype=self.dtype)(x) + shift
        y = nn.silu(conv(self.channels)(y))
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        y = conv(self.channels)(y)
        if x.shape[-1] != self.channels:
            x = conv(self.channels)(x)
        return (x + (1 + gate) * y) * (0.5**0.5)


class Attention(nn.Module):
    """Residual multi-head self-attention over all positions."""

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *S, C]."""
        h = nn.LayerNorm(dtype=self.dtype)(x).reshape(x.shape[0], -1, x.shape[-1])
        h = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, force_fp32_for_softmax=True)(h, h)
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
        dtype: what it computes in, float32 or bfloat16; parameters, normalisations, softmax and output stay float32.
        remat: recompute the blocks' activations in the backward pass.
        native_gradient: XLA's own kernel gradient of convolutions; the config's runs set it on accelerators (see ``Conv``).

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
    native_gradient: bool = False

    @nn.compact
    def __call__(self, x: Array, noise: Array, condition: Array | None = None, train: bool = False) -> Array:
        """[B, *S, C], [B], [B, *S, K] -> [B, *S, C]."""
        spatial = x.ndim - 2
        heads = dict(self.heads)
        block_type = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock

        # Names of their own: with and without remat the parameters and the dropout masks are the same.
        names = (f"ResBlock_{i}" for i in itertools.count())

        def block(h: Array, width: int, level: int) -> Array:
            options: dict[str, Any] = {
                "dropout": self.dropout,
                "spatial": spatial,
                "dtype": self.dtype,
                "native_gradient": self.native_gradient,
            }
            module = block_type(width, **options, name=next(names))
            h = module(h, embedding, train)
            return Attention(heads[level], dtype=self.dtype)(h) if level in heads else h

        embedding = sinusoidal_embedding(noise, self.embedding).astype(self.dtype)
        embedding = nn.silu(nn.Dense(4 * self.embedding, dtype=self.dtype)(embedding))
        embedding = nn.Dense(self.embedding, dtype=self.dtype)(embedding)
        out_channels = x.shape[-1]
        h = x if condition is None else jnp.concatenate([x, condition], axis=-1)
        conv = partial(Conv, window=(3,) * spatial, dtype=self.dtype, native_gradient=self.native_gradient)
        h = conv(self.channels[0])(h.astype(self.dtype))
        skips = []
        for level, width in enumerate(self.channels):
            if level > 0:
                h = conv(width, strides=(2,) * spatial)(h)
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
                h = conv(self.channels[level - 1])(h)
        h = nn.silu(nn.LayerNorm(dtype=self.dtype)(h))
        last = conv(out_channels, kernel_init=nn.initializers.zeros)
        return last(h).astype(jnp.float32)
