"""Volumes [8, 8, 8, 1] of two small solids, half of the voxels missing, with a U-Net over three dimensions.

    diffem --config=volumes --workdir=runs/volumes

Hardware: one CPU core, minutes. What to expect: experiments/kinds/README.md.
"""

from ml_collections import ConfigDict

from diffem_jax.config import default


def get_config(variant: str = "mask50") -> ConfigDict:
    """'mask50'."""
    if variant != "mask50":
        raise ValueError(f"variant {variant!r}; expected mask50")
    c = default()
    with c.unlocked():
        c.rounds = 1
        c.data.update(name="volumes", num_examples=512, shape=(8, 8, 8, 1))
        c.corruption = ConfigDict({"name": "pixel_mask", "rate": 0.5, "noise_std": 0.05, "fill_iterations": 20})
        # The network corrects a harmonic interpolation, as for patches.
        c.denoiser.base = "start_moments"
        c.m_step.update(loss_weight="base", time_law_beta=((4.0, 2.5),), learning_rate=2e-3)
        c.network = ConfigDict({"name": "unet", "channels": (16, 32), "blocks": 1, "heads": (), "embedding": 32})
        c.network.update(dropout=0.0)
        c.start.rank = 16
        c.e_step.update(steps=12, batch_size=128)
        c.m_step.update(steps=200, batch_size=32)
        c.eval.metrics = ("psnr",)
    return c
