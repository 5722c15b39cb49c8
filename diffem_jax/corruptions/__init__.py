"""Corruptions p(y | x): the only place where it is written. One family per file, the names below.

A corruption of your own is a frozen dataclass that inherits from ``Linear`` (y = A x + n; write ``forward``) or from
``AdditiveNoise`` (any other A); hand it over as an argument, name it in a config as ``module:ClassName``, or add a line
here. The contract tests pick up every entry, and ``diffem_jax.testing.check_corruption`` puts your own to the same tests.
"""

from diffem_jax.corruptions.base import AdditiveNoise, Denoising, DiagonalGram, Linear, Spectral
from diffem_jax.corruptions.blurs import GaussianBlur, KernelBlur, MotionBlur
from diffem_jax.corruptions.composed import CORRUPTIONS, Composition, Poisson, VaryingNoise
from diffem_jax.corruptions.fourier import FourierMask, MulticoilFourier
from diffem_jax.corruptions.masks import BlockMask, BoxMask, FixedMask, GroupMask, Mask, Outpainting, PixelMask
from diffem_jax.corruptions.nonlinear import JPEG, Clipping, Phase, Quantisation
from diffem_jax.corruptions.projections import CompressedSensing, Projection
from diffem_jax.corruptions.resampling import BicubicDownsampling, BoxDownsampling, Grayscale

CORRUPTIONS.update({
    "denoising": Denoising, "varying_noise": VaryingNoise, "poisson": Poisson, "composition": Composition,
    "pixel_mask": PixelMask, "group_mask": GroupMask, "fixed_mask": FixedMask,
    "block_mask": BlockMask, "box_mask": BoxMask, "outpainting": Outpainting,
    "gaussian_blur": GaussianBlur, "motion_blur": MotionBlur, "kernel_blur": KernelBlur,
    "box_downsampling": BoxDownsampling, "bicubic_downsampling": BicubicDownsampling, "grayscale": Grayscale,
    "projection": Projection, "compressed_sensing": CompressedSensing,
    "fourier_mask": FourierMask, "multicoil_fourier": MulticoilFourier,
    "jpeg": JPEG, "clipping": Clipping, "quantisation": Quantisation, "phase": Phase,
})  # fmt: skip
