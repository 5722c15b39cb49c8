"""The manifold experiment: a smooth curve in R^5 seen through random 2 x 5 projections (arXiv 2510.12691, section 4.1).

    diffem --config=manifold --workdir=runs/manifold              # best: 16,384 points, a mixture as start and as base
    diffem --config=manifold:quick --workdir=runs/manifold_quick  # EM from a Gaussian start, to watch it round by round
    diffem --config=manifold:published --workdir=runs/published   # the published way at the size of 'best'
    diffem --config=manifold:paper --workdir=runs/paper           # the published settings at full size

Hardware: two CPU cores; a minute for 'best', two for 'quick', about ten for 'published'. Expect Sinkhorn divergences of
-0.002 at the start and -0.003 after each round of 'best' (that of a perfect reconstruction is slightly negative), from 1.1 down
to 0.1 in eight rounds of 'quick', and 0.18 after seven of 'published'. Nobody here has run 'paper' at full size.
"""

from ml_collections import ConfigDict

from diffem_jax.config import default

VARIANTS = ("best", "quick", "published", "paper")


def get_config(variant: str = "best") -> ConfigDict:
    """One of ``VARIANTS``."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}; expected one of {', '.join(VARIANTS)}")
    c = default()
    with c.unlocked():
        c.data.update(name="manifold", num_examples=16_384)
        c.corruption = ConfigDict({"name": "projection", "measurements": 2, "noise_std": 0.01})
        c.network = ConfigDict({"name": "mlp", "features": (256, 256, 256), "embedding": 64, "normalize": True})
        c.schedule.sigma_max = 10.0
        c.start.rank = 5
        c.e_step.update(steps=16, batch_size=4096)
        c.m_step.update(batch_size=1024, time_law_beta=((2.0, 5.0), (5.0, 2.0)))
        c.eval.metrics = ("sinkhorn",)
        if variant == "quick":
            c.rounds = 8
            c.m_step.update(steps=400, learning_rate=2e-3)
        elif variant == "best":
            c.rounds = 2
            c.start.update(name="mixture", components=32, rank=1, num_examples=4096)
            c.start.update(tolerance=1e-5, variance_floor=1e-5)
            c.m_step.steps = 400
        else:
            c.rounds = 7
            c.denoiser.preconditioning = "edm"
            c.e_step.update(sampler="ddpm", time_grid="log_uniform", steps=256)
            c.prior.sampler = "ddim"
            c.m_step.update(steps=2000, learning_rate_schedule="linear")
        if variant == "paper":
            c.rounds = 32
            c.data.num_examples = 65_536
            c.e_step.update(sampler="pc", steps=4096, batch_size=16_384)
            c.m_step.update(steps=65_536, ema_decay=0.0)
    return c
