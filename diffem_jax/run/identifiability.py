"""Which directions of x no observation sees, from the operators alone: there EM can learn nothing.

With M = mean_i A_i^T A_i over the observations' operators, <u, M u> is how much of the direction u the observations see. No
distribution of y depends on directions with M u = 0; what a run yields there is its start's and its network's habit. Directions
are also called unseen where all N observations together say less than one of them with unit noise would of a direction of unit
prior variance: N <u, M u> < noise_std^2.

Masks are counted, and pairs of coordinates that are never seen together; of other corruptions M is a matrix up to ``DENSE``
coordinates, and above that Lanczos from random vectors tells the share of the directions below the threshold (stochastic
Lanczos quadrature: Ubaru, Chen and Saad 2017).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.build.problem import Problem, rows
from diffem_jax.corruptions.masks import Mask
from diffem_jax.types import PyTree

DENSE, PAIRS, KEPT, RELATIVE = 1024, 2048, 64, 1e-5
_BUDGET = 2**19
_PROBES, _STEPS, _CHUNK = 8, 48, 64
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


class Report(NamedTuple):
    """What the operators leave open."""

    method: str  # 'counts', 'matrix' or 'lanczos'
    examples: int  # operators looked at
    dimensions: int  # coordinates of x
    unseen: int  # directions that none of them sees; an estimate for 'lanczos'
    least: float  # the least part seen of any direction that was found, as a share of the best seen one's
    pairs: int | None  # for masks, pairs of coordinates that are seen, but never together; None where not counted
    seen: np.ndarray  # for masks the share of examples that see a coordinate, [*X]; else eigenvalues of M, least first
    directions: np.ndarray  # unit vectors that nothing sees, [K, *X], at most ``KEPT``

    def record(self) -> dict[str, Any]:
        """Fields for metrics.jsonl."""
        return {k: v for k, v in self._asdict().items() if k not in ("seen", "directions") and v is not None}

    def warnings(self) -> list[str]:
        """Plain sentences for the person at the keyboard; none where everything is seen."""
        lines = []
        if self.unseen:
            about = "about " if self.method == "lanczos" else ""
            found = f"{about}{self.unseen} of {self.dimensions} directions of x are seen by none of {self.examples} observations"
            so = "what the draws hold there comes from the start and the network, not from data"
            lines.append(f"warning, {found}; {so}")
        if self.pairs:
            what = f"{self.pairs} pairs of coordinates are never seen together"
            lines.append(f"warning, {what}; their correlation cannot be learnt")
        return lines


def look(problem: Problem) -> Report | None:
    """What the operators of a problem leave open, read without y or any truth; None where the corruption is not linear."""
    corruption: Any = problem.setup.data_corruption
    if not corruption.is_linear:
        return None
    operators, shape, count = problem.observations.operator, problem.setup.shape, problem.num_examples
    if isinstance(corruption, Mask):
        return _masks(operators, shape, count)
    size, measured = math.prod(shape), math.prod(problem.observations.y.shape[1:])
    # Enough operators for their rows to span the space several times over, were they in general position.
    used = min(count, max(-(-8 * size // max(measured, 1)), _BUDGET // size, 8)) if corruption.random_operator else 1
    chosen = rows(operators, np.linspace(0, count - 1, used).astype(np.int64))
    gram, floor = _mean_gram(corruption, chosen, used, shape), corruption.noise_std**2 / count
    method, find = ("matrix", _matrix) if size <= DENSE else ("lanczos", _lanczos)
    values, unseen, directions = find(gram, size, floor)
    least = float(max(values[0], 0.0) / max(values[-1], 1e-30))
    kept = directions[: min(unseen, KEPT)].astype(np.float32).reshape(-1, *shape)
    return Report(method, used, size, unseen, least, None, values, kept)


def fixed_null_space(problem: Problem) -> list[str]:
    """What cannot be learnt as all observations share an operator with a null space; said before training."""
    index = np.unique(np.linspace(0, problem.num_examples - 1, _CHUNK).astype(np.int64))
    leaves = [np.asarray(leaf[index]) for leaf in jax.tree.leaves(problem.observations.operator)]
    found = look(problem) if all((leaf == leaf[:1]).all() for leaf in leaves) else None
    if found is None or not found.unseen:
        return []
    lost = LOST.get(str(problem.setup.config.corruption.name))
    return [found.warnings()[0] + (f"; {lost}" if lost else "")]


def _masks(operators: PyTree, shape: tuple[int, ...], count: int) -> Report:
    size = math.prod(shape)
    counts, together = np.zeros(size), np.zeros((size, size)) if size <= PAIRS else None
    for first in range(0, count, _CHUNK * 16):
        mask = rows(operators, np.arange(first, min(count, first + _CHUNK * 16))) > 0
        flat = np.broadcast_to(mask, (len(mask), *shape)).reshape(len(mask), size).astype(np.float32)
        counts += flat.sum(axis=0)
        if together is not None:
            together += flat.T @ flat
    hidden, known = np.flatnonzero(counts == 0), counts > 0
    pairs = None if together is None else int(np.sum((together == 0) & known[:, None] & known[None, :])) // 2
    directions = (np.arange(size) == hidden[:KEPT, None]).astype(np.float32)
    share, least = (counts / count).reshape(shape), float(counts.min() / max(counts.max(), 1))
    return Report("counts", count, size, len(hidden), least, pairs, share, directions.reshape(-1, *shape))


def _mean_gram(corruption: Any, operators: PyTree, count: int, shape: tuple[int, ...]) -> Callable[..., np.ndarray]:
    """[K, D] -> M applied to each row, [K, D], in double precision over chunks of examples."""

    @jax.jit
    def chunk_sum(vectors: jax.Array, operators: PyTree, present: jax.Array) -> jax.Array:
        def add(total: jax.Array, part: tuple[PyTree, jax.Array]) -> tuple[jax.Array, None]:
            operator, weight = part

            def gram(v: jax.Array) -> jax.Array:
                seen = corruption.keep_observed(corruption.forward(v.reshape(shape), operator), operator)
                return corruption.adjoint(seen, operator).reshape(-1)

            return total + weight * jax.vmap(gram)(vectors), None

        return jax.lax.scan(add, jnp.zeros(vectors.shape), (operators, present))[0]

    def apply(vectors: np.ndarray) -> np.ndarray:
        total, size = np.zeros(vectors.shape), min(_CHUNK, count)
        for first in range(0, count, size):
            index = np.arange(first, first + size)
            part = rows(operators, index % count)
            total += np.asarray(chunk_sum(vectors.astype(np.float32), part, (index < count).astype(np.float32)))
        return total / count

    return apply


def _unseen(values: np.ndarray, floor: float) -> np.ndarray:
    return values < max(RELATIVE * float(values.max()), floor)


def _matrix(gram: Callable, size: int, floor: float) -> tuple[np.ndarray, int, np.ndarray]:
    """Eigenvalues of M, how many of them are unseen, and directions [K, D] of which the first ones are theirs."""
    matrix = gram(np.eye(size))
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return values, int(np.sum(_unseen(values, floor))), vectors.T


def _lanczos(gram: Callable, size: int, floor: float) -> tuple[np.ndarray, int, np.ndarray]:
    """As ``_matrix``, by Lanczos from several random vectors at once."""
    steps = min(_STEPS, size)
    basis, projected = np.zeros((steps, _PROBES, size)), np.zeros((_PROBES, steps, steps))
    basis[0] = np.random.Generator(np.random.Philox(0)).standard_normal((_PROBES, size))
    basis[0] /= np.linalg.norm(basis[0], axis=1, keepdims=True)
    for step in range(steps):
        image, before = gram(basis[step]), basis[: step + 1]
        projected[:, : step + 1, step] = projected[:, step, : step + 1] = np.einsum("spd,pd->ps", before, image)
        # Against every earlier vector, twice: the short recurrence alone loses orthogonality.
        for _ in range(2):
            image = image - np.einsum("ps,spd->pd", np.einsum("spd,pd->ps", before, image), before)
        norm = np.linalg.norm(image, axis=1, keepdims=True)
        if step + 1 < steps:
            basis[step + 1] = np.where(norm > 1e-9, image / np.maximum(norm, 1e-30), 0.0)
    values, vectors = np.linalg.eigh(projected)
    weights, low = vectors[:, 0, :] ** 2, _unseen(values, floor)
    # A basis that ended early is filled with zeros: their weight in the first vector is zero as well.
    unseen = round(size * float(np.sum(weights * low) / np.sum(weights)))
    probes = enumerate(np.where(low, weights, 0.0))
    found = [vectors[p, :, int(np.argmax(weight))] @ basis[:, p] for p, weight in probes if weight.max() > 1e-12]
    directions = np.linalg.qr(np.array(found).T)[0].T if found and unseen else np.zeros((0, size))
    return np.sort(values[weights > 1e-12]), unseen, directions
