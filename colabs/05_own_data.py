# %% [markdown]
# # Your own data
#
# What is needed: an `.npz` with `y` [N, H, W, C] in [-2, 2] (or uint8 grey levels) and `mask` [N, H, W, 1], 1 where a pixel was
# seen; or a folder of images with one of masks. No clean data. What you get: several draws for each observation, their mean, and where they disagree. Here the file
# is made from digits, so that the answers can be checked against a truth that the method never sees.
#
# To open this notebook: `make colabs` runs it; `jupyter lab colabs/05_own_data.ipynb` in a checkout shows it; or upload
# the .ipynb at colab.research.google.com. A few minutes on one CPU core.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
from IPython.display import Image, display
from sklearn.datasets import load_digits

import diffem_jax as dx
from diffem_jax import commands, data, metrics, run_em
from diffem_jax.report import plots
from diffem_jax.usage import load_config

QUICK = os.environ.get("DIFFEM_COLAB_QUICK") == "1"
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The file
#
# On Colab: `from google.colab import files; files.upload()` puts a file of yours in the current folder; set `file` to it and
# leave this cell and the next out. The masks must differ between the examples: a pixel that nobody ever saw cannot be learnt.

# %%
file = folder / "obs.npz"
rng = np.random.default_rng(0)
truth = (load_digits().images[: 64 if QUICK else None, :, :, None] / 4 - 2).astype(np.float32)
mask = (rng.random((*truth.shape[:3], 1)) < 0.5).astype(np.float32)
noise = 0.01 * rng.normal(size=truth.shape).astype(np.float32)
y = np.where(mask > 0, truth + noise, 0.0).astype(np.float32)
np.savez(file, y=y, mask=mask)

# %% [markdown]
# ### Images instead of an .npz
#
# A folder with `images/` (PNG or JPEG of one size) and `masks/`, files of the same names, white where a pixel was seen. On Colab: upload
# an archive, then `!unzip photos.zip -d photos`. Here the same digits as images; to train on them set `config.data.path = str(photos)`
# below. They say the same as the `.npz` does, to within a grey level.

# %%
photos = folder / "photos"
for kind, values in (("images", (y + 2) * 255 / 4), ("masks", mask * 255)):
    (photos / kind).mkdir(parents=True)
    for number, pixels in enumerate(values[..., 0]):
        picture = PIL.Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
        picture.save(photos / kind / f"{number:05d}.png")
observations = data.load_observations(photos, (8, 8, 1), dx.PixelMask(shape=(8, 8, 1)), cache_dir=folder / "cache")
assert np.array_equal(observations.operator, mask)
assert np.abs(np.asarray(observations.y) - np.clip(y, -2, 2))[mask > 0].max() <= 4 / 255 / 2 + 1e-5
print(f"{len(observations.y)} images, {np.mean(np.asarray(observations.operator)):.0%} of their pixels seen")

# %% [markdown]
# ## Training
#
# `config.corruption` must say what made the data; training corrupts the reconstructions in the same way. The only measure
# without clean data is `observation_distance`: how far reconstructions, corrupted again, are from what was observed.

# %%
config = load_config("own_data:small")
config.data.path = str(file)
config.rounds = 3
config.m_step.steps = 400
if QUICK:
    config.rounds, config.m_step.steps, config.m_step.batch_size = 1, 10, 32
    config.network = {"name": "mlp", "features": (16,)}
    config.e_step.steps, config.e_step.batch_size = 4, 64
    config.start.iterations, config.start.rank = 2, 1
    config.denoiser.base = "isotropic"
    config.eval.metrics = ()
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
# With a truth at hand we can ask: does a central 90 % interval hold the truth 90 % of the time, and is the error where the spread is
# large? Seen pixels are known up to the noise, so the hidden ones are what is asked. Without a truth the same question can be put
# by hiding further pixels of your observations and predicting those.

# %%
levels = (0.5, 0.8, 0.9)
found = metrics.coverage(draws["x"], truth[:100], levels)
print("coverage:", {level: round(float(estimate.value), 3) for level, estimate in zip(levels, found, strict=True)})
hidden = arrays["mask"][:100] == 0
error = np.abs(draws["mean"] - truth[:100])[hidden]
spread = draws["std"][hidden]
print(f"correlation of the spread with the error: {np.corrcoef(spread, error)[0, 1]:.2f}")

# %%
picture = plots.spread_grid(folder / "spread.png", arrays["y"][:8], draws["x"][:, :8], truth[:8])
display(Image(filename=str(picture)))
