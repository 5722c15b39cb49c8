# %% [markdown]
# # TPU and several devices: the CIFAR-10 config
#
# `cifar10:mask75_paper` has the published settings: 50,000 images with three quarters of their pixels erased, a U-Net of 57 million
# parameters, 21 rounds of 50,000 updates. The same cells run it on a TPU or GPU runtime (Runtime, Change runtime type), and on
# a CPU a shrunken config on two pretended devices. Nobody has run this config at full size yet: no figure is promised.
#
# A few minutes on two CPU cores.

# %%
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
from IPython.display import Image, display

jax.config.update("jax_num_cpu_devices", 2)  # before JAX looks for devices: a CPU pretends to be two

from diffem_jax import run_em
from diffem_jax.usage import load_config

QUICK = os.environ.get("DIFFEM_COLAB_QUICK") == "1"
FULL = os.environ.get("DIFFEM_COLAB_FULL") == "1"
ACCELERATOR = jax.default_backend() != "cpu"
DEVICES = jax.local_device_count()
# On Colab, google.colab.drive.mount("/content/drive") before this cell keeps the run when the runtime is taken away.
drive = Path("/content/drive/MyDrive")
workdir = (drive if drive.exists() else Path(tempfile.mkdtemp())) / "diffem_devices"
print(f"{DEVICES} devices: {jax.devices()[0].device_kind}")
if not ACCELERATOR:
    print("no TPU or GPU here: digits and a small network stand in for CIFAR-10, on two pretended devices")

# %% [markdown]
# ## The data
#
# CIFAR-10 is prepared once, by TensorFlow; training never imports it. On the CPU the embedded 8x8 digits stand in.

# %%
if ACCELERATOR:
    if importlib.util.find_spec("tensorflow") is None:  # a runtime's own TensorFlow stays as it is
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "tensorflow-cpu"], check=True)
    subprocess.run([sys.executable, "-m", "diffem_jax.data.prepare", "cifar10"], check=True)

# %% [markdown]
# ## What to change
#
# | field | why |
# |---|---|
# | `e_step.batch_size`, `m_step.batch_size` | over *all* devices, and a multiple of their number; larger E-step batches fill a TPU |
# | `parallel` | `pmap` or `jit`: the same numbers to round-off; use the faster one |
# | `m_step.updates_per_dispatch` | updates in one call: more hides the host, fewer answer sooner |
# | `network.dtype`, `network.remat`, `m_step.accumulate` | for a batch that does not fit: halve, recompute or split it |
# | `denoiser.preconditioning` | `posterior` instead of the published `edm`: with it y is met from the first round on |
# | `checkpoint.every_steps` | runtimes are taken away; the same command goes on to the same bits |
#
# What stays: learning rate and number of updates belong to the batch size of 256. The noise of every example depends on its index
# alone, so the number of devices changes nothing but round-off.

# %%
config = load_config("cifar10:mask75_paper")
with config.unlocked():
    config.checkpoint.every_steps = 500
    if ACCELERATOR and not FULL:
        # A look at two rounds. An update is 14.8 TFLOP by XLA's count, an evaluation 19 GFLOP per image (docs/scaling.md): at half
        # of a T4's 8.1 TFLOP/s in float32 a round of these takes about 30 minutes for its updates and 10 for its draws.
        config.data.num_examples, config.start.num_examples, config.rounds, config.prior.steps = 2000, 2000, 2, 0
        config.m_step.steps, config.e_step.steps = 500, 64
    if not ACCELERATOR:
        config.data.update(name="digits", split="all", num_examples=512)
        config.network.update(channels=(16, 32), blocks=1, heads=(), embedding=32, dropout=0.0)
        config.start.update(rank=16, num_examples=0)
        config.rounds, config.prior.steps, config.eval.num_examples = 2, 0, 0
        config.m_step.update(steps=300, batch_size=64, ema_decay=0.99, learning_rate=1e-3)
        config.m_step.augment = ()  # hue and saturation need colours
        config.e_step.update(steps=32, batch_size=256)
    if QUICK:
        config.data.num_examples, config.rounds, config.network.channels = 64, 1, (4, 4)
        config.start.update(iterations=2, rank=1)
        config.m_step.update(steps=10, batch_size=16)
        config.e_step.update(steps=4, batch_size=64)
for name in ("e_step", "m_step"):
    assert config[name].batch_size % DEVICES == 0, f"{name}.batch_size must be a multiple of {DEVICES}"

# %% [markdown]
# ## Training by `pmap`
#
# After each round the run says how much time is left at its pace; docs/scaling.md has the cost of the whole config by its FLOPs.

# %%
run_em(config, workdir)
for picture in sorted((workdir / "samples").glob("round_*.png")):
    display(Image(filename=str(picture)))

# %% [markdown]
# ## Several hosts
#
# A TPU pod slice or several GPU machines: the same command on each, one work directory that all see (docs/multihost.md).
#
#     diffem --config=cifar10:mask75_paper --workdir=/shared/cifar10 --coordinator=auto
