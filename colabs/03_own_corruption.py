# %% [markdown]
# # Your own corruption
#
# A corruption is a frozen dataclass for *one* example: it draws an operator, maps x to what is seen without noise, and says what the
# network is shown. Linear ones inherit `diffem_jax.corruptions.Linear` and get more (docs/extending.md). Here: a camera whose known
# exposure g differs from picture to picture, a response that saturates, and dead pixels: y = m (tanh(g x) + n).
#
# A few minutes on one CPU core.

# %%
import dataclasses
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from IPython.display import Image, display
from ml_collections import ConfigDict

from diffem_jax import run_em, testing
from diffem_jax.config import default
from diffem_jax.corruptions import AdditiveNoise

QUICK = os.environ.get("DIFFEM_COLAB_QUICK") == "1"
workdir = Path(tempfile.mkdtemp()) / "exposure"


# %% [markdown]
# ## The corruption
#
# `AdditiveNoise` adds n with `noise_std`, and keeps y at exactly 0 where `observed` says that nothing is seen. What `condition`
# returns has the spatial shape of x and any number of channels: y, the mask, and the exposure as a constant channel.


# %%
@dataclasses.dataclass(frozen=True, kw_only=True)
class Exposure(AdditiveNoise):
    """y = m (tanh(g x) + n) with log2 g uniform in [-stops, stops] and a mask m that hides pixels with probability ``rate``."""

    stops: float = 1.0
    rate: float = 0.25

    def draw_operator(self, key):
        gain_key, mask_key = jax.random.split(key)
        gain = 2.0 ** jax.random.uniform(gain_key, (), minval=-self.stops, maxval=self.stops)
        mask = jax.random.bernoulli(mask_key, 1 - self.rate, (*self.spatial, 1)).astype(jnp.float32)
        return {"gain": gain, "mask": mask}

    def observed(self, operator):
        return jnp.broadcast_to(operator["mask"], self.shape) > 0

    def forward(self, x, operator):
        return jnp.where(self.observed(operator), jnp.tanh(operator["gain"] * x), 0.0)

    def condition(self, observation):
        mask, gain = observation.operator["mask"], observation.operator["gain"]
        y = jnp.where(self.observed(observation.operator), observation.y, 0.0)
        return jnp.concatenate([y, mask, jnp.log(gain) * jnp.ones_like(mask)], axis=-1)


# %% [markdown]
# ## Does it keep the contract?
#
# The same checks as for the built-in ones. (Leave the `where` out of `condition`: the check says what leaks.)

# %%
testing.check_corruption(Exposure(shape=(8, 8, 1), noise_std=0.05))
print("the contract holds")

# %% [markdown]
# ## Training
#
# Config sections name it as `module:ClassName`; in a notebook the module is `__main__`. From your own file: `mymodule:Exposure`.

# %%
config = default()
with config.unlocked():
    config.rounds = 5
    config.data.name, config.data.split = "digits", "all"
    config.corruption = ConfigDict({"name": "__main__:Exposure", "stops": 1.0, "rate": 0.25, "noise_std": 0.05})
    config.network = ConfigDict({"name": "mlp", "features": (512, 512, 512), "embedding": 64, "normalize": True})
    config.denoiser.preconditioning = "edm"
    config.e_step.steps, config.e_step.batch_size = 32, 600
    config.m_step.steps = 500
    config.eval.metrics = ("psnr", "accuracy")
    if QUICK:
        config.data.num_examples, config.rounds, config.network.features, config.eval.metrics = 64, 1, (16,), ("psnr",)
        config.m_step.update(steps=10, batch_size=32)
        config.e_step.update(steps=4, batch_size=64)
run_em(config, workdir)

# %% [markdown]
# ## Start and last round
#
# For nonlinear corruptions there is no closed-form start: round 0 is the observation with noise. Upper row: seen.

# %%
pictures = sorted((workdir / "samples").glob("round_*.png"))
for path in (pictures[0], pictures[-1]):
    display(Image(filename=str(path)))
