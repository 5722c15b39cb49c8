"""Sets that the project makes itself: the manifold, series and volumes. Each is a function of its seed alone."""

import zlib

import numpy as np

CURVE_SEED = 0  # the curve is always this one; a run's seed only picks the points on it


def generator(name: str, *seeds: int) -> np.random.Generator:
    """A Philox generator of its own for every (name, seeds), the same on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([zlib.crc32(name.encode()), *seeds])))


def curve(s: np.ndarray, dimension: int = 5, smoothness: float = 3.0, terms: int = 32) -> np.ndarray:
    """Points [N, dimension] float32 of one fixed smooth random curve, at parameters s [N] in [0, 1].

    Coordinate j is sum_k k^-smoothness a_jk sin(2 pi (k b_jk s + c_jk)) with k up to ``terms`` and a, b, c uniform in
    [0, 1], scaled so that the curve spans [-2, 2] in every coordinate.

    Source: random manifolds of Zenke & Vogels 2021 (Neural Computation 33) as used by Rozet et al. 2024,
    arXiv 2405.13712, appendix C, and Hosseintabar et al. 2025, arXiv 2510.12691.
    """
    a, b, c = generator("curve", CURVE_SEED, dimension).random((3, dimension, terms))
    k = np.arange(1, terms + 1)

    def raw(t: np.ndarray) -> np.ndarray:
        rows = zip(a * k**-smoothness, k * b, c, strict=True)
        return np.stack([np.sin(2 * np.pi * (t[:, None] * rate + phase)) @ size for size, rate, phase in rows], axis=-1)

    reference = raw(np.linspace(0.0, 1.0, 4097))
    low, high = reference.min(0), reference.max(0)
    return np.clip(4.0 * (raw(s) - low) / (high - low) - 2.0, -2.0, 2.0).astype(np.float32)


def manifold(count: int, seed: int, split: str, dimension: int = 5) -> np.ndarray:
    """Independent points of ``curve``, uniform in its parameter, [count, dimension] float32."""
    return curve(generator(f"manifold/{split}", seed).random(count), dimension)


def series(count: int, seed: int, split: str, length: int = 128, modes: int = 2) -> np.ndarray:
    """Sums of damped oscillations, [count, length, 1] float32 in [-2, 2].

    x(t) = 2/modes sum_j a_j exp(-d_j t) sin(2 pi f_j t + p_j), t in [0, 1], with a in [0.5, 1], d in [0, 1.5], f in [1, 8], p uniform.
    """
    u = generator(f"series/{split}", seed).random((count, modes, 4)).astype(np.float32)
    t = np.linspace(0.0, 1.0, length, dtype=np.float32)
    x = np.zeros((count, length), np.float32)
    for j in range(modes):
        amplitude, damping, frequency, phase = (u[:, j, i, None] for i in range(4))
        wave = np.sin(2 * np.pi * ((1 + 7 * frequency) * t + phase)) * np.exp(-1.5 * damping * t)
        x += (0.5 + 0.5 * amplitude) * wave
    return (2.0 / modes * x)[..., None].astype(np.float32)


def volumes(count: int, seed: int, split: str, size: int = 16) -> np.ndarray:
    """Two small solids (ellipsoids or boxes), -2 outside, 2 inside, surfaces a voxel thick; [count, size, size, size, 1]."""
    u = generator(f"volumes/{split}", seed).random((count, 2, 7)).astype(np.float32)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x = np.empty((count, size, size, size, 1), np.float32)
    for start in range(0, count, 256):
        part = u[start : start + 256]
        inside = np.zeros((len(part), size, size, size), np.float32)
        for solid in range(2):
            centre, radius, box = part[:, solid, :3], part[:, solid, 3:6], part[:, solid, 6] < 0.5
            scaled = np.abs((axis - (0.25 + 0.5 * centre[..., None])) / (0.12 + 0.2 * radius[..., None]))
            a, b, c = scaled[:, 0, :, None, None], scaled[:, 1, None, :, None], scaled[:, 2, None, None, :]
            ellipsoid, cuboid = np.sqrt(a**2 + b**2 + c**2), np.maximum(np.maximum(a, b), c)
            distance = np.where(box[:, None, None, None], cuboid, ellipsoid) - 1.0
            inside = np.maximum(inside, np.clip(0.5 - distance * size * 0.22, 0.0, 1.0))
        x[start : start + 256] = (4.0 * inside - 2.0)[..., None]
    return x
