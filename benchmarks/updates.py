"""What an update of the M-step is made of: the network's gradient under the vmap over examples, and the start's posterior mean.

    python -m benchmarks.updates

The gradient of one example's network call, mapped over the batch, against that of one batched call, which is as fast as it
can be: the MLP of the manifold (batch 1,024) and of digits (256), and the small U-Net of patches (64). E[x | x_t, y] of the
start of digits (rank 24, half of the pixels seen) by one factorisation for x_t and y against one for each in turn. Milliseconds
a call on one core, medians of nine, the two sides alternating.

The kernel gradient of a 3 x 3 convolution of 32 channels on 64 images of 16 x 16, on the CPU: XLA's own against
``networks.convolution``, once and inside a loop; the M-step is a loop over updates.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import interleave, one_core, write
from diffem_jax.corruptions import PixelMask
from diffem_jax.gaussians.gaussians import condition_on_both, condition_on_observation
from diffem_jax.gaussians.linalg import Gaussian, condition_on_noisy
from diffem_jax.networks.convolution import convolve
from diffem_jax.networks.mlp import MLP
from diffem_jax.networks.unet import UNet
from diffem_jax.types import stream_key

REPEATS, LENGTH = 9, 4
NETWORKS = {
    "manifold": (1024, MLP(features=(256, 256, 256)), (5,), (35,)),
    "digits": (256, MLP(features=(256, 256, 256)), (8, 8, 1), (8, 8, 3)),
    "patches": (64, UNet(channels=(32, 64), blocks=1, heads=(), embedding=64), (16, 16, 3), (16, 16, 13)),
}


def compare(sides: dict[str, Any], *arguments: Any) -> dict[str, float]:
    """Milliseconds of two jitted functions of the same arguments, and the first over the second."""
    compiled = {name: jax.jit(side) for name, side in sides.items()}
    calls = {name: lambda name=name: compiled[name](*arguments) for name in sides}
    ours, other = (1e3 * s for s in interleave(calls, REPEATS, clock=time.process_time).values())
    return {**dict(zip(sides, (ours, other), strict=True)), "ratio": ours / other}


def gradient(batch: int, network: Any, shape: tuple[int, ...], condition: tuple[int, ...]) -> dict[str, float]:
    keys = jax.random.split(stream_key(0, "updates"), 4)
    x, seen = jax.random.normal(keys[0], (batch, *shape)), jax.random.normal(keys[1], (batch, *condition))
    noise = jax.random.normal(keys[2], (batch,))
    params = network.init(keys[3], x[:1], noise[:1], seen[:1], False)["params"]

    def batched(params: Any) -> Any:
        return jnp.mean((network.apply({"params": params}, x, noise, seen, False) - x) ** 2)

    def mapped(params: Any) -> Any:
        def one(x: Any, noise: Any, seen: Any) -> Any:
            return network.apply({"params": params}, x[None], noise[None], seen[None], False)[0]

        return jnp.mean((jax.vmap(one)(x, noise, seen) - x) ** 2)

    return compare({"mapped": jax.grad(mapped), "batched": jax.grad(batched)}, params)


def posterior_mean(batch: int = 256, rank: int = 24) -> dict[str, float]:
    shape, one = (8, 8, 1), jnp.ones(())
    mask = PixelMask(shape=shape, rate=0.5, noise_std=0.01)
    keys = jax.random.split(stream_key(0, "updates"), 3)
    gaussian = Gaussian(jnp.zeros(shape), jnp.full(shape, 0.1), 0.3 * jax.random.normal(keys[0], (rank, *shape)))
    x = jax.random.normal(keys[1], (batch, *shape))
    observed = jax.vmap(mask.sample)(jax.random.split(keys[2], batch), x)

    def together(x: Any, observed: Any) -> Any:
        return jax.vmap(lambda x, o: condition_on_both(mask, gaussian, x, one, one, o)[0])(x, observed)

    def in_turn(x: Any, observed: Any) -> Any:
        def mean(x: Any, o: Any) -> Any:
            return condition_on_observation(mask, condition_on_noisy(gaussian, x, one, one)[0], o).mean

        return jax.vmap(mean)(x, observed)

    return compare({"together": together, "in turn": in_turn}, x, observed)


def convolution() -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 2)
    inputs = jax.random.normal(keys[0], (64, 16, 16, 32)), 0.05 * jax.random.normal(keys[1], (3, 3, 32, 32))

    def gradient_of(function: Any) -> Any:
        def loss(x: Any, kernel: Any) -> Any:
            return jnp.mean(jax.vmap(lambda one: jnp.sum(function(one[None], kernel, (1, 1)) ** 2))(x))

        return jax.grad(loss, (0, 1))

    def looped(function: Any) -> Any:
        def body(carry: Any, _: None) -> tuple[Any, None]:
            return jax.tree.map(lambda a, g: a - 1e-4 * g, carry, gradient_of(function)(*carry)), None

        return lambda x, kernel: jax.lax.scan(body, (x, kernel), None, length=LENGTH)[0]

    sides = {"native": convolve.fun, "own": convolve}
    return {
        "once": compare({name: gradient_of(side) for name, side in sides.items()}, *inputs),
        f"loop of {LENGTH}": compare({name: looped(side) for name, side in sides.items()}, *inputs),
    }


def main() -> None:
    one_core()
    networks = {name: gradient(*network) for name, network in NETWORKS.items()}
    write("updates", {"gradient": networks, "posterior": posterior_mean(), "convolution": convolution()})


if __name__ == "__main__":
    main()
