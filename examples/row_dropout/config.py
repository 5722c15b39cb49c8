"""The digits with rows lost."""

from ml_collections import ConfigDict

from diffem_jax.config import default


def get_config():
    """The shipped digits, with one part of our own."""
    c = default()
    with c.unlocked():
        c.data.split = "all"
        c.corruption = ConfigDict({"name": "row_dropout:RowDropout", "rate": 0.3, "noise_std": 0.01})
        c.start.rank = 24
        c.e_step.batch_size = 600
        c.eval.metrics = ("psnr",)
    return c
