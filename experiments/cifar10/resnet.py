"""A ResNet-56 for CIFAR-10, whose 64 features and classes measure restored images; its weights are a file of the user's.

Weights as of akamaster/pytorch_resnet_cifar10, kernels [3, 3, in, out]: 'conv1.weight', 'layer1.0.bn2.running_mean', ...

Source: He et al. 2016, arXiv 1512.03385, section 4.2 (shortcuts of option A).
"""

import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPSILON = 1e-5
VARIABLE = "CIFAR10_RESNET56"
"""The environment variable that names the file of weights for ``features``."""


def load(path: Path | str) -> dict[str, np.ndarray]:
    """The weights by name."""
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def resnet(weights: Mapping[str, Array], x: Array) -> tuple[Array, Array]:
    """Images [N, 32, 32, 3] in [-2, 2] -> (features [N, 64], logits [N, 10])."""

    def conv(h: Array, name: str, stride: int = 1) -> Array:
        # 'SAME' of a stride of 2 would pad at the end alone.
        layout, pads = ("NHWC", "HWIO", "NHWC"), ((1, 1), (1, 1))
        kernel = weights[f"{name}.weight"]
        return jax.lax.conv_general_dilated(h, kernel, (stride, stride), pads, dimension_numbers=layout)

    def norm(h: Array, name: str) -> Array:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        scale = weights[f"{name}.weight"] * jax.lax.rsqrt(variance + EPSILON)
        return h * scale[None, None, None] + (weights[f"{name}.bias"] - mean * scale)[None, None, None]

    h = ((x + 2) / 4 - jnp.asarray(MEAN)[None, None, None]) / jnp.asarray(STD)[None, None, None]
    h = jax.nn.relu(norm(conv(h, "conv1"), "bn1"))
    for stage in (1, 2, 3):
        for block in range(9):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = jax.nn.relu(norm(conv(h, f"{name}.conv1", stride), f"{name}.bn1"))
            out = norm(conv(out, f"{name}.conv2"), f"{name}.bn2")
            if stride == 2:
                more = (out.shape[-1] - h.shape[-1]) // 2
                h = jnp.pad(h[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (more, more)))
            h = jax.nn.relu(out + h)
    features = jnp.mean(h, axis=(1, 2))
    return features, features @ weights["linear.weight"].T + weights["linear.bias"][None]


def measure(weights: Mapping[str, np.ndarray], x: np.ndarray, batch: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 32, 32, 3] in [-2, 2], clipped and rounded to 256 levels -> (features [N, 64], classes [N])."""
    with jax.default_matmul_precision("highest"):
        network = jax.jit(resnet)
        levels = np.rint((np.clip(np.asarray(x, np.float32), -2, 2) + 2) * np.float32(255 / 4))
        levels = levels * np.float32(4 / 255) - np.float32(2)
        batch = min(batch, len(levels))
        found = []
        for first in range(0, len(levels), batch):
            rows = levels[np.arange(first, first + batch) % len(levels)]
            found.append([np.asarray(part) for part in network(dict(weights), rows)])
    features, logits = (np.concatenate(part)[: len(levels)] for part in zip(*found, strict=True))
    return features, logits.argmax(axis=1)


def features(x: np.ndarray) -> np.ndarray:
    """Images [N, 32, 32, 3] in [-2, 2] -> features [N, 64], for config.eval.features."""
    return measure(load(os.environ[VARIABLE]), x)[0]
