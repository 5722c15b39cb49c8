"""The registry of corruptions: one family a module, one line a name.

A corruption of your own is a frozen dataclass with the methods of ``diffem_jax.types.Corruption``; hand it over as an
argument, name it in a config as ``module:ClassName``, or add a line here. The contract tests pick up every entry, and
``diffem_jax.testing.check_corruption`` puts your own to the same tests.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from diffem_jax.corruptions.base import AdditiveNoise, Denoising, DiagonalGram, Linear, Spectral
from diffem_jax.corruptions.blurs import GaussianBlur, KernelBlur, MotionBlur
from diffem_jax.corruptions.composed import Composition, Poisson, VaryingNoise
from diffem_jax.corruptions.fourier import FourierMask, MulticoilFourier
from diffem_jax.corruptions.masks import BlockMask, BoxMask, FixedMask, GroupMask, Mask, Outpainting, PixelMask
from diffem_jax.corruptions.nonlinear import JPEG, Clipping, Phase, Quantisation
from diffem_jax.corruptions.projections import CompressedSensing, Projection
from diffem_jax.corruptions.resampling import BicubicDownsampling, BoxDownsampling, Grayscale
from diffem_jax.errors import UserError

CORRUPTIONS: dict[str, Any] = {
    "denoising": Denoising,
    "varying_noise": VaryingNoise,
    "poisson": Poisson,
    "pixel_mask": PixelMask,
    "group_mask": GroupMask,
    "block_mask": BlockMask,
    "box_mask": BoxMask,
    "outpainting": Outpainting,
    "fixed_mask": FixedMask,
    "gaussian_blur": GaussianBlur,
    "motion_blur": MotionBlur,
    "kernel_blur": KernelBlur,
    "box_downsampling": BoxDownsampling,
    "bicubic_downsampling": BicubicDownsampling,
    "grayscale": Grayscale,
    "projection": Projection,
    "compressed_sensing": CompressedSensing,
    "fourier_mask": FourierMask,
    "multicoil_fourier": MulticoilFourier,
    "composition": Composition,
    "jpeg": JPEG,
    "clipping": Clipping,
    "quantisation": Quantisation,
    "phase": Phase,
}


def resolve(name: str) -> Any:
    """The class of a corruption from its name in ``CORRUPTIONS`` or from ``'package.module:ClassName'``.

    Raises:
        UserError: no such name, module or class.
    """
    if name in CORRUPTIONS:
        return CORRUPTIONS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, CORRUPTIONS, 1, 0.4)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
        known = ", ".join(CORRUPTIONS)
        raise UserError(f"corruption.name: {name!r}; expected one of {known}, or 'package.module:ClassName'; {hint}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"corruption.name: {name!r}; expected 'package.module:ClassName' of a class that imports ({error}); "
            "put its folder on PYTHONPATH and check the spelling"
        ) from error


__all__ = [
    "CORRUPTIONS",
    "JPEG",
    "AdditiveNoise",
    "BicubicDownsampling",
    "BlockMask",
    "BoxDownsampling",
    "BoxMask",
    "Clipping",
    "Composition",
    "CompressedSensing",
    "Denoising",
    "DiagonalGram",
    "FixedMask",
    "FourierMask",
    "GaussianBlur",
    "Grayscale",
    "GroupMask",
    "KernelBlur",
    "Linear",
    "Mask",
    "MotionBlur",
    "MulticoilFourier",
    "Outpainting",
    "Phase",
    "PixelMask",
    "Poisson",
    "Projection",
    "Quantisation",
    "Spectral",
    "VaryingNoise",
    "resolve",
]
