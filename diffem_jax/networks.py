"""Score networks in Flax Linen: a time-conditional MLP over vectors and a U-Net over one, two or three spatial axes.

Networks are batched: (x [B, *X], noise [B], condition [B, ...] or None, train) -> [B, *X]. ``noise`` is log(sigma / alpha).
A network of your own is any Linen module with that call; add it to ``NETWORKS`` or name it as ``module:ClassName``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

NETWORK_VERSION = 2
"""Raised by one whenever a network here, or a denoiser or condition array around it, becomes another function of the same
parameters: those of an earlier version would still load, but draw wrongly. 2: the noise embedding's slower waves.
"""


def sinusoidal_embedding(noise: Array, features: int) -> Array:
    """[B] -> [B, features]: sines and cosines of the log noise level at geometric frequencies from 1/16 to 1/2.

    What a denoiser does changes slowly with the log noise level; faster waves let a network fit changes
    that are not there.

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5, with a range made for log sigma in [-7, 5].
    """
    half = features // 2
    frequencies = jnp.exp(jnp.linspace(math.log(1 / 16), math.log(1 / 2), half))
    angles = noise[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class MLP(nn.Module):
    """A time-conditional multilayer perceptron over flattened x, condition and noise embedding.

    Attributes:
        features: widths of the hidden layers. Published for the manifold: (256, 256, 256).
        embedding: size of the sinusoidal embedding.
        normalize: layer norm after each hidden layer, as published.
        residual: add each hidden layer's input where the widths agree.
        fourier: octaves k of sines and cosines of 2^k pi x / 4 that are shown beside x; 0 shows x alone.

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
        # A batch of one goes on as a vector: under the vmap over examples an axis of length 1 beside theirs makes XLA copy
        # every activation in another layout for the kernels' gradients, which doubles the time of an update on the CPU.
        h = h[0] if shape[0] == 1 else h
        for width in self.features:
            out = nn.silu(nn.Dense(width)(h))
            if self.normalize:
                out = nn.LayerNorm()(out)
            h = h + out if self.residual and h.shape == out.shape else out
        size = math.prod(shape[1:])
        return nn.Dense(size, kernel_init=nn.initializers.zeros)(h).reshape(shape)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def convolve(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    """A 'SAME' convolution whose kernel gradient is a sum of matrix products: [B, *S, I], [*K, I, O] -> [B, *S', O].

    XLA's CPU backend runs the kernel gradient of a native convolution inside a loop (the M-step's scan) some 25 times
    slower than outside it; one matrix product per entry of the window has no such trap (docs/performance.md).

    Args:
        x: channels last, one to three spatial axes.
        kernel: the window, then input and output channels.
        strides: one a spatial axis.
    """
    axes = "DHW"[-len(strides) :]
    layout = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout)


def _shifted_products(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    """The same convolution as products of shifted inputs, the last axis' shifts side by side in one product."""
    *window, features_in, features = kernel.shape
    pads = jax.lax.padtype_to_pads(x.shape[1:-1], window, strides, "SAME")
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    sizes = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], window, strides, strict=True)]

    def shifted(a: Array, axis: int, offset: int) -> Array:
        return jax.lax.slice_in_dim(a, offset, offset + (sizes[axis] - 1) * strides[axis] + 1, strides[axis], axis + 1)

    last = len(window) - 1
    wide = jnp.concatenate([shifted(x, last, j) for j in range(window[last])], axis=-1)
    out = jnp.zeros((x.shape[0], *sizes, features), x.dtype)
    for offsets in itertools.product(*map(range, window[:last])):
        part = wide
        for axis, offset in enumerate(offsets):
            part = shifted(part, axis, offset)
        out = out + part @ kernel[offsets].reshape(window[last] * features_in, features)
    return out


def _convolve_for_transpose(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    """The same convolution, written so that its transpose in x is an ordinary convolution with an ordinary kernel."""
    spatial = tuple(range(len(strides)))
    turned = jax.lax.optimization_barrier(jnp.swapaxes(jax.lax.rev(kernel, spatial), -1, -2))
    axes = "DHW"[-len(strides) :]
    layout = (f"N{axes}C", f"{axes}OI", f"N{axes}C")
    return jax.lax.conv_general_dilated(x, jax.lax.rev(turned, spatial), strides, "SAME", dimension_numbers=layout)


@partial(convolve.defjvp, symbolic_zeros=True)
def _convolve_jvp(strides: tuple[int, ...], primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    out = convolve(x, kernel, strides)
    out_dot = jnp.zeros_like(out)
    if not isinstance(x_dot, SymbolicZero):
        out_dot = _convolve_for_transpose(x_dot, kernel, strides)
    if not isinstance(kernel_dot, SymbolicZero):
        out_dot = out_dot + _shifted_products(x, kernel_dot, strides)
    return out, out_dot


class Conv(nn.Module):
    """A 'SAME' convolution by ``convolve``; parameters as of ``flax.linen.Conv``.

    Attributes:
        features: output channels.
        window: sides of the kernel, one a spatial axis.
        strides: one a spatial axis; empty for 1.
        native_gradient: XLA's own kernel gradient, the right choice on accelerators.
    """

    features: int
    window: Sequence[int]
    strides: Sequence[int] = ()
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: jnp.dtype = jnp.float32
    native_gradient: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *ceil(S / strides), features]."""
        strides = tuple(self.strides) or (1,) * len(self.window)
        kernel = self.param("kernel", self.kernel_init, (*self.window, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        function = convolve.fun if self.native_gradient else convolve
        return function(x, kernel, strides) + bias.reshape((1,) * (x.ndim - 1) + (-1,))


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


NETWORKS: dict[str, type[nn.Module]] = {"mlp": MLP, "unet": UNet}


def parameter_count(variables: object) -> int:
    """The number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
