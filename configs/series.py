"""Series with gaps: sums of damped oscillations [128, 1] of which a random quarter in one piece is missing.

    diffem --config=series --workdir=runs/series

Hardware: one CPU core, minutes. What to expect: experiments/kinds/README.md.
"""

from ml_collections import ConfigDict

from diffem_jax.config import default


def get_config(variant: str = "gaps") -> ConfigDict:
    """'gaps'."""
    if variant != "gaps":
        raise ValueError(f"variant {variant!r}; expected gaps")
    c = default()
    with c.unlocked():
        c.rounds = 2
        c.data.update(name="series", num_examples=1024)
        c.corruption = ConfigDict({"name": "block_mask", "block": 32, "noise_std": 0.05})
        c.network = ConfigDict({"name": "mlp", "features": (256, 256), "embedding": 32, "normalize": True})
        c.start.rank = 24
        c.e_step.update(steps=16, batch_size=512)
        c.m_step.update(steps=300, batch_size=256)
        c.eval.metrics = ("psnr",)
    return c
