"""Score networks: batched Flax modules that know nothing of EM.

Networks are called as (x [B, *X], noise [B], condition [B, ...] or None, train) -> [B, *X], with ``noise`` = log(sigma / alpha).
A network of your own is any Linen module with that call; add it to ``NETWORKS`` or name it as ``module:ClassName``.
"""

import flax.linen as nn

from diffem_jax.networks.convolution import Conv, convolve
from diffem_jax.networks.embedding import NETWORK_VERSION, parameter_count, sinusoidal_embedding
from diffem_jax.networks.mlp import MLP
from diffem_jax.networks.unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"mlp": MLP, "unet": UNet}

__all__ = ["MLP", "NETWORKS", "NETWORK_VERSION", "Conv", "UNet", "convolve", "parameter_count", "sinusoidal_embedding"]
