"""The kernel gradient of a convolution on the CPU: XLA's own against the matrix products of ``networks.convolution``.

    python -m benchmarks.updates

A 3 x 3 convolution of 32 channels on 64 images of 16 x 16, once and inside a loop; the M-step is a loop over updates.
Milliseconds a call on one core, medians of nine, the two sides alternating.
"""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import interleave, medians, one_core, write
from diffem_jax.networks.convolution import convolve

REPEATS, LENGTH = 9, 4
SIDES = {"native": convolve.fun, "own": convolve}


def gradient_of(function: Any) -> Any:
    """The gradient with respect to images and kernel."""

    def loss(x: Any, kernel: Any) -> Any:
        return jnp.mean(jax.vmap(lambda one: jnp.sum(function(one[None], kernel, (1, 1)) ** 2))(x))

    return jax.grad(loss, (0, 1))


def looped(function: Any) -> Any:
    """Some gradient steps in one program."""

    def body(carry: Any, _: None) -> tuple[Any, None]:
        return jax.tree.map(lambda a, g: a - 1e-4 * g, carry, gradient_of(function)(*carry)), None

    return lambda x, kernel: jax.lax.scan(body, (x, kernel), None, length=LENGTH)[0]


def compare(make: Any) -> dict[str, float]:
    """Milliseconds of both sides, and the first over the second."""
    keys = jax.random.split(jax.random.key(0), 2)
    inputs = jax.random.normal(keys[0], (64, 16, 16, 32)), 0.05 * jax.random.normal(keys[1], (3, 3, 32, 32))
    compiled = {name: jax.jit(make(side)) for name, side in SIDES.items()}
    seconds = medians(interleave({name: lambda f=f: f(*inputs) for name, f in compiled.items()}, REPEATS))
    return {**{name: 1e3 * value for name, value in seconds.items()}, "ratio": seconds["native"] / seconds["own"]}


if __name__ == "__main__":
    one_core()
    write("updates", {"convolution": {"once": compare(gradient_of), f"loop of {LENGTH}": compare(looped)}})
