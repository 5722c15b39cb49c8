"""Operations of products and convolutions in a program, counted from its jaxpr, which every backend has."""

import math
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(function: Any, *arguments: Any) -> int:
    """Multiplications and additions of all matrix products and convolutions, a loop of known length as often as it runs.

    Of a convolution those with the padding's zeros, or with those between dilated entries, are not counted. Loops of unknown
    length count once, and what is no product not at all; what nobody uses counts too.
    """
    return _count(jax.make_jaxpr(function)(*arguments))


def _count(part: Any) -> int:
    """Of a program, or of whatever of an equation's parameters holds programs."""
    if isinstance(part, ClosedJaxpr):
        return _count(part.jaxpr)
    if isinstance(part, Jaxpr):
        return sum(map(_of_equation, part.eqns))
    return sum(map(_count, part)) if isinstance(part, tuple | list) else 0


def _of_equation(equation: Any) -> int:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        return _convolution(equation)
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    return times * sum(map(_count, equation.params.values()))


def _convolution(equation: Any) -> int:
    p, (left, kernel) = equation.params, (v.aval.shape for v in equation.invars)
    numbers, out = p["dimension_numbers"], equation.outvars[0].aval.shape
    pairs = 1
    for axis, (low, _) in enumerate(p["padding"]):
        inside, window = left[numbers.lhs_spec[2 + axis]], kernel[numbers.rhs_spec[2 + axis]]
        spread = p["lhs_dilation"][axis]
        first = np.arange(out[numbers.out_spec[2 + axis]]) * p["window_strides"][axis] - low
        at = first[:, None] + np.arange(window) * p["rhs_dilation"][axis]
        pairs *= int(np.sum((at >= 0) & (at <= (inside - 1) * spread) & (at % spread == 0)))
    batch, channels = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    # The kernel's input channels are those of one group already, and of grouped batches each has its own outputs.
    return 2 * batch * channels * kernel[numbers.rhs_spec[1]] * pairs // p["batch_group_count"]
