"""A U-Net over one, two or three spatial axes, its blocks modulated by the noise level.

x, condition ─► blocks ─────────── skip ──────────► blocks ─► output, 0 at first     level 0, full size
                  └► stride 2, blocks ── skip ──► blocks, doubled ┘                  level 1, half
                       └► ...                 ... ┘                                  ...
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

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
        window = (self.kernel,) * self.spatial
        conv = partial(Conv, window=window, dtype=self.dtype, native_gradient=self.native_gradient)
        hidden = nn.silu(nn.Dense(embedding.shape[-1], dtype=self.dtype)(embedding))

        def modulation(features: int) -> Array:
            """[B, 1, ..., features], the same at every position."""
            dense = nn.Dense(features, kernel_init=nn.initializers.normal(1e-2), dtype=self.dtype)
            return dense(hidden).reshape(x.shape[0], *(1,) * self.spatial, features)

        scale, shift = jnp.split(modulation(2 * x.shape[-1]), 2, axis=-1)
        gate = modulation(self.channels)
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


def space_to_depth(x: Array, patch: int) -> Array:
    """Patches as channels, [B, *S, C] -> [B, *ceil(S / patch), patch^d C]; sizes that do not divide are padded with zeros."""
    spatial = x.shape[1:-1]
    x = jnp.pad(x, ((0, 0), *((0, -n % patch) for n in spatial), (0, 0)))
    tiles = [side for n in spatial for side in (-(-n // patch), patch)]
    whole, inner = range(1, 2 * len(spatial), 2), range(2, 2 * len(spatial) + 1, 2)
    x = x.reshape(x.shape[0], *tiles, x.shape[-1]).transpose(0, *whole, *inner, 2 * len(spatial) + 1)
    return x.reshape(*x.shape[: len(spatial) + 1], -1)


def depth_to_space(x: Array, patch: int, spatial: Sequence[int]) -> Array:
    """The inverse of ``space_to_depth``, cut to the sizes ``spatial``: [B, *S, patch^d C] -> [B, *spatial, C]."""
    d, coarse = len(spatial), x.shape[1:-1]
    x = x.reshape(x.shape[0], *coarse, *(patch,) * d, -1)
    x = x.transpose(0, *(axis for i in range(1, d + 1) for axis in (i, d + i)), 2 * d + 1)
    x = x.reshape(x.shape[0], *(n * patch for n in coarse), -1)
    return x[(slice(None), *(slice(n) for n in spatial))]


class UNet(nn.Module):
    """A U-Net; the number of spatial axes is read off from x's rank.

    Published for CIFAR-10: channels (128, 256, 384), 5 blocks per level, 4 heads at level 1, embedding 256, dropout 0.1; for
    CelebA: channels (128, 256, 384, 512), 3 blocks, 4 heads at level 3.

    Attributes:
        channels: one width per level.
        blocks: residual blocks per level, on the way down and again on the way up.
        heads: level -> attention heads, as pairs (level, heads).
        embedding: size of the noise embedding.
        dropout: dropout rate inside the blocks during training.
        dtype: what it computes in, float32 or bfloat16; parameters, normalisations, softmax and output stay float32.
        remat: recompute the blocks' activations in the backward pass.
        native_gradient: XLA's own kernel gradient of convolutions; the config's runs set it on accelerators (see ``Conv``).
        patch: side of the patches that become channels before the first level and pixels again after the last; 2 leaves a
            quarter of an image's positions, for denoisers whose closed-form mean carries the finest detail.
        skips: how the way up takes in the way down: 'concat' joins channels, as published; 'add' adds them and widens
            after the convolution between levels, in about two thirds of the operations.

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
    patch: int = 1
    skips: Literal["concat", "add"] = "concat"

    @nn.compact
    def __call__(self, x: Array, noise: Array, condition: Array | None = None, train: bool = False) -> Array:
        """[B, *S, C], [B], [B, *S, K] -> [B, *S, C]."""
        *sizes, out_channels = x.shape[1:]
        spatial, heads, adds = len(sizes), dict(self.heads), self.skips == "add"
        conv = partial(Conv, window=(3,) * spatial, dtype=self.dtype, native_gradient=self.native_gradient)
        residual = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
        options: Any = {"dropout": self.dropout, "dtype": self.dtype, "native_gradient": self.native_gradient}
        # Names of their own: with and without remat the parameters and the dropout masks are the same.
        names = (f"ResBlock_{i}" for i in itertools.count())

        embedding = sinusoidal_embedding(noise, self.embedding).astype(self.dtype)
        embedding = nn.silu(nn.Dense(4 * self.embedding, dtype=self.dtype)(embedding))
        embedding = nn.Dense(self.embedding, dtype=self.dtype)(embedding)

        def blocks(h: Array, level: int) -> Array:
            for _ in range(self.blocks):
                h = residual(self.channels[level], spatial=spatial, name=next(names), **options)(h, embedding, train)
                h = Attention(heads[level], dtype=self.dtype)(h) if level in heads else h
            return h

        h = x if condition is None else jnp.concatenate([x, condition], axis=-1)
        h = space_to_depth(h, self.patch)
        h = conv(self.channels[0])(h.astype(self.dtype))
        skips: list[Array] = []
        for level, width in enumerate(self.channels):
            h = conv(width, strides=(2,) * spatial)(h) if level else h
            h = blocks(h, level)
            skips.append(h)
        for level in reversed(range(len(self.channels))):
            if level < len(self.channels) - 1:
                h = (h + skips[level]) * (0.5**0.5) if adds else jnp.concatenate([h, skips[level]], axis=-1)
            h = blocks(h, level)
            if level:
                narrow, size = conv(self.channels[level - 1]), skips[level - 1].shape[1:-1]
                h = narrow(h) if adds else h
                h = jax.image.resize(h, (h.shape[0], *size, h.shape[-1]), "nearest")
                h = h if adds else narrow(h)
        h = nn.silu(nn.LayerNorm(dtype=self.dtype)(h))
        h = conv(out_channels * self.patch**spatial, kernel_init=nn.initializers.zeros)(h)
        return depth_to_space(h, self.patch, sizes).astype(jnp.float32)
