"""The registry of corruptions: one family a module, one line a name.

A corruption of your own is a frozen dataclass with the methods of ``diffem_jax.types.Corruption``; hand it over as an
argument, name it in a config as ``module:ClassName``, or add a line here. The contract tests pick up every entry.
"""

from diffem_jax.corruptions.base import AdditiveNoise, Denoising, Linear
from diffem_jax.corruptions.masks import Mask, PixelMask
from diffem_jax.corruptions.projections import Projection

CORRUPTIONS = {
    "denoising": Denoising,
    "pixel_mask": PixelMask,
    "projection": Projection,
}

__all__ = ["CORRUPTIONS", "AdditiveNoise", "Denoising", "Linear", "Mask", "PixelMask", "Projection"]
