"""Your own observations, without any clean data: an .npz with 'y' and, for masks, 'mask'.

    diffem --config=own_data --config.data.path=obs.npz --workdir=runs/mine
    diffem --config=own_data:images --config.data.path=obs.npz --workdir=runs/mine     # a U-Net, for larger images

``y`` has shape [N, H, W, C] (or [N, D]) with values in [-2, 2], ``mask`` [N, H, W, 1] (or [N, D]) with 1 where y was
seen. Set config.corruption to what made the data. Hardware: two CPU cores for small images with the MLP.
"""

from ml_collections import ConfigDict

from diffem_jax.config import default


def get_config(variant: str = "small") -> ConfigDict:
    """'small' (an MLP) or 'images' (a U-Net)."""
    if variant not in ("small", "images"):
        raise ValueError(f"variant {variant!r}; expected small or images")
    c = default()
    with c.unlocked():
        c.rounds = 4
        c.data.name = "observations"
        c.corruption = ConfigDict(
            {"name": "pixel_mask", "rate": 0.5, "noise_std": 0.01, "noise_std_max": 0.0, "per_channel": False}
        )
        c.m_step.operators = "data"
        c.start.rank = 24
        c.start.num_examples = 8192
        c.e_step.batch_size = 512
        if variant == "small":
            c.network = ConfigDict({"name": "mlp", "features": (512, 512, 512), "embedding": 64, "normalize": True})
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
        c.eval.metrics = ("observation_distance",)
    return c
