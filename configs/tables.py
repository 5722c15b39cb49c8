"""Tables with missing entries: scikit-learn's breast_cancer (569 x 30) and wine (178 x 13), columns of mean 0 and std 1.

    diffem --config=tables:wine30 --workdir=runs/wine30

Variants: breast_cancer30, breast_cancer50, wine30, wine50 (the number is the percentage of entries that are missing).
Hardware: one CPU core, a minute. What to expect: experiments/kinds/README.md. A table of your own is
``--config=own_data``, an .npz with y and mask [N, D].
"""

from ml_collections import ConfigDict

from diffem_jax.config import default

TABLES = {"breast_cancer": 15, "wine": 3}
"""The table and the rank of its start."""
VARIANTS = tuple(f"{name}{percent}" for name in TABLES for percent in (30, 50))


def get_config(variant: str = "wine30") -> ConfigDict:
    """One of ``VARIANTS``."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}; expected one of {', '.join(VARIANTS)}")
    name, percent = variant[:-2], int(variant[-2:])
    c = default()
    with c.unlocked():
        c.rounds = 2
        c.data.update(name=name, split="all")
        c.corruption = ConfigDict({"name": "pixel_mask", "rate": percent / 100, "noise_std": 0.01})
        c.network = ConfigDict({"name": "mlp", "features": (128, 128), "embedding": 32, "normalize": True})
        c.start.update(rank=TABLES[name], iterations=100, variance_floor=1e-3)
        c.e_step.update(steps=16, batch_size=256)
        # Few rows: short training at a low rate, so that the network corrects the start and does not learn rows by heart.
        c.m_step.update(steps=400, batch_size=256, learning_rate=3e-4, ema_decay=0.99)
    return c
