"""Corruptions made of other linear ones: other noise than one Gaussian for all, and several operators in a row."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffem_jax.corruptions.base import AdditiveNoise, Linear, Separable, Spectral
from diffem_jax.corruptions.masks import Mask
from diffem_jax.errors import UserError, lookup
from diffem_jax.types import Key, Observation, PyTree

CORRUPTIONS: dict[str, Any] = {}  # the classes by name, which ``diffem_jax.corruptions`` fills


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poisson(AdditiveNoise):
    """Photon counts: y = 4 k / peak - 2 with k ~ Poisson(peak (A x + 2) / 4), so that E[y | x] = A x where A x >= -2.

    A is any linear corruption, whose own noise is left out; what it does not observe is 0. The operator is A's.

    Attributes:
        noise_std: Gaussian read-out noise on top, 0 for none.
        peak: the mean count at the brightest value, A x = 2; > 0.
        of: A, a linear corruption, or its name, or (name, ((field, value), ...)), as a config can hold it.
    """

    noise_std: float = 0.0
    peak: float = 30.0
    of: Any = "denoising"

    def __post_init__(self) -> None:
        self._expect("peak", self.peak > 0, "a number > 0")
        object.__setattr__(self, "of", build_linear("corruption.of", self.of, self.shape))

    @property
    def random_operator(self) -> bool:
        return self.of.random_operator

    @property
    def can_hold_out(self) -> bool:
        return self.of.can_hold_out

    def draw_operator(self, key: Key) -> PyTree:
        return self.of.draw_operator(key)

    def operator_names(self) -> list[str]:
        return self.of.operator_names()

    def hold_out(self, key: Key, observation: Observation, share: float) -> tuple[Observation, Array]:
        return self.of.hold_out(key, observation, share)

    def observed(self, operator: PyTree) -> Array | bool:
        return self.of.observed(operator)

    def condition(self, observation: Observation) -> Array:
        return self.of.condition(observation)

    def forward(self, x: Array, operator: PyTree) -> Array:
        """A x, and -2 where it is below that: there are no negative rates."""
        return jnp.maximum(self.of.forward(x, operator), -2.0)

    def noise_variance(self, x: Array, operator: PyTree) -> Array:
        return 4.0 * (self.forward(x, operator) + 2.0) / self.peak + self.noise_std**2

    def observe(self, key: Key, x: Array, operator: PyTree) -> Array:
        count_key, noise_key = jax.random.split(key)
        rate = self.peak * (self.forward(x, operator) + 2.0) / 4.0
        counts = jax.random.poisson(count_key, rate).astype(x.dtype)
        y = 4.0 * counts / self.peak - 2.0 + self.noise_std * jax.random.normal(noise_key, rate.shape)
        return self.keep_observed(y, operator)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaryingNoise(Linear):
    """y = A x + s n with a standard deviation s of each observation's own, drawn log-uniformly.

    A is any linear corruption of one noise level, whose closed forms serve here too. The operator is (that of A, s).

    Attributes:
        noise_std: the smallest s, > 0.
        noise_std_max: the largest s.
        of: A, a linear corruption, or its name, or (name, ((field, value), ...)), as a config can hold it.
    """

    noise_std: float = 0.01
    noise_std_max: float = 0.5
    of: Any = "denoising"

    def __post_init__(self) -> None:
        expected = f"0 < noise_std <= noise_std_max, which is {self.noise_std_max}"
        self._expect("noise_std", 0 < self.noise_std <= self.noise_std_max, expected)
        object.__setattr__(self, "of", build_linear("corruption.of", self.of, self.shape))

    @property
    def has_diagonal_gram(self) -> bool:
        return self.of.has_diagonal_gram

    @property
    def can_hold_out(self) -> bool:
        return self.of.can_hold_out

    @property
    def _unit(self) -> Any:
        """A with noise of standard deviation 1: A v A^T + s^2 I is s^2 times its gram matrix for v / s^2."""
        return dataclasses.replace(self.of, noise_std=1.0)

    def draw_operator(self, key: Key) -> tuple[PyTree, Array]:
        operator_key, noise_key = jax.random.split(key)
        low, high = math.log(self.noise_std), math.log(self.noise_std_max)
        return self.of.draw_operator(operator_key), jnp.exp(low + (high - low) * jax.random.uniform(noise_key, ()))

    def operator_names(self) -> list[str]:
        return [*self.of.operator_names(), "noise_std"]

    def noise_level(self, operator: tuple[PyTree, Array]) -> Array:
        return operator[1]

    def observed(self, operator: tuple[PyTree, Array]) -> Array | bool:
        return self.of.observed(operator[0])

    def forward(self, x: Array, operator: tuple[PyTree, Array]) -> Array:
        return self.of.forward(x, operator[0])

    def adjoint(self, y: Array, operator: tuple[PyTree, Array]) -> Array:
        return self.of.adjoint(y, operator[0])

    def gram_diagonal(self, operator: tuple[PyTree, Array], v: Array) -> Array:
        return self.of.gram_diagonal(operator[0], v)

    def solve_gram(self, r: Array, operator: tuple[PyTree, Array], v: Array) -> Array:
        """(A diag(v) A^T + s^2 I)^-1 r = (A diag(v / s^2) A^T + I)^-1 r / s^2, as A solves it."""
        variance = operator[1] ** 2
        return self._unit.solve_gram(r, operator[0], v / variance) / variance

    def log_det_gram(self, operator: tuple[PyTree, Array], v: Array) -> Array:
        """M log s^2 + log det(A diag(v / s^2) A^T + I) with M measured entries, as A computes it."""
        variance = operator[1] ** 2
        return self._count(operator) * jnp.log(variance) + self._unit.log_det_gram(operator[0], v / variance)

    def hold_out(self, key: Key, observation: Observation, share: float) -> tuple[Observation, Array]:
        operator, std = observation.operator
        left, held = self.of.hold_out(key, Observation(observation.y, operator), share)
        return Observation(left.y, (left.operator, std)), held

    def condition(self, observation: Observation) -> Array:
        """What A shows and a plane of log s (one more entry for vectors): [*spatial, K + 1]."""
        operator, std = observation.operator
        shown = self.of.condition(Observation(observation.y, operator))
        return jnp.concatenate([shown, jnp.broadcast_to(jnp.log(std), (*shown.shape[:-1], 1))], -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Product(Separable):
    """Separable corruptions one after another."""

    stages: tuple[Any, ...] = ()

    def matrices(self) -> tuple[np.ndarray, ...]:
        along = zip(*(stage.matrices() for stage in self.stages), strict=True)
        return tuple(functools.reduce(lambda product, matrix: matrix @ product, axis) for axis in along)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Composition(Linear):
    """y = A_k ... A_2 A_1 x + n; the operator is the tuple of the stages' operators.

    Where all stages are matrices along the axes (blurs by a Gaussian, downsampling) so is their product, and solves are in
    closed form; elsewhere they are conjugate gradients, before a last mask preconditioned by the stages without it.

    Attributes:
        stages: A_1 first. Each is a linear corruption, or its name, or (name, ((field, value), ...)), as a config can
            hold it; the shapes of named stages follow from those before. The stages' own noise is not added.
    """

    stages: tuple[Any, ...] = ("gaussian_blur", "box_downsampling")

    def __post_init__(self) -> None:
        """Builds the stages that are given by name, and checks that their shapes fit."""
        shape, built = tuple(self.shape), []
        for index, spec in enumerate(self.stages):
            stage = build_linear(f"corruption.stages[{index}]", spec, shape)
            built.append(stage)
            shape = stage._y_shape(jax.eval_shape(lambda stage=stage: stage.draw_operator(jax.random.key(0))))
        self._expect("stages", bool(built), "at least one linear corruption")
        object.__setattr__(self, "stages", tuple(built))

    @functools.cached_property
    def _separable(self) -> _Product | None:
        """The same corruption in closed form, where there is one."""
        if any(stage.matrices() is None for stage in self.stages):
            return None
        return _Product(shape=tuple(self.shape), noise_std=self.noise_std, stages=self.stages)

    @functools.cached_property
    def _unmasked(self) -> Spectral | None:
        """The stages before a last mask as one corruption, where it has a closed form."""
        *head, last = self.stages
        if not isinstance(last, Mask) or not head:
            return None
        if len(head) == 1 and isinstance(head[0], Spectral):
            return dataclasses.replace(head[0], noise_std=self.noise_std)
        return dataclasses.replace(self, stages=tuple(head))._separable

    @property
    def random_operator(self) -> bool:
        return any(stage.random_operator for stage in self.stages)

    @property
    def can_hold_out(self) -> bool:
        return self.stages[-1].can_hold_out

    def draw_operator(self, key: Key) -> tuple[PyTree, ...]:
        return tuple(stage.draw_operator(jax.random.fold_in(key, i)) for i, stage in enumerate(self.stages))

    def operator_names(self) -> list[str]:
        """The names of each stage's arrays, with the number of the stage."""
        return [f"{name}_{i}" for i, stage in enumerate(self.stages) for name in stage.operator_names()]

    def hold_out(self, key: Key, observation: Observation, share: float) -> tuple[Observation, Array]:
        *before, last = observation.operator
        left, held = self.stages[-1].hold_out(key, Observation(observation.y, last), share)
        return Observation(left.y, (*before, left.operator)), held

    def observed(self, operator: tuple[PyTree, ...]) -> Array | bool:
        return self.stages[-1].observed(operator[-1])

    def forward(self, x: Array, operator: tuple[PyTree, ...]) -> Array:
        for stage, part in zip(self.stages, operator, strict=True):
            x = stage.forward(x, part)
        return x

    def adjoint(self, y: Array, operator: tuple[PyTree, ...]) -> Array:
        for stage, part in zip(self.stages[::-1], operator[::-1], strict=True):
            y = stage.adjoint(y, part)
        return y

    def matrices(self) -> tuple[np.ndarray, ...] | None:
        return self._separable.matrices() if self._separable else None

    def precondition(self, r: Array, operator: tuple[PyTree, ...], v: Array) -> Array:
        """Before a last mask the closed form of the other stages, between two masks."""
        if self._unmasked is None:
            return r
        inner = operator[0] if len(operator) == 2 else ()
        return jnp.where(self.observed(operator), self._unmasked.precondition(r, inner, v), 0.0)

    def solve_gram(self, r: Array, operator: tuple[PyTree, ...], v: Array) -> Array:
        """In closed form where all stages are matrices along the axes and v is a scalar, else by conjugate gradients."""
        closed = self._separable
        return closed.solve_gram(r, operator, v) if closed else super().solve_gram(r, operator, v)

    def log_det_gram(self, operator: tuple[PyTree, ...], v: Array) -> Array:
        closed = self._separable
        return closed.log_det_gram(operator, v) if closed else super().log_det_gram(operator, v)

    def condition(self, observation: Observation) -> Array:
        """The back-projection A^T y and, to tell where and how strongly x was seen, A^T A 1: [*spatial, 2 C]."""
        back = self.adjoint(observation.y, observation.operator)
        gain = self.adjoint(self.forward(jnp.ones(self.shape), observation.operator), observation.operator)
        return jnp.concatenate([back, gain], -1)


def build_linear(field: str, spec: Any, shape: tuple[int, ...]) -> Any:
    """A linear corruption of x of ``shape`` from an instance, a name, or (name, ((field, value), ...))."""
    if isinstance(spec, str):
        spec = (spec, ())
    if isinstance(spec, (tuple, list)):
        name, fields = spec
        spec = lookup(field, name, CORRUPTIONS)(shape=tuple(shape), **dict(fields))
    if not isinstance(spec, Linear):
        raise UserError(f"{field}: {type(spec).__name__}; expected a linear corruption; leave it out")
    if tuple(spec.shape) != tuple(shape):
        raise UserError(f"{field}: shape {spec.shape}; expected {shape}, which it is given; give it that shape")
    return spec
