"""Gradients of convolutions inside and outside a loop on the CPU: XLA's own kernel gradient against ``networks.convolve``.

    python -m benchmarks.convolutions

A 3 x 3 convolution of 32 channels on 64 images of 16 x 16; seconds a gradient (in x and in the kernel), medians of
three, the two sides alternating. The M-step scans over updates, so the loop is what counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import interleave, one_core, write
from diffem_jax.networks.convolution import convolve

LENGTH = 4


def gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    def loss(x: Any, kernel: Any) -> Any:
        return jnp.mean(jax.vmap(lambda one: jnp.sum(function(one[None], kernel, (1, 1)) ** 2))(x))

    return jax.grad(loss, (0, 1))


def looped(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any, kernel: Any) -> Any:
        def body(carry: Any, _: None) -> tuple[Any, None]:
            return jax.tree.map(lambda a, g: a - 1e-4 * g, carry, gradient(function)(*carry)), None

        return jax.lax.scan(body, (x, kernel), None, length=LENGTH)[0]

    return run


def main() -> None:
    one_core()
    keys = jax.random.split(jax.random.key(0), 2)
    inputs = jax.random.normal(keys[0], (64, 16, 16, 32)), 0.05 * jax.random.normal(keys[1], (3, 3, 32, 32))
    sides = {"native": convolve.fun, "own": convolve}
    cases: dict[str, Callable[[], Any]] = {}
    for name, function in sides.items():
        once, loop = jax.jit(gradient(function)), jax.jit(looped(function))
        cases |= {f"{name}_once": partial(once, *inputs), f"{name}_in_loop": partial(loop, *inputs)}
    median = {
        f"{name}_seconds": seconds / (LENGTH if name.endswith("loop") else 1)
        for name, seconds in interleave(cases, 3).items()
    }
    ratio = median["native_in_loop_seconds"] / median["own_in_loop_seconds"]
    write("convolutions", {**median, "native_over_own_in_loop": ratio})


if __name__ == "__main__":
    main()
