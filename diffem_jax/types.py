"""Observations, protocols, training state and key streams. All maths here is for ONE example; a batch is a ``jax.vmap`` away."""

import zlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
from jax import Array

PyTree = Any
Shape = tuple[int, ...]
Key = Array  # a typed JAX PRNG key, as ``jax.random.key`` returns it
DenoiseFn = Callable[[Array, Array], Array]  # (x_t [*X], t []) -> x-hat [*X], of E[x | x_t] or E[x | x_t, y]


class Observation(NamedTuple):
    """What is seen of one example: the measurement y, an array of the corruption's own shape [*Y], and the operator.

    That is what was drawn for this example (a mask [H, W, 1], a matrix [M, D], ...), ``()`` where there is one fixed operator.
    """

    y: Array
    operator: PyTree


Draw = Callable[[Key, PyTree, Observation], Array]  # (key, parameters, observation) -> a draw of x, [*X]


class Corruption(Protocol):
    """The channel y ~ p(y | x) for one example of shape ``shape``, a frozen dataclass.

    Inherit from ``diffem_jax.corruptions.AdditiveNoise``, which says what each member is and has a default for all but ``shape``.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def noise_std(self) -> float: ...

    is_linear: ClassVar[bool]
    hides_entries: ClassVar[bool]

    @property
    def random_operator(self) -> bool: ...
    @property
    def can_hold_out(self) -> bool: ...
    def draw_operator(self, key: Key) -> PyTree: ...
    def operator_names(self) -> list[str]: ...
    def forward(self, x: Array, operator: PyTree) -> Array: ...
    def observed(self, operator: PyTree) -> Array | bool: ...
    def keep_observed(self, y: Array, operator: PyTree) -> Array: ...
    def noise_level(self, operator: PyTree) -> Array | float: ...
    def noise_variance(self, x: Array, operator: PyTree) -> Array | float: ...
    def observe(self, key: Key, x: Array, operator: PyTree) -> Array: ...
    def sample(self, key: Key, x: Array) -> Observation: ...
    def condition(self, observation: Observation) -> Array: ...
    def fill(self, observation: Observation) -> Array | None: ...
    def hold_out(self, key: Key, observation: Observation, share: float) -> tuple[Observation, Array]: ...


class LinearCorruption(Corruption, Protocol):
    """A corruption y = A x + n with a linear A and n ~ N(0, noise_level^2 I); see ``diffem_jax.corruptions.Linear``."""

    @property
    def has_diagonal_gram(self) -> bool: ...
    @property
    def needs_noise(self) -> bool: ...
    def adjoint(self, y: Array, operator: PyTree) -> Array: ...
    def gram(self, r: Array, operator: PyTree, v: Array) -> Array: ...
    def gram_diagonal(self, operator: PyTree, v: Array) -> Array: ...
    def solve_gram(self, r: Array, operator: PyTree, v: Array) -> Array: ...
    def log_det_gram(self, operator: PyTree, v: Array) -> Array: ...


Schedule = Callable[[Array], tuple[Array, Array]]
"""A noise schedule t -> (alpha_t, sigma_t) with p(x_t | x) = N(alpha_t x, sigma_t^2 I), t in [0, 1]."""


class TimeLaw(Protocol):
    """The distribution of t in the training loss: ``sample(key)`` is one t in [0, 1], a scalar."""

    def sample(self, key: Key) -> Array: ...


Spread = Callable[[Key, Array, Array], Array]
"""(key, w [*X], v []) -> a draw of N(C w, C), [*X]: how x scatters about x-hat in a Gaussian stand-in for p(x | x_t, y).

v is the variance of x that x_t leaves. C = v I without an observation, and (I / v + A^T A / noise_std^2)^-1 given y = A x + n.
"""


class SpreadDenoiser(NamedTuple):
    """A denoiser (x_t, t) -> x-hat that also tells samplers how x scatters about x-hat; called, it is ``denoise``."""

    denoise: DenoiseFn
    spread: Spread

    def __call__(self, x_t: Array, t: Array) -> Array:
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

    ``params`` are the network's parameters, float32, ``ema_params`` their exponential moving average, which the E-step uses,
    ``step`` the updates done in all and ``round`` the rounds finished, int32 [].
    """

    params: PyTree
    ema_params: PyTree
    opt_state: PyTree
    step: Array
    round: Array


def stream_key(seed: int, stream: str, *indices: int | Array) -> Key:
    """The key of a named stream of randomness, for instance ``stream_key(seed, "e_step", round)``.

    The same (seed, stream, indices) yields the same key on every host, after every restart; nothing is stored.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key


def example_keys(key: Key, indices: Array) -> Key:
    """One key per example, [B] from the examples' indices [B], independent of how they are batched."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
