"""Convolutions in one, two and three dimensions, with a gradient that is fast inside loops on the CPU."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def convolve(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    """A 'SAME' convolution whose kernel gradient is a sum of matrix products: [B, *S, I], [*K, I, O] -> [B, *S', O].

    XLA's CPU backend takes 25 times longer for a native convolution's kernel gradient inside a loop (the M-step's);
    a matrix product per entry of the window has no such trap (docs/performance.md). One to three axes, a stride each.
    """
    axes = "DHW"[-len(strides) :]
    layout = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout)


def _shifted_products(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    """The same convolution as products of shifted inputs, the last axis' shifts side by side in one product."""
    *window, features_in, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *jax.lax.padtype_to_pads(x.shape[1:-1], window, strides, "SAME"), (0, 0)))
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
    """A 'SAME' convolution by ``convolve``; parameters as of ``flax.linen.Conv``."""

    features: int  # output channels
    window: Sequence[int]  # sides of the kernel, one per spatial axis
    strides: Sequence[int] = ()  # one per spatial axis; empty for 1
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: jnp.dtype = jnp.float32
    native_gradient: bool = False  # XLA's own kernel gradient, the right choice on accelerators

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *ceil(S / strides), features]."""
        strides = tuple(self.strides) or (1,) * len(self.window)
        kernel = self.param("kernel", self.kernel_init, (*self.window, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        function = convolve.fun if self.native_gradient else convolve
        return function(x, kernel, strides) + bias.reshape((1,) * (x.ndim - 1) + (-1,))
