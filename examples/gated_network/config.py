"""The digits with a gated network."""

from ml_collections import ConfigDict

from diffem_jax.config import default


def get_config():
    """The shipped digits, with one part of our own."""
    c = default()
    with c.unlocked():
        c.data.split = "all"
        c.network = ConfigDict({"name": "gated:Gated", "width": 256, "depth": 3})
        c.start.rank = 24
        c.e_step.batch_size = 600
        c.eval.metrics = ("psnr",)
    return c
