"""Which directions of x no observation sees, from the operators alone: there EM can learn nothing.

With M = mean_i A_i^T A_i over the observations' operators, <u, M u> is how much of the direction u the observations
see. Directions with M u = 0 are in every operator's null space, so no distribution of y depends on them; what a run yields there
is its start's and its network's habit. Directions are also called unseen where all N observations together say less
than one of them with unit noise would of a direction of unit prior variance: N <u, M u> < noise_std^2.

* masks: M is diagonal, counted over all observations; also pairs of coordinates that are never seen together.
* up to ``DENSE`` coordinates: the matrix itself, by A^T A on the basis.
* above: Lanczos on M from random vectors. The share of unseen directions is the weight that the vectors' spectral
  measures put below the threshold (stochastic Lanczos quadrature: Ubaru, Chen and Saad 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.build.problem import Problem, rows
from diffem_jax.corruptions.masks import Mask
from diffem_jax.types import PyTree

DENSE = 1024
PAIRS = 2048
KEPT = 64
RELATIVE = 1e-5
_BUDGET = 2**19
_PROBES, _STEPS, _CHUNK = 8, 48, 64


class Report(NamedTuple):
    """What the operators leave open.

    Attributes:
        method: 'counts', 'matrix' or 'lanczos'.
        examples: operators looked at.
        dimensions: coordinates of x.
        unseen: directions that none of them sees; an estimate for 'lanczos'.
        least: the least part seen of any direction, as a share of the best seen one's; for 'lanczos' of those found.
        pairs: for masks, pairs of coordinates that are seen, but never together; None where they were not counted.
        seen: for masks the share of examples that see a coordinate, [*X]; else eigenvalues of M, least first.
        directions: unit vectors that nothing sees, [K, *X], at most ``KEPT``.
    """

    method: str
    examples: int
    dimensions: int
    unseen: int
    least: float
    pairs: int | None
    seen: np.ndarray
    directions: np.ndarray

    def record(self) -> dict[str, Any]:
        """Fields for metrics.jsonl."""
        fields = ("method", "examples", "dimensions", "unseen", "least", "pairs")
        return {name: getattr(self, name) for name in fields if getattr(self, name) is not None}

    def warnings(self) -> list[str]:
        """Plain sentences for the person at the keyboard; none where everything is seen."""
        lines = []
        about = "about " if self.method == "lanczos" else ""
        if self.unseen:
            lines.append(
                f"warning, {about}{self.unseen} of {self.dimensions} directions of x are seen by none of {self.examples} "
                "observations; what the draws hold there comes from the start and the network, not from data"
            )
        if self.pairs:
            lines.append(
                f"warning, {self.pairs} pairs of coordinates are never seen in the same observation; their correlation "
                "cannot be learnt"
            )
        return lines


def look(problem: Problem) -> Report | None:
    """What the observations of a problem leave open; None where the corruption is not linear.

    Only operators are read: neither y nor any truth.
    """
    corruption: Any = problem.setup.data_corruption
    if not corruption.is_linear:
        return None
    operators, shape, count = problem.observations.operator, problem.setup.shape, problem.num_examples
    if isinstance(corruption, Mask):
        return _masks(operators, shape, count)
    size = math.prod(shape)
    measured = math.prod(problem.observations.y.shape[1:])
    # Enough operators for their rows to span the space several times over, were they in general position.
    used = min(count, max(-(-8 * size // max(measured, 1)), _BUDGET // size, 8))
    if not corruption.random_operator:
        used = 1
    chosen = rows(operators, np.linspace(0, count - 1, used).astype(np.int64))
    apply = _mean_gram(corruption, chosen, used, shape)
    floor = corruption.noise_std**2 / count
    if size <= DENSE:
        return _matrix(apply, size, shape, used, floor)
    return _lanczos(apply, size, shape, used, floor)


LOST = {
    "grayscale": "colour at equal grey cannot be learnt",
    "gaussian_blur": "detail finer than the blur cannot be learnt",
    "kernel_blur": "detail that this kernel removes cannot be learnt",
    "motion_blur": "detail that this blur removes cannot be learnt",
    "box_downsampling": "detail within a block of pixels cannot be learnt",
    "bicubic_downsampling": "detail finer than the low resolution cannot be learnt",
    "fixed_mask": "pixels that are always hidden cannot be learnt",
}
"""What a null space that all observations share takes away, by the name of the corruption."""


def same_operator(problem: Problem) -> bool:
    """Whether all observations share one operator, so that what it loses is lost for good; a few rows are compared."""
    leaves = jax.tree.leaves(problem.observations.operator)
    index = np.unique(np.linspace(0, problem.num_examples - 1, _CHUNK).astype(np.int64))
    return all(bool((np.asarray(leaf[index]) == np.asarray(leaf[index[:1]])).all()) for leaf in leaves)


def fixed_null_space(problem: Problem) -> list[str]:
    """What cannot be learnt because all observations share an operator with a null space, said before training.

    Operators that differ are not looked at here; ``look`` does that after training, since it reads them all.
    """
    if not problem.setup.data_corruption.is_linear or not same_operator(problem):
        return []
    found = look(problem)
    if found is None or not found.unseen:
        return []
    name = str(problem.setup.config.corruption.name)
    return [f"{found.warnings()[0]}; {LOST[name]}" if name in LOST else found.warnings()[0]]


def _masks(operators: PyTree, shape: tuple[int, ...], count: int) -> Report:
    size = math.prod(shape)
    together = np.zeros((size, size)) if size <= PAIRS else None
    counts = np.zeros(size)
    for first in range(0, count, _CHUNK * 16):
        mask = rows(operators, np.arange(first, min(count, first + _CHUNK * 16))) > 0
        flat = np.broadcast_to(mask, (len(mask), *shape)).reshape(len(mask), size).astype(np.float32)
        counts += flat.sum(axis=0)
        if together is not None:
            together += flat.T @ flat
    hidden = np.flatnonzero(counts == 0)
    pairs = None
    if together is not None:
        known = counts > 0
        pairs = int(np.sum((together == 0) & known[:, None] & known[None, :])) // 2
    directions = np.zeros((min(len(hidden), KEPT), size), np.float32)
    directions[np.arange(len(directions)), hidden[: len(directions)]] = 1
    share = (counts / count).reshape(shape)
    least = float(counts.min() / max(counts.max(), 1))
    return Report("counts", count, size, len(hidden), least, pairs, share, directions.reshape(-1, *shape))


def _mean_gram(corruption: Any, operators: PyTree, count: int, shape: tuple[int, ...]) -> Callable[..., np.ndarray]:
    """[K, D] -> M applied to each row, [K, D], in double precision over chunks of examples."""

    @jax.jit
    def chunk_sum(vectors: jax.Array, operators: PyTree, present: jax.Array) -> jax.Array:
        def one(operator: PyTree, weight: jax.Array) -> jax.Array:
            def gram(v: jax.Array) -> jax.Array:
                seen = corruption.forward(v.reshape(shape), operator)
                observed = corruption.observed(operator)
                seen = seen if observed is True else jnp.where(observed, seen, 0.0)
                return weight * corruption.adjoint(seen, operator).reshape(-1)

            return jax.vmap(gram)(vectors)

        def add(total: jax.Array, part: tuple[PyTree, jax.Array]) -> tuple[jax.Array, None]:
            return total + one(*part), None

        return jax.lax.scan(add, jnp.zeros(vectors.shape), (operators, present))[0]

    def apply(vectors: np.ndarray) -> np.ndarray:
        total = np.zeros(vectors.shape)
        size = min(_CHUNK, count)
        for first in range(0, count, size):
            index = np.arange(first, first + size)
            part = jax.tree.map(lambda a, index=index: a[index % count], operators)
            total += np.asarray(chunk_sum(vectors.astype(np.float32), part, (index < count).astype(np.float32)))
        return total / count

    return apply


def _threshold(values: np.ndarray, floor: float) -> float:
    return max(RELATIVE * float(values.max()), floor)


def _matrix(apply: Callable, size: int, shape: tuple[int, ...], used: int, floor: float) -> Report:
    gram = apply(np.eye(size))
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    unseen = int(np.sum(values < _threshold(values, floor)))
    directions = vectors.T[: min(unseen, KEPT)].astype(np.float32).reshape(-1, *shape)
    least = float(max(values[0], 0.0) / max(values[-1], 1e-30))
    return Report("matrix", used, size, unseen, least, None, values, directions)


def _lanczos(apply: Callable, size: int, shape: tuple[int, ...], used: int, floor: float) -> Report:
    rng = np.random.Generator(np.random.Philox(0))
    steps = min(_STEPS, size)
    basis = np.zeros((steps, _PROBES, size))
    basis[0] = rng.standard_normal((_PROBES, size))
    basis[0] /= np.linalg.norm(basis[0], axis=1, keepdims=True)
    projected = np.zeros((_PROBES, steps, steps))
    for step in range(steps):
        image = apply(basis[step])
        # Against every earlier vector, twice: the short recurrence alone loses orthogonality.
        coefficients = np.einsum("spd,pd->ps", basis[: step + 1], image)
        projected[:, : step + 1, step] = projected[:, step, : step + 1] = coefficients
        for _ in range(2):
            image = image - np.einsum(
                "ps,spd->pd", np.einsum("spd,pd->ps", basis[: step + 1], image), basis[: step + 1]
            )
        norm = np.linalg.norm(image, axis=1, keepdims=True)
        if step + 1 < steps:
            basis[step + 1] = np.where(norm > 1e-9, image / np.maximum(norm, 1e-30), 0.0)
    values, vectors = np.linalg.eigh(projected)
    weights = vectors[:, 0, :] ** 2
    low = values < _threshold(values, floor)
    # A basis that ended early is filled with zeros: their weight in the first vector is zero as well.
    unseen = round(size * float(np.sum(weights * low) / np.sum(weights)))
    found = []
    for probe in range(_PROBES):
        if low[probe].any() and weights[probe][low[probe]].max() > 1e-12:
            ritz = int(np.argmax(np.where(low[probe], weights[probe], 0.0)))
            found.append(vectors[probe, :, ritz] @ basis[:, probe])
    directions = np.linalg.qr(np.array(found).T)[0].T if found and unseen else np.zeros((0, size))
    real = values[weights > 1e-12]
    least = float(max(real.min(), 0.0) / real.max())
    eigenvalues = np.sort(real)
    return Report(
        "lanczos", used, size, unseen, least, None, eigenvalues, directions.astype(np.float32).reshape(-1, *shape)
    )
