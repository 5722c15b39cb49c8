"""CelebA 64x64 with the published settings of DiffEM (arXiv 2510.12691, appendix).

    python -m diffem_jax.data.prepare celeb_a                                     # once; needs the extra 'tfds'
    diffem --config=celeba:mask50 --workdir=runs/celeba_mask50

Variants: mask50, mask75. ``--config.network.dtype=bfloat16`` halves the memory of activations
(``--config.network.remat=True`` saves more). Hardware: 8 GPUs or a TPU v5e-8; the paper reports 1.19 hours a
round. Nobody here has run them at full size.
"""

from ml_collections import ConfigDict

from diffem_jax.config import default

EXAMPLES, BATCH = 202_599, 256
RATES = {"mask50": (0.5, 20), "mask75": (0.75, 24)}


def get_config(variant: str = "mask50") -> ConfigDict:
    """'mask50' or 'mask75'."""
    if variant not in RATES:
        raise ValueError(f"variant {variant!r}; expected one of {', '.join(RATES)}")
    rate, rounds = RATES[variant]
    c = default()
    with c.unlocked():
        c.rounds = rounds
        c.data.update(name="tfds:celeb_a", split="train+validation+test")
        c.corruption = ConfigDict({"name": "pixel_mask", "rate": rate, "noise_std": 1e-3})
        c.network = ConfigDict({"name": "unet", "channels": (128, 256, 384, 512), "blocks": 3, "heads": ((3, 4),)})
        c.network.update(embedding=256, dropout=0.1, dtype="float32", remat=True)
        c.data.shape = (64, 64, 3)
        c.denoiser.preconditioning = "edm"
        # Draws of DDPM keep noise of sigma_min, which must lie below that of the measurements.
        c.schedule.sigma_min = 3e-4
        c.start.update(rank=1024, num_examples=20_000)
        c.e_step.update(sampler="ddpm", time_grid="log_uniform", steps=64, batch_size=256)
        c.prior.sampler = "ddim"
        c.m_step.update(steps=64 * EXAMPLES // BATCH, batch_size=BATCH, learning_rate=1e-4)
        c.m_step.update(learning_rate_schedule="constant", ema_decay=0.999, ema_warmup=False, carry="ema")
        c.m_step.update(augment=("flip", "shift"))
        c.prior.update(steps=512 * EXAMPLES // BATCH, base="none")
        c.eval.update(metrics=("psnr",), num_examples=2048)
    return c
