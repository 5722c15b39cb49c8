"""Numbers as people read them: names of metrics, values with their errors, durations."""

import math
from typing import Any

NAMES = {
    "loss": ("Denoising loss", "lower is better"),
    "psnr": ("PSNR, dB", "higher is better"),
    "psnr_of_mean": ("PSNR of the mean of draws, dB", "higher is better"),
    "ssim": ("SSIM", "higher is better"),
    "accuracy": ("Accuracy of a classifier", "higher is better"),
    "sinkhorn": ("Sinkhorn divergence", "lower is better"),
    "sliced_wasserstein": ("Sliced Wasserstein distance", "lower is better"),
    "observation_distance": ("Distance of the observations", "lower is better"),
    "held_out": ("Error on held-back measurements", "lower is better"),
    "held_out_coverage_90": ("90% intervals, held-back measurements", "0.90 is right"),
    "held_out_tarp_90": ("90% regions, held-back measurements", "0.90 is right"),
    "coverage_90": ("90% intervals, x", "0.90 is right"),
    "tarp_90": ("90% regions, x", "0.90 is right"),
    "crps": ("CRPS", "lower is better"),
}


def number(value: Any) -> float | None:
    """A float of something read from a file; None for what is no number, not finite, or too large to draw."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e150 else None


def shown(value: float, error: float = 0.0) -> str:
    """'17.441 ± 0.060': two digits of the error, and as many decimals of the value."""
    if error > 1e-7 and abs(value) < 1e7:
        decimals = max(0, 1 - math.floor(math.log10(error)))
        return f"{value:.{decimals}f} ± {error:.{decimals}f}"
    return f"{value:#.4g}".rstrip(".")


def duration(seconds: float) -> str:
    """'42 s', '3 min 56 s', '5 h 10 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600:,} h {whole % 3600 // 60} min"


def round_name(index: int) -> str:
    """'start' for round 0."""
    return f"round {index}" if index else "start"


def metric_name(metric: str) -> str:
    """A metric's name for people."""
    return NAMES.get(metric, (metric.replace("_", " "), ""))[0]
