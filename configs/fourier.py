"""Fourier subsampling with Cartesian masks, as in magnetic resonance imaging: random lines of the spectrum are measured.

    diffem --config=fourier --workdir=runs/fourier                           # digits, every second line
    diffem --config=fourier:patches --workdir=runs/fourier_patches           # photographs 16x16x3, every second line
    diffem --config=fourier:knee --config.data.path=slices.npy --workdir=runs/knee   # 320x320 slices, every sixth line

Hardware: two CPU cores for 'digits' (minutes) and 'patches' (an hour); 8 GPUs or a TPU v5e-8 for 'knee'. 'knee' has the
size and the sixfold acceleration that Rozet et al. 2024 (arXiv 2405.13712) use on single-coil knee slices; the set
(fastMRI) asks for an agreement, so it comes from a file of yours, x [N, 320, 320, 1] in [-2, 2]. Expect of 'digits'
posterior draws of PSNR 24 dB, 19.9 from the start. Nobody here has run 'patches' or 'knee' at full size.
"""

from ml_collections import ConfigDict

from diffem_jax.config import default

VARIANTS = ("digits", "patches", "knee")


def get_config(variant: str = "digits") -> ConfigDict:
    """One of ``VARIANTS``."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}; expected one of {', '.join(VARIANTS)}")
    c = default()
    with c.unlocked():
        c.rounds = 3
        mask = {"acceleration": 2.0, "center_fraction": 0.125, "noise_std": 0.01}
        c.corruption = ConfigDict({"name": "fourier_mask", **mask})
        # The gram matrix has a closed form for one variance, not for one a coordinate.
        c.denoiser.base = "isotropic"
        c.eval.metrics = ("psnr",)
        if variant == "digits":
            c.data.update(name="digits", split="all")
            c.network = ConfigDict({"name": "mlp", "features": (512, 512, 512), "embedding": 64, "normalize": True})
            c.start.rank = 24
            c.e_step.batch_size = 600
        elif variant == "patches":
            c.data.update(name="patches", shape=(16, 16, 3), num_examples=8192)
            c.network = ConfigDict({"name": "unet", "channels": (32, 64), "blocks": 1, "heads": (), "embedding": 64})
            c.network.update(dropout=0.0)
            c.start.update(num_examples=2048, iterations=10)
            c.e_step.update(steps=16, batch_size=256)
            c.m_step.update(batch_size=64, augment=("flip",))
            c.eval.num_examples = 2048
        else:
            c.rounds = 16
            c.data.update(name="arrays", shape=(320, 320, 1))
            c.corruption.update(acceleration=6.0, center_fraction=0.04)
            c.network = ConfigDict({"name": "unet", "channels": (64, 128, 256, 512), "blocks": 2, "heads": ((3, 4),)})
            c.network.update(embedding=256, dropout=0.1, remat=True)
            c.start.update(num_examples=2048, iterations=10)
            c.e_step.update(steps=64, batch_size=64)
            c.m_step.update(steps=25_000, batch_size=64, learning_rate=1e-4, learning_rate_schedule="constant")
            c.m_step.update(ema_decay=0.9999, augment=("flip",))
            c.eval.num_examples = 256
    return c
