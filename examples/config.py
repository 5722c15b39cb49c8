"""The shipped digits with parts of one's own: ``--config=examples/config.py:VARIANT``.

Variants: corruption, network, start, and all (every part but the posterior transform).
"""

from ml_collections import ConfigDict

from diffem_jax.config import default


def get_config(variant="all"):
    """A part that has fields of its own is set in a config file, together with these fields."""
    c = default()
    with c.unlocked():
        c.data.split = "all"
        c.start.rank = 24
        c.eval.metrics = ("psnr",)
        if variant in ("corruption", "all"):
            c.corruption = ConfigDict({"name": "examples.corruption:RowDropout", "rate": 0.3, "noise_std": 0.01})
        if variant in ("network", "all"):
            c.network = ConfigDict({"name": "examples.network:Gated", "width": 256, "depth": 3})
        if variant in ("start", "all"):
            c.start.name = "examples.start:shrunk"
            c.start.shrink = 0.1
        if variant == "all":
            c.schedule.name = "examples.schedule:Cosine"
            c.e_step.sampler = "examples.sampler:churn"
    return c
