"""Draws docs/corruptions.png: every corruption of the registry on one photograph.

    python experiments/gallery/gallery.py

Each tile shows y itself where y is an image, its logarithm where it is a spectrum, and the back-projection A^T y
where y is a list of numbers.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from skimage import data, transform

from diffem_jax.corruptions import CORRUPTIONS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIZE = 96
# name -> (what the tile says below the name, fields, how y is shown)
TILES: dict[str, tuple[str, dict, str]] = {
    "denoising": ("std 0.4", {"noise_std": 0.4}, "image"),
    "varying_noise": ("std 0.05 to 1, drawn", {"noise_std": 0.05, "noise_std_max": 1.0}, "image"),
    "poisson": ("peak 10 photons", {"peak": 10.0}, "image"),
    "pixel_mask": ("rate 0.75", {"rate": 0.75}, "masked"),
    "group_mask": ("channels by ones and twos", {"groups": (1, 2)}, "masked"),
    "block_mask": ("a random square", {"block": 40}, "masked"),
    "box_mask": ("the centre hidden", {}, "masked"),
    "outpainting": ("only the centre seen", {}, "masked"),
    "fixed_mask": ("one given mask", {}, "masked"),
    "gaussian_blur": ("std 2", {"std": 2.0}, "image"),
    "motion_blur": ("15 pixels, random direction", {"length": 15.0}, "image"),
    "kernel_blur": ("any kernel: a ring", {}, "image"),
    "box_downsampling": ("factor 4", {"factor": 4}, "image"),
    "bicubic_downsampling": ("factor 4", {"factor": 4}, "image"),
    "grayscale": ("luma", {}, "image"),
    "projection": ("500 random rows (A$^T$y)", {"measurements": 500}, "back"),
    "compressed_sensing": ("half the numbers (A$^T$y)", {"ratio": 0.5}, "back"),
    "fourier_mask": ("4x, one coil (spectrum)", {}, "spectrum"),
    "multicoil_fourier": ("4x, 4 coils (A$^T$y)", {"coils": 4}, "back"),
    "composition": ("blur, then 2x smaller", {}, "image"),
    "jpeg": ("quality 10", {"quality": 10}, "image"),
    "clipping": ("to [-1, 1]", {}, "image"),
    "quantisation": ("4 levels", {"levels": 4}, "image"),
    "phase": ("Fourier magnitudes", {}, "magnitude"),
}


def photograph() -> jax.Array:
    """A square crop of scikit-image's cat, in [-2, 2]."""
    crop = transform.resize(data.chelsea()[20:280, 90:350], (SIZE, SIZE), anti_aliasing=True)
    return jnp.asarray(crop * 4 - 2, jnp.float32)


def ring(size: int = 11) -> tuple:
    """A ring-shaped kernel, an out-of-focus mirror lens."""
    radius = np.hypot(*(np.indices((size, size)) - size // 2))
    weights = np.maximum(1 - np.abs(radius - size * 0.36), 0)
    return tuple(map(tuple, (weights / weights.sum()).tolist()))


def show(name: str, x: jax.Array) -> np.ndarray:
    """The tile of a corruption, an image with values in [0, 1]."""
    _, fields, how = TILES[name]
    if name == "kernel_blur":
        fields = {"weights": ring()}
    corruption = CORRUPTIONS[name](shape=x.shape, **fields)
    observation = jax.jit(corruption.sample)(jax.random.key(7), x)
    y = np.asarray(observation.y)
    if how in ("spectrum", "magnitude"):
        y = np.log1p(20 * (np.abs(y) if how == "magnitude" else np.hypot(y[..., ::2], y[..., 1::2])))
        return y / y.max()
    if how == "back":
        y = np.asarray(corruption.adjoint(*observation))
        y = y * np.asarray(x).std() / y.std()
    picture = np.clip(y / 4 + 0.5, 0, 1)
    if how == "masked":
        seen = np.broadcast_to(np.asarray(observation.operator), x.shape) > 0
        picture = np.where(seen, picture, 0.93)
    return picture


def main() -> None:
    x = photograph()
    pictures = [("x", "the photograph", np.asarray(x) / 4 + 0.5)]
    pictures += [(name, TILES[name][0], show(name, x)) for name in CORRUPTIONS]
    rows, columns = -(-len(pictures) // 6), 6
    figure, axes = plt.subplots(rows, columns, figsize=(2.0 * columns, 2.42 * rows), dpi=110)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, note, picture) in zip(axes.flat, pictures, strict=False):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name, fontsize=9.5, family="monospace", fontweight="bold", pad=16, color="#1b2a41")
        axis.text(0.5, 1.035, note, transform=axis.transAxes, ha="center", fontsize=8, color="#5b6675")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.945, wspace=0.06, hspace=0.27)
    figure.savefig(pathlib.Path(__file__).resolve().parents[2] / "docs" / "corruptions.png", facecolor="white")


if __name__ == "__main__":
    main()
