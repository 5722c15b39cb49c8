# %% [markdown]
# # Quickstart: corrupted digits in, posterior draws and prior samples out
#
# We are given 1,797 images of handwritten digits of which half of the pixels were erased, and nothing else. DiffEM learns
# from them a sampler of p(x | y), a full image given a damaged one, and of p(x), new images.
#
# A few minutes on one CPU core; the same cells use a GPU or TPU where there is one.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np
from IPython.display import Image, display

from diffem_jax import run_em
from diffem_jax.build.problem import load_problem
from diffem_jax.report import plots
from diffem_jax.run import sample as draw
from diffem_jax.storage.workdir import Workdir
from diffem_jax.usage import load_config

QUICK = os.environ.get("DIFFEM_COLAB_QUICK") == "1"
workdir = Path(tempfile.mkdtemp()) / "digits"


def show(path):
    display(Image(filename=str(path)))


# %% [markdown]
# ## The configuration
#
# `--config=digits` of the command line, and the same in Python. Every field may be changed; the documentation says
# what each means. Here a prior p(x) is trained too, on the last reconstructions.

# %%
config = load_config("digits")
config.m_step.steps = 600
config.prior.steps = 1000
if QUICK:
    config.data.num_examples, config.rounds, config.network.features, config.eval.metrics = 64, 1, (16,), ("psnr",)
    config.start.update(iterations=2, rank=1)
    config.m_step.update(steps=10, batch_size=32)
    config.e_step.update(steps=4, batch_size=64)
    config.prior.update(steps=10, sampler_steps=4)

# %% [markdown]
# ## What is seen
#
# Truth and observation side by side. The truth is used for measuring alone; training never reads it.

# %%
problem = load_problem(config)
observations = problem.observations
file, names = workdir.parent / "data.png", ("seen", "hidden truth")
show(plots.image_grid(file, observations.y, problem.truth[:10], labels=names))

# %% [markdown]
# ## EM
#
# Round 0 draws from a Gaussian that exact EM fitted to the observations. Each round trains the conditional denoiser on the
# reconstructions, corrupted again for every batch, and then draws new reconstructions with it. PSNR and accuracy are of single posterior
# *draws*: the best a draw can do is not infinite, since the posterior has a width.

# %%
run_em(config, workdir)

# %%
for picture in sorted((workdir / "samples").glob("round_*.png")):
    show(picture)

# %% [markdown]
# ## Several answers to one question
#
# The posterior is a distribution: five draws for each observation, their mean, and where they differ.

# %%
file = workdir.parent / "obs.npz"
np.savez(file, y=observations.y[:8], mask=observations.operator[:8])
_, draws = draw.posterior_draws(Workdir(workdir), str(file), num_samples=4 if QUICK else 64)
show(plots.spread_grid(workdir.parent / "spread.png", observations.y[:8], draws, problem.truth[:8]))

# %% [markdown]
# ## New digits: draws of the prior

# %%
new = draw.prior_draws(Workdir(workdir), 10)
show(plots.image_grid(workdir.parent / "prior.png", np.zeros(len(new)), new, labels=("", "draws of p(x)")))

# %% [markdown]
# The run's page with curves, pictures and settings is `report.html` in the work directory. The same from a shell:
#
#     diffem --config=digits --workdir=runs/digits --config.prior.steps=1000
#     diffem --mode=sample --workdir=runs/digits --num_samples=64 --output=prior.npz
