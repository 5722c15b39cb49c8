"""The digits with a shrunk start."""

from diffem_jax.config import default


def get_config():
    """The shipped digits, with one part of our own."""
    c = default()
    with c.unlocked():
        c.data.split = "all"
        c.start.name = "shrunk:shrunk"
        c.start.shrink = 0.1  # a field of its own
        c.start.rank = 24
        c.e_step.batch_size = 600
        c.eval.metrics = ("psnr",)
    return c
