"""Real natural images without a download: 16x16x3 crops of the photographs that scikit-image and scikit-learn ship.

    diffem --config=patches:mask50 --workdir=runs/patches_mask50
    diffem --config=patches:blur --workdir=runs/patches_blur

Variants: mask50, mask90, blur, jpeg. Hardware: two CPU cores; mask50 and blur take less than 20 minutes. What to expect
of them is in experiments/patches/classical.md; nobody has trained mask90 and jpeg to the end. Each also as published, with
the paper's settings for CIFAR-10 but for the size of the network: mask50_paper (or paper), mask90_paper, blur_paper,
jpeg_paper; for an accelerator, and nobody has run them at full size.
"""

from ml_collections import ConfigDict

from diffem_jax.config import default

CORRUPTIONS = {
    "mask50": {"name": "pixel_mask", "rate": 0.5, "noise_std": 0.01, "fill_iterations": 20, "fill_order": 2},
    "mask90": {"name": "pixel_mask", "rate": 0.9, "noise_std": 0.01, "fill_iterations": 40},
    "blur": {"name": "gaussian_blur", "std": 1.0, "border": "reflect", "noise_std": 0.01},
    "jpeg": {"name": "jpeg", "quality": 20, "noise_std": 0.01},
}
PUBLISHED = {f"{name}_paper": name for name in CORRUPTIONS} | {"paper": "mask50"}


def get_config(variant: str = "mask50") -> ConfigDict:
    """One of the keys of ``CORRUPTIONS`` or ``PUBLISHED``."""
    if variant not in CORRUPTIONS and variant not in PUBLISHED:
        raise ValueError(f"variant {variant!r}; expected one of {', '.join([*CORRUPTIONS, *PUBLISHED])}")
    published, variant = variant in PUBLISHED, PUBLISHED.get(variant, variant)
    c = default()
    with c.unlocked():
        c.rounds = 2
        c.data.update(name="patches", shape=(16, 16, 3), num_examples=8192)
        c.corruption = ConfigDict(CORRUPTIONS[variant])
        c.network = ConfigDict({"name": "unet", "channels": (32, 64), "blocks": 1, "heads": (), "embedding": 64})
        c.network.update(dropout=0.0)
        # On the CPU a single update a dispatch runs its convolutions outside of any loop, twice as fast.
        c.network.native_gradient = True
        c.m_step.updates_per_dispatch = 1
        c.denoiser.base = "start_moments"
        c.start.update(rank=64, iterations=30 if variant == "mask90" else 12, num_examples=4096)
        c.e_step.update(steps=12, batch_size=256)
        c.m_step.update(steps=600 if variant == "blur" else 800, batch_size=64, learning_rate=2e-3, loss_weight="base")
        c.m_step.update(time_law_beta=((4.0, 2.5),), augment=("flip",))
        if variant == "jpeg":
            c.denoiser.preconditioning = "edm"
            c.m_step.loss_weight = "snr"
        if published:
            c.rounds = 21
            c.denoiser.preconditioning = "edm"
            c.e_step.update(sampler="ddpm", time_grid="log_uniform", steps=256)
            c.prior.sampler = "ddim"
            c.m_step.update(steps=256 * 8192 // 256, batch_size=256, learning_rate=2e-4)
            c.m_step.update(learning_rate_schedule="constant", loss_weight="snr", time_law_beta=((3.0, 3.0),))
            c.m_step.update(ema_decay=0.9999, updates_per_dispatch=50)  # for an accelerator
        c.eval.update(metrics=("psnr",), num_examples=2048)
    return c
