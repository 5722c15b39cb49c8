"""Score networks: batched Flax modules that know nothing of EM.

Networks are called as (x [B, *X], noise [B], condition [B, ...] or None, train) -> [B, *X], with ``noise`` = log(sigma / alpha).
A network of your own is any Linen module with that call; add it to ``NETWORKS`` or name it as ``module:ClassName``.
"""

import flax.linen as nn

from diffem_jax.networks.embedding import NETWORK_VERSION, sinusoidal_embedding
from diffem_jax.networks.mlp import MLP
from diffem_jax.networks.unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"mlp": MLP, "unet": UNet}
