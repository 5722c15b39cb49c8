"""Your own observations, without any clean data: an .npz with 'y' and, for masks, 'mask'.

    diffem --config=own_data --config.data.path=obs.npz --workdir=runs/mine
    diffem --config=own_data:images --config.data.path=obs.npz --workdir=runs/mine     # a U-Net, for larger images
    diffem --config=own_data:paper --config.data.path=obs.npz --workdir=runs/mine      # that U-Net, the published way
    diffem --config=own_data:table --config.data.path=obs.npz --workdir=runs/mine      # a table, as of configs/tables.py

``y`` has shape [N, H, W, C] (or [N, D]) with values in [-2, 2], ``mask`` [N, H, W, 1] (or [N, D]) with 1 where y was
seen. Set config.corruption to what made the data; 'table' has groups of columns that are missing together
(docs/own_data.md). Hardware: two CPU cores for small images with the MLP, an accelerator
for 'images' and 'paper', which nobody here has run at full size. What to expect depends on the data; of digits with half of
the pixels erased, the numbers of configs/digits.py.
"""

from ml_collections import ConfigDict

from diffem_jax.config import default

VARIANTS = ("small", "images", "paper", "table")


def get_config(variant: str = "small") -> ConfigDict:
    """'small' (an MLP), 'images' (a U-Net), 'paper' (the U-Net with the paper's settings) or 'table'."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}; expected one of {', '.join(VARIANTS)}")
    c = default()
    with c.unlocked():
        c.rounds = 8 if variant == "small" else 5
        c.data.name = "observations"
        c.corruption = ConfigDict(
            {"name": "pixel_mask", "rate": 0.5, "noise_std": 0.01, "noise_std_max": 0.0, "per_channel": False}
        )
        c.m_step.operators = "data"
        c.start.rank = 24
        c.start.num_examples = 8192
        c.e_step.steps = 16
        c.e_step.batch_size = 512
        if variant == "small":
            # As for digits, where this width and batch are the best in equal time.
            c.network = ConfigDict({"name": "mlp", "features": (256, 256, 256), "embedding": 64, "normalize": True})
            c.m_step.batch_size = 256
        elif variant == "table":
            c.rounds = 2
            c.corruption = ConfigDict({"name": "group_mask", "rate": 0.3, "noise_std": 0.01, "groups": ()})
            c.network = ConfigDict({"name": "mlp", "features": (128, 128), "embedding": 32, "normalize": True})
            c.start.iterations = 100
            c.start.variance_floor = 1e-3
            c.e_step.batch_size = 256
            c.m_step.steps = 400
            c.m_step.batch_size = 256
            c.m_step.learning_rate = 3e-4
            c.m_step.ema_decay = 0.99
        else:
            c.network = ConfigDict(
                {
                    "name": "unet",
                    "channels": (64, 128),
                    "blocks": 2,
                    "heads": ((1, 4),),
                    "embedding": 128,
                    "dropout": 0.0,
                }
            )
            c.m_step.batch_size = 128
        if variant == "paper":
            c.rounds = 21
            c.denoiser.preconditioning = "edm"
            c.e_step.sampler = "ddpm"
            c.e_step.time_grid = "log_uniform"
            c.prior.sampler = "ddim"
            c.e_step.steps = 256
            c.m_step.steps = 8192
            c.m_step.batch_size = 256
            c.m_step.learning_rate = 2e-4
            c.m_step.learning_rate_schedule = "constant"
            c.m_step.ema_decay = 0.9999
        c.eval.metrics = ("observation_distance",)
    return c
