"""DiffEM on real images in minutes on a laptop: scikit-learn's 1,797 handwritten digits, half of the pixels erased.

    diffem --config=digits --workdir=runs/digits

Variants: mask50 (the default), mask75, mask90 (experiments/extreme/README.md), projection (16 random measurements of 64),
and two that are not linear: jpeg (quality 20) and phase (magnitudes of the Fourier transform). phase is experimental: one
round of 300 updates took the misfit of y from 12 to 1.4 times the noise, and what fits y need be no digit. Each but the last
two also as published: mask50_paper (or paper), mask75_paper, mask90_paper, projection_paper, with the paper's settings for its MLP.
Hardware: two CPU cores, two or three minutes. Expect of mask50 posterior draws of PSNR 17.2 dB against the hidden truth, CRPS 0.131 and
classifier accuracy 0.92 (medians of three seeds), where draws of the Gaussian start have PSNR 14.9 and accuracy 0.81; of mask75, mask90
and projection the figures in docs/theory.md.
"""

from ml_collections import ConfigDict

from diffem_jax.config import default

CORRUPTIONS = {
    "mask50": {"name": "pixel_mask", "rate": 0.5, "noise_std": 0.01, "per_channel": False},
    "mask75": {"name": "pixel_mask", "rate": 0.75, "noise_std": 0.01, "per_channel": False},
    "mask90": {"name": "pixel_mask", "rate": 0.9, "noise_std": 0.01, "per_channel": False},
    "projection": {"name": "projection", "measurements": 16, "noise_std": 0.01},
    "jpeg": {"name": "jpeg", "quality": 20, "noise_std": 0.01},
    "phase": {"name": "phase", "oversampling": 2, "offset": 2.0, "noise_std": 0.05},
}
PUBLISHED = {f"{name}_paper": name for name in ("mask50", "mask75", "mask90", "projection")} | {"paper": "mask50"}


def get_config(variant: str = "mask50") -> ConfigDict:
    """One of the keys of ``CORRUPTIONS`` or ``PUBLISHED``."""
    if variant not in CORRUPTIONS and variant not in PUBLISHED:
        raise ValueError(f"variant {variant!r}; expected one of {', '.join([*CORRUPTIONS, *PUBLISHED])}")
    published, variant = variant in PUBLISHED, PUBLISHED.get(variant, variant)
    c = default()
    with c.unlocked():
        c.rounds = 8
        c.data.update(name="digits", split="all")
        c.corruption = ConfigDict(CORRUPTIONS[variant])
        c.network = ConfigDict({"name": "mlp", "features": (256, 256, 256), "embedding": 64, "normalize": True})
        c.denoiser.preconditioning = "edm" if variant in ("jpeg", "phase") else "posterior"
        c.e_step.consistency = 16 if variant == "phase" else 0
        c.start.rank = 24
        c.e_step.update(steps=16, batch_size=904, draws=4)  # 7,188 draws in eight calls
        c.m_step.hidden_weight = 0.2
        if variant in ("jpeg", "phase"):
            c.m_step.hidden_weight = 1.0
            c.e_step.draws = 1
            # No closed form says how x scatters given y.
            c.e_step.update(sampler="dpmpp_2m_sde", time_grid="log_uniform", steps=32)
        c.m_step.update(steps=1000, batch_size=256, updates_per_dispatch=200)  # about a second
        if variant == "mask90":
            # Where so little is seen, what a round does wrong is fed back round by round: draws of the right width, several an
            # observation so that the network does not learn single ones by heart, few updates, and the round that predicts
            # best what was held back.
            c.rounds = 2
            c.start.rank = 32
            c.schedule.update(sigma_min=0.01, sigma_max=30.0)
            c.e_step.draws = 8
            c.m_step.steps = 300
            c.stop.rule = "held_out"
        if variant == "phase":
            c.rounds = 3
            c.m_step.update(batch_size=512, steps=300)
        if published:
            c.rounds = 21
            c.start.rank = 24
            c.schedule.update(sigma_min=1e-3, sigma_max=100.0)
            c.e_step.draws = 1
            c.m_step.hidden_weight = 1.0
            c.denoiser.preconditioning = "edm"
            c.e_step.update(sampler="ddpm", time_grid="log_uniform", steps=256)
            c.prior.sampler = "ddim"
            c.stop.rule = "none"
            # 256 epochs, but for a number that dispatches divide.
            c.m_step.update(steps=1800, learning_rate_schedule="linear")
        c.eval.metrics = ("psnr", "accuracy")
    return c
