"""CIFAR-10 with the published settings of DiffEM (arXiv 2510.12691, appendix).

    python -m diffem_jax.data.prepare cifar10                                     # once; needs the extra 'tfds'
    diffem --config=cifar10:mask75 --workdir=runs/cifar10_mask75

The published warm start, 32 rounds of EM-MMPS and then 10 of DiffEM:

    diffem --config=cifar10:mask75 --config.method=em_mmps --config.rounds=32 --workdir=runs/cifar10_mmps
    diffem --config=cifar10:mask75 --config.start.checkpoint=runs/cifar10_mmps --config.rounds=10 --workdir=runs/cifar10_warm

Variants: mask75, mask90, blur, jpeg20, jpeg50, jpeg70, noisy. ``--config.network.dtype=bfloat16`` halves the
memory of activations (``--config.network.remat=True`` saves more). Hardware: 8 GPUs or a TPU v5e-8. Nobody here
has run them at full size; the paper's rivals stand at FID 13.18 (EM-MMPS, rate 0.75).
"""

from ml_collections import ConfigDict

from diffem_jax.config import default

EXAMPLES, BATCH = 50_000, 256
CORRUPTIONS = {
    "mask75": {"name": "pixel_mask", "rate": 0.75, "noise_std": 1e-3},
    "mask90": {"name": "pixel_mask", "rate": 0.9, "noise_std": 1e-3},
    "blur": {"name": "gaussian_blur", "std": 2.0, "noise_std": 1e-3},
    "jpeg20": {"name": "jpeg", "quality": 20, "chroma_subsampling": True, "noise_std": 0.0},
    "jpeg50": {"name": "jpeg", "quality": 50, "chroma_subsampling": True, "noise_std": 0.0},
    "jpeg70": {"name": "jpeg", "quality": 70, "chroma_subsampling": True, "noise_std": 0.0},
    "noisy": {"name": "pixel_mask", "rate": 0.5, "noise_std": 0.2},
}


def get_config(variant: str = "mask75") -> ConfigDict:
    """One of the keys of ``CORRUPTIONS``."""
    if variant not in CORRUPTIONS:
        raise ValueError(f"variant {variant!r}; expected one of {', '.join(CORRUPTIONS)}")
    epochs = 512 if variant == "mask90" else 256
    c = default()
    with c.unlocked():
        c.rounds = 21
        c.data.update(name="tfds:cifar10", num_examples=EXAMPLES)
        c.corruption = ConfigDict(CORRUPTIONS[variant])
        c.network = ConfigDict({"name": "unet", "channels": (128, 256, 384), "blocks": 5, "heads": ((1, 4),)})
        c.network.update(embedding=256, dropout=0.1, dtype="float32", remat=False)
        c.denoiser.preconditioning = "edm"
        # Draws of DDPM keep noise of sigma_min, which must lie below that of the measurements.
        c.schedule.sigma_min = 3e-4
        c.start.update(rank=64, num_examples=20_000)
        c.e_step.update(sampler="ddpm", time_grid="log_uniform", steps=256, batch_size=512)
        c.prior.sampler = "ddim"
        c.m_step.update(steps=epochs * EXAMPLES // BATCH, batch_size=BATCH, learning_rate=2e-4)
        c.m_step.update(learning_rate_schedule="constant", ema_decay=0.9999, ema_warmup=False, carry="ema")
        c.m_step.update(augment=("flip", "hue", "saturation"))
        c.prior.update(steps=512 * EXAMPLES // BATCH, base="none", sampler_steps=256)
        c.eval.update(metrics=("psnr",), num_examples=2048)
    return c
