"""Muon: an optimiser that moves a network's matrices equally far in all directions."""

import math
from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

SCALE = 0.2  # root mean square of an update's entries at rate 1, about that of Adam's, so that both take similar rates
ADAM_SHARE = 0.2  # Adam's rate as a share of Muon's


def muon(rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Muon for kernels, Adam at a fifth of the rate for biases and scales.

        m <- 0.95 m + 0.05 g,  W <- W - 0.2 rate sqrt(max(I, O)) U V^T  with  0.95 m + 0.05 g = U S V^T  and W [I, O],

    U V^T approximately, by five Newton-Schulz iterations. A convolution's kernel [*K, I, O] is the matrix [K I, O].

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al. 2025, arXiv 2502.16982,
    section 2.2 (the scale).
    """
    matrices = optax.chain(
        scale_by_muon(weight_dimension_numbers=lambda tree: jax.tree.map_with_path(_as_matrix, tree)),
        optax.stateless(lambda updates, params: jax.tree.map_with_path(_scale, updates)),
        optax.scale_by_learning_rate(rate),
    )
    rest = optax.adam(lambda count: ADAM_SHARE * rate(count))
    return optax.partition({"muon": matrices, "adam": rest}, lambda params: jax.tree.map_with_path(_optimizer, params))


def _optimizer(path: Any, leaf: Any) -> str:
    """Which of the two takes a parameter; biases of attention have two axes too."""
    return "muon" if leaf.ndim > 1 and not _name(path).endswith("bias") else "adam"


def _as_matrix(path: Any, leaf: Any) -> MuonDimensionNumbers:
    """Axes of the inputs and of the outputs: attention has kernels [I, heads, O], everything else [..., I, O]."""
    inputs = 1 if _name(path).endswith(("query/kernel", "key/kernel", "value/kernel")) else leaf.ndim - 1
    return MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, leaf.ndim)))


def _scale(path: Any, update: Any) -> Any:
    sides = [math.prod(update.shape[axis] for axis in axes) for axes in _as_matrix(path, update)]
    return SCALE * max(sides) ** 0.5 * update


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
