"""Your own observations, without any clean data: an .npz with 'y' and, for masks, 'mask', or a folder of images.

    diffem --config=own_data --config.data.path=obs.npz --workdir=runs/mine
    diffem --config=own_data --config.data.path=obs.npz --config.corruption.name=gaussian_blur --config.corruption.std=1.5 --workdir=runs/blur
    diffem --config=own_data:images --config.data.path=obs.npz --workdir=runs/mine     # a U-Net for an accelerator
    diffem --config=own_data:paper --config.data.path=obs.npz --workdir=runs/mine      # that U-Net, the published way
    diffem --config=own_data:table --config.data.path=obs.npz --workdir=runs/mine      # a table, as of configs/tables.py

``y`` has shape [N, H, W, C] (or [N, D]) with values in [-2, 2], ``mask`` [N, H, W, 1] (or [N, D]) with 1 where y was
seen. Set config.corruption to what made the data (docs/own_data.md); 'table' has groups of columns that are missing together.
What is 'auto' follows from the data and the corruption: network, preconditioning, start and sizes; the first lines of a run
say what was chosen. Variants: auto (the default), small (the MLP), images, paper, table. Hardware: two CPU cores for small
images, an accelerator for 'images' and 'paper', which nobody here has run at full size. What to expect depends on the data; of
digits with half of the pixels erased, the numbers of configs/digits.py.
"""

from ml_collections import ConfigDict

from diffem_jax.config import default, leave_open

VARIANTS = ("auto", "small", "images", "paper", "table")


def get_config(variant: str = "auto") -> ConfigDict:
    """One of ``VARIANTS``."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}; expected one of {', '.join(VARIANTS)}")
    c = default()
    with c.unlocked():
        c.data.name = "observations"
        c.corruption = ConfigDict({"name": "pixel_mask", "rate": 0.5, "noise_std": 0.01})
        c.m_step.operators = "data"
        c.start.update(rank=24, num_examples=8192)
        c.e_step.update(steps=16, batch_size=512)
        c.rounds = 5
        if variant in ("auto", "small"):
            leave_open(c)
            c.network.name = "auto" if variant == "auto" else "mlp"
        elif variant == "table":
            c.rounds = 2
            c.corruption = ConfigDict({"name": "group_mask", "rate": 0.3, "noise_std": 0.01, "groups": ()})
            c.network = ConfigDict({"name": "mlp", "features": (128, 128), "embedding": 32, "normalize": True})
            c.start.update(iterations=100, variance_floor=1e-3, shrinkage=-1.0)
            c.e_step.batch_size = 256
            c.m_step.update(steps=400, batch_size=256, learning_rate=3e-4, ema_decay=0.99)
        else:
            c.network = ConfigDict({"name": "unet", "channels": (64, 128), "blocks": 2, "heads": ((1, 4),)})
            c.network.update(embedding=128, dropout=0.0)
            c.m_step.batch_size = 128
        if variant == "paper":
            c.rounds = 21
            c.denoiser.preconditioning = "edm"
            c.e_step.update(sampler="ddpm", time_grid="log_uniform", steps=256)
            c.prior.sampler = "ddim"
            c.m_step.update(steps=8192, batch_size=256, ema_decay=0.9999)
            c.m_step.update(learning_rate=2e-4, learning_rate_schedule="constant")
        c.eval.metrics = ("observation_distance",)
    return c
