"""CelebA 64x64 on one accelerator by this project's settings, and with the published ones of DiffEM (arXiv 2510.12691, appendix).

    python -m diffem_jax.data.prepare celeb_a                                     # once; needs the extra 'tfds'
    diffem --config=celeba:mask50 --workdir=runs/celeba_mask50

Variants: mask50, mask75, for one GPU or TPU, and as published mask50_paper, mask75_paper, for 8 GPUs or a TPU v5e-8: the paper
reports 1.19 hours a round. ``--config.network.dtype=bfloat16`` halves the memory of the published network's activations. Nobody
here has run any of them at full size.
"""

from ml_collections import ConfigDict

from diffem_jax.config import default

EXAMPLES, BATCH = 202_599, 256
RATES = {"mask50": 0.5, "mask75": 0.75}
PUBLISHED = {"mask50_paper": 20, "mask75_paper": 24}
"""With their rounds."""


def get_config(variant: str = "mask50") -> ConfigDict:
    """One of the keys of ``RATES`` or ``PUBLISHED``."""
    if variant not in RATES and variant not in PUBLISHED:
        raise ValueError(f"variant {variant!r}; expected one of {', '.join([*RATES, *PUBLISHED])}")
    c = default()
    with c.unlocked():
        c.data.update(name="tfds:celeb_a", split="train+validation+test", shape=(64, 64, 3))
        rate = RATES[variant.removesuffix("_paper")]
        c.corruption = ConfigDict({"name": "pixel_mask", "rate": rate, "noise_std": 1e-3})
        c.network = ConfigDict({"name": "unet", "embedding": 256, "remat": True})
        c.eval.update(metrics=("psnr",), num_examples=2048)
        if variant in PUBLISHED:
            c.rounds = PUBLISHED[variant]
            c.network.update(channels=(128, 256, 384, 512), blocks=3, heads=((3, 4),), dropout=0.1, dtype="float32")
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
        else:
            # Those of cifar10:mask75, with a level more on patches of 2 x 2 pixels.
            c.rounds = 12
            c.network.update(
                channels=(128, 256, 256, 256), blocks=2, heads=((2, 4),), patch=2, dropout=0.0, dtype="bfloat16"
            )
            c.denoiser.base = "start"
            c.start.update(name="stationary", iterations=6, num_examples=4096)
            c.e_step.update(steps=24, batch_size=512)
            c.m_step.update(steps=4000, batch_size=256, updates_per_dispatch=25, learning_rate=6e-4, warmup_steps=50)
            c.m_step.update(ema_decay=0.998, loss_weight="base", time_law_beta=((4.0, 2.5),), hidden_weight=0.2)
    return c
