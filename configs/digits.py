"""DiffEM on real images in minutes on a laptop: scikit-learn's 1,797 handwritten digits, half of the pixels erased.

    diffem --config=digits --workdir=runs/digits

Hardware: two CPU cores, about three minutes. Expect posterior draws of PSNR >= 16.7 dB against the hidden truth and
classifier accuracy >= 0.88, where draws of the Gaussian start have about 15.0 and 0.83.
"""

from ml_collections import ConfigDict

from diffem_jax.config import default


def get_config() -> ConfigDict:
    """The configuration."""
    c = default()
    with c.unlocked():
        c.rounds = 4
        c.data.name = "digits"
        c.data.split = "all"
        c.corruption = ConfigDict({"name": "pixel_mask", "rate": 0.5, "noise_std": 0.01, "per_channel": False})
        c.network = ConfigDict({"name": "mlp", "features": (512, 512, 512), "embedding": 64, "normalize": True})
        c.start.rank = 24
        c.e_step.steps = 32
        c.e_step.batch_size = 600
        c.m_step.steps = 1000
        c.m_step.batch_size = 512
        c.eval.metrics = ("psnr", "accuracy")
    return c
