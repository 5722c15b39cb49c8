"""Types shared by every module: observations, protocols, training state and key streams.

All maths in this package is written for ONE example; a batch is a ``jax.vmap`` away. The glossary:

* a *corruption* is the channel p(y | x), written once and used for simulated data, for the fresh
  corruptions of the M-step and for the measures;
* an *observation* is what a corruption yields: y and the operator that was drawn for it;
* a *denoiser* is a function (x_t, t) -> E[x | x_t, ...]; beyond the networks everything speaks x-hat;
* a *round* is one E-step and one M-step; a *step* is one optimiser update.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
from jax import Array

PyTree = Any
Key = Array
"""A typed JAX PRNG key, as ``jax.random.key`` returns it."""
DenoiseFn = Callable[[Array, Array], Array]
"""(x_t [*X], t []) -> x-hat [*X], an estimate of E[x | x_t] or of E[x | x_t, y]."""


class Observation(NamedTuple):
    """What is seen of one example.

    Attributes:
        y: the measurement, an array of the corruption's own shape [*Y].
        operator: what was drawn for this example (a mask [H, W, 1], a matrix [M, D], ...); ``()`` where the
            corruption has one fixed operator.
    """

    y: Array
    operator: PyTree


class Corruption(Protocol):
    """The channel y ~ p(y | x) for one example of shape ``shape``.

    Implementations inherit from ``diffem_jax.corruptions.AdditiveNoise``, which has a default for all but ``shape``, and are
    frozen dataclasses, hence hashable and usable as static arguments.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x."""

    @property
    def noise_std(self) -> float:
        """The standard deviation of the additive noise."""

    @property
    def is_linear(self) -> bool:
        """Whether it is a ``LinearCorruption``."""

    @property
    def random_operator(self) -> bool:
        """Whether different keys draw different operators."""

    @property
    def can_hold_out(self) -> bool:
        """Whether ``hold_out`` can hide a share of the measurements."""

    def draw_operator(self, key: Key) -> PyTree:
        """Draws the operator of one example."""

    def operator_names(self) -> list[str]:
        """What the operator's arrays are called in a user's file, in the order of ``jax.tree.leaves``."""

    def forward(self, x: Array, operator: PyTree) -> Array:
        """A x, without noise; differentiable where that makes sense."""

    def observed(self, operator: PyTree) -> Array | bool:
        """Which entries of y carry a measurement: True for all, or an array of y's shape."""

    def noise_level(self, operator: PyTree) -> Array | float:
        """The standard deviation of the Gaussian noise given the operator."""

    def noise_variance(self, x: Array, operator: PyTree) -> Array | float:
        """The variance of the observed entries of y given x and the operator."""

    def observe(self, key: Key, x: Array, operator: PyTree) -> Array:
        """Draws y ~ p(y | x, operator): forward and noise."""

    def sample(self, key: Key, x: Array) -> Observation:
        """Draws an operator and y ~ p(y | x): operator, forward and noise."""

    def condition(self, observation: Observation) -> Array:
        """What the network sees of the observation: [*spatial, C] for images, a vector otherwise."""

    def fill(self, observation: Observation) -> Array | None:
        """An interpolation of y, of ``shape``; None where there is none."""

    def hold_out(self, key: Key, observation: Observation, share: float) -> tuple[Observation, Array]:
        """The observation with a share of its measurements hidden as well, and where those are."""


class LinearCorruption(Corruption, Protocol):
    """A corruption y = A x + n with a linear A and n ~ N(0, noise_level^2 I); they inherit from ``corruptions.Linear``."""

    @property
    def has_diagonal_gram(self) -> bool:
        """Whether A diag(v) A^T is diagonal."""

    @property
    def needs_noise(self) -> bool:
        """Whether solves need a noise_std > 0."""

    def adjoint(self, y: Array, operator: PyTree) -> Array:
        """A^T y, an array of ``shape``."""

    def gram(self, r: Array, operator: PyTree, v: Array) -> Array:
        """(A diag(v) A^T + noise_std^2 I) r for a scalar v > 0 or a v of ``shape``."""

    def gram_diagonal(self, operator: PyTree, v: Array) -> Array:
        """The diagonal of A diag(v) A^T, of y's shape; there where ``has_diagonal_gram``."""

    def solve_gram(self, r: Array, operator: PyTree, v: Array) -> Array:
        """(A diag(v) A^T + noise_std^2 I)^-1 r for a scalar v > 0 or a v of ``shape``."""

    def log_det_gram(self, operator: PyTree, v: Array) -> Array:
        """Log det(A diag(v) A^T + noise_std^2 I)."""

    def null_operator(self) -> PyTree:
        """An operator of A = 0 (nothing observed), or None where the family has none."""


class Schedule(Protocol):
    """A noise schedule t -> (alpha_t, sigma_t) with p(x_t | x) = N(alpha_t x, sigma_t^2 I), t in [0, 1]."""

    def __call__(self, t: Array) -> tuple[Array, Array]:
        """(alpha_t, sigma_t)."""


class TimeLaw(Protocol):
    """The distribution of t in the training loss."""

    def sample(self, key: Key) -> Array:
        """One t in [0, 1], a scalar."""


Spread = Callable[[Key, Array, Array], Array]
"""(key, w [*X], v []) -> a draw of N(C w, C), [*X]: how x scatters about x-hat in a Gaussian stand-in for p(x | x_t, y).

v is the variance of x that x_t leaves. C = v I without an observation, and (I / v + A^T A / noise_std^2)^-1 given y = A x + n.
"""


class SpreadDenoiser(NamedTuple):
    """A denoiser that also tells samplers how x scatters about x-hat; called, it is the denoiser.

    Attributes:
        denoise: (x_t, t) -> x-hat.
        spread: a ``Spread``.
    """

    denoise: DenoiseFn
    spread: Spread

    def __call__(self, x_t: Array, t: Array) -> Array:
        """x-hat."""
        return self.denoise(x_t, t)


class Sampler(NamedTuple):
    """A reverse-diffusion sampler as pure functions, for one example.

    Attributes:
        init: (key, t, shape) -> state, the state at the noisiest time t.
        step: (key, state, t, s, denoise) -> (state, info), one step from time t to the less noisy time s < t.
        final: (state, t) -> x, the draw at the last time.
    """

    init: Callable[[Key, Array, tuple[int, ...]], PyTree]
    step: Callable[[Key, PyTree, Array, Array, DenoiseFn], tuple[PyTree, Any]]
    final: Callable[[PyTree, Array], Array]


class EMState(NamedTuple):
    """What training carries from step to step: arrays alone, no key and no function.

    Attributes:
        params: the network's parameters, float32.
        ema_params: their exponential moving average, which the E-step uses.
        opt_state: the optimiser's state.
        step: updates done in all, int32 [].
        round: rounds finished, int32 [].
    """

    params: PyTree
    ema_params: PyTree
    opt_state: PyTree
    step: Array
    round: Array


def stream_key(seed: int, stream: str, *indices: int | Array) -> Key:
    """The key of a named stream of randomness, for instance ``stream_key(seed, "e_step", round)``.

    Keys are derived, never stored: the same (seed, stream, indices) yields the same key on every host, after every
    restart. ``fold_in`` the example's index and then the step to go on from it.

    Args:
        seed: the run's seed.
        stream: the stream's name.
        *indices: integers folded in, in order.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key


def example_keys(key: Key, indices: Array) -> Key:
    """One key per example, [B] from the examples' indices [B], independent of how they are batched."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
