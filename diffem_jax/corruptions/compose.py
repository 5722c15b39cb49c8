"""Several linear corruptions in a row, with noise at the end alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.corruptions.base import Linear
from diffem_jax.types import Key, Observation, PyTree, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Composition(Linear):
    """y = A_k ... A_2 A_1 x + n; the operator is the tuple of the stages' operators.

    Attributes:
        stages: A_1 first. Each is a linear corruption, or its name, or (name, ((field, value), ...)), as a config can
            hold it; the shapes of named stages follow from those before. The stages' own noise is not added.
    """

    stages: tuple[Any, ...] = ("gaussian_blur", "box_downsampling")

    def __post_init__(self) -> None:
        """Builds the stages that are given by name, and checks that their shapes fit.

        Raises:
            UserError: a stage that is not linear, or whose shape is not what the stage before yields.
        """
        shape, built = tuple(self.shape), []
        for index, spec in enumerate(self.stages):
            stage = build_linear(f"corruption.stages[{index}]", spec, shape)
            built.append(stage)
            shape = _out_shape(stage)
        if not built:
            raise UserError("corruption.stages: (); expected at least one linear corruption; name one")
        object.__setattr__(self, "stages", tuple(built))

    @property
    def random_operator(self) -> bool:
        """Whether any stage draws its operator."""
        return any(stage.random_operator for stage in self.stages)

    def draw_operator(self, key: Key) -> tuple[PyTree, ...]:
        """One operator a stage, each from its own key."""
        return tuple(stage.draw_operator(jax.random.fold_in(key, i)) for i, stage in enumerate(self.stages))

    def operator_names(self) -> list[str]:
        """The names of each stage's arrays, with the number of the stage."""
        return [f"{name}_{i}" for i, stage in enumerate(self.stages) for name in stage.operator_names()]

    def observed(self, operator: tuple[PyTree, ...]) -> Array | bool:
        """What the last stage observes."""
        return self.stages[-1].observed(operator[-1])

    def forward(self, x: Array, operator: tuple[PyTree, ...]) -> Array:
        """A_k ... A_1 x."""
        for stage, part in zip(self.stages, operator, strict=True):
            x = stage.forward(x, part)
        return x

    def adjoint(self, y: Array, operator: tuple[PyTree, ...]) -> Array:
        """A_1^T ... A_k^T y."""
        for stage, part in zip(self.stages[::-1], operator[::-1], strict=True):
            y = stage.adjoint(y, part)
        return y

    def null_operator(self) -> tuple[PyTree, ...] | None:
        """The null operator of each stage that has one, and any operator of the others; None where no stage has one."""
        nulls = [stage.null_operator() for stage in self.stages]
        if all(null is None for null in nulls):
            return None
        return tuple(
            stage.draw_operator(jax.random.key(0)) if null is None else null
            for stage, null in zip(self.stages, nulls, strict=True)
        )

    def condition(self, observation: Observation) -> Array:
        """The back-projection A^T y and, to tell where and how strongly x was seen, A^T A 1: [*spatial, 2 C]."""
        back = self.adjoint(observation.y, observation.operator)
        gain = self.adjoint(self.forward(jnp.ones(self.shape), observation.operator), observation.operator)
        return jnp.concatenate([back, gain], -1)


def build_linear(field: str, spec: Any, shape: tuple[int, ...]) -> Any:
    """A linear corruption of x of ``shape`` from an instance, a name, or (name, ((field, value), ...)).

    Raises:
        UserError: it is not linear, or was made for another shape.
    """
    from diffem_jax.corruptions import resolve

    if isinstance(spec, str):
        spec = (spec, ())
    if isinstance(spec, (tuple, list)):
        name, fields = spec
        spec = resolve(name)(shape=tuple(shape), **dict(fields))
    if not hasattr(spec, "adjoint"):
        raise UserError(f"{field}: {type(spec).__name__}; expected a linear corruption; leave it out")
    if tuple(spec.shape) != tuple(shape):
        raise UserError(f"{field}: shape {spec.shape}; expected {shape}, which it is given; give it that shape")
    return spec


def _out_shape(stage: Linear) -> tuple[int, ...]:
    """The shape of what a stage yields."""

    def run(key: Key, x: Array) -> Array:
        return stage.forward(x, stage.draw_operator(key))

    x = jax.ShapeDtypeStruct(stage.shape, jnp.float32)
    return jax.eval_shape(run, jax.eval_shape(lambda: jax.random.key(0)), x).shape
