# %% [markdown]
# # Your own data
#
# What is needed: an `.npz` with `y` [N, H, W, C] in [-2, 2] (or uint8 grey levels) and `mask` [N, H, W, 1], 1 where a pixel was
# seen; or a folder of images with one of masks. No clean data. What you get: several draws for each observation, their mean, and where they disagree. Here the file
# is made from digits, so that the answers can be checked against a truth that the method never sees.
#
# A few minutes on one CPU core.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np
from IPython.display import Image, display
from sklearn.datasets import load_digits

from diffem_jax import commands, metrics, run_em
from diffem_jax.report import plots
from diffem_jax.usage import load_config

QUICK = os.environ.get("DIFFEM_COLAB_QUICK") == "1"
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The file
#
# On Colab: `from google.colab import files; files.upload()` puts a file of yours in the current folder; set `file` to it and
# leave this cell out; a folder with `images/` and `masks/` of the same names works too. The masks must differ between the examples: a pixel that nobody ever saw cannot be learnt.

# %%
file = folder / "obs.npz"
rng = np.random.default_rng(0)
truth = (load_digits().images[: 64 if QUICK else None, :, :, None] / 4 - 2).astype(np.float32)
mask = (rng.random((*truth.shape[:3], 1)) < 0.5).astype(np.float32)
noise = 0.01 * rng.normal(size=truth.shape).astype(np.float32)
y = np.where(mask > 0, truth + noise, 0.0).astype(np.float32)
np.savez(file, y=y, mask=mask)

# %% [markdown]
# ## Training
#
# `config.corruption` must say what made the data; training corrupts the reconstructions in the same way. The measure
# without clean data here is `observation_distance`: how far reconstructions, corrupted again, are from what was observed.

# %%
config = load_config("own_data:small")
config.data.path = str(file)
config.rounds = 3
config.m_step.steps = 400
if QUICK:
    config.rounds, config.network, config.eval.metrics = 1, {"name": "mlp", "features": (16,)}, ()
    config.start.update(iterations=2, rank=1)
    config.m_step.update(steps=10, batch_size=32)
    config.e_step.update(steps=4, batch_size=64)
run_em(config, folder / "run")

# %% [markdown]
# ## Draws for the observations, old or new

# %%
arrays = np.load(file)
few = folder / "few.npz"
np.savez(few, y=arrays["y"][:100], mask=arrays["mask"][:100])
commands.sample(folder / "run", str(few), 4 if QUICK else 32, str(folder / "draws.npz"), 0)
draws = np.load(folder / "draws.npz")
print({name: draws[name].shape for name in draws})
display(Image(filename=str(folder / "draws.png")))

# %% [markdown]
# ## How reliable is the spread?
#
# With a truth at hand: does a central 90 % interval hold the truth 90 % of the time, and is the error of hidden pixels where the
# spread is large? Without a truth a run says the same of measurements that it held back.

# %%
levels = (0.5, 0.8, 0.9)
found = metrics.coverage(draws["x"], truth[:100], levels)
print("coverage:", {level: round(float(estimate.value), 3) for level, estimate in zip(levels, found, strict=True)})
hidden = arrays["mask"][:100] == 0
error, spread = np.abs(draws["mean"] - truth[:100])[hidden], draws["std"][hidden]
print(f"correlation of the spread with the error: {np.corrcoef(spread, error)[0, 1]:.2f}")
picture = plots.spread_grid(folder / "spread.png", arrays["y"][:8], draws["x"][:, :8], truth[:8])
display(Image(filename=str(picture)))
