"""The manifold experiment: a smooth curve in R^5 seen through random 2 x 5 projections (arXiv 2510.12691, section 4.1).

diffem --config=manifold --workdir=runs/manifold              # quick: 16,384 points, minutes on two cores
diffem --config=manifold:paper --workdir=runs/manifold_paper  # the published settings
"""

from ml_collections import ConfigDict

from diffem_jax.config import default


def get_config(variant: str = "quick") -> ConfigDict:
    """'quick', or 'paper' for the published settings (65,536 points, 32 rounds; nobody here has run it at full size)."""
    c = default()
    with c.unlocked():
        c.data.name = "manifold"
        c.corruption = ConfigDict({"name": "projection", "measurements": 2, "noise_std": 0.01})
        c.network = ConfigDict({"name": "mlp", "features": (256, 256, 256), "embedding": 64, "normalize": True})
        c.schedule.sigma_max = 10.0
        c.start.rank = 5
        c.m_step.time_law_beta = ((2.0, 5.0), (5.0, 2.0))
        c.eval.metrics = ("sinkhorn",)
        if variant == "paper":
            c.rounds = 32
            c.data.num_examples = 65_536
            c.denoiser.preconditioning = "edm"
            c.e_step.sampler = "pc"
            c.e_step.steps = 4096
            c.e_step.batch_size = 16_384
            c.m_step.steps = 65_536
            c.m_step.batch_size = 1024
            c.m_step.learning_rate_schedule = "linear"
        else:
            c.rounds = 8
            c.data.num_examples = 16_384
            c.e_step.steps = 32
            c.e_step.batch_size = 4096
            c.m_step.steps = 1000
            c.m_step.batch_size = 1024
    return c
