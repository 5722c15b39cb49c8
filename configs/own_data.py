"""Your own observations, without any clean data: an .npz with 'y' and, for masks, 'mask'.

    diffem --config=own_data --config.data.path=obs.npz --workdir=runs/mine
    diffem --config=own_data:images --config.data.path=obs.npz --workdir=runs/mine     # a U-Net, for larger images
    diffem --config=own_data:paper --config.data.path=obs.npz --workdir=runs/mine      # that U-Net, the published way

``y`` has shape [N, H, W, C] (or [N, D]) with values in [-2, 2], ``mask`` [N, H, W, 1] (or [N, D]) with 1 where y was
seen. Set config.corruption to what made the data. Hardware: two CPU cores for small images with the MLP, an accelerator
for 'images' and 'paper', which nobody here has run at full size. What to expect depends on the data; of digits with half of
the pixels erased, the numbers of configs/digits.py.
"""

from ml_collections import ConfigDict

from diffem_jax.config import default


def get_config(variant: str = "small") -> ConfigDict:
    """'small' (an MLP), 'images' (a U-Net) or 'paper' (the U-Net with the paper's settings)."""
    if variant not in ("small", "images", "paper"):
        raise ValueError(f"variant {variant!r}; expected small, images or paper")
    c = default()
    with c.unlocked():
        c.rounds = 5
        c.data.name = "observations"
        c.corruption = ConfigDict(
            {"name": "pixel_mask", "rate": 0.5, "noise_std": 0.01, "noise_std_max": 0.0, "per_channel": False}
        )
        c.m_step.operators = "data"
        c.start.rank = 24
        c.start.num_examples = 8192
        c.e_step.batch_size = 512
        if variant == "small":
            # As for digits, where this width and batch are the best in equal time.
            c.network = ConfigDict({"name": "mlp", "features": (256, 256, 256), "embedding": 64, "normalize": True})
            c.m_step.batch_size = 256
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
            c.e_step.steps = 256
            c.m_step.steps = 8192
            c.m_step.batch_size = 256
            c.m_step.learning_rate = 2e-4
            c.m_step.learning_rate_schedule = "constant"
            c.m_step.ema_decay = 0.9999
        c.eval.metrics = ("observation_distance",)
    return c
