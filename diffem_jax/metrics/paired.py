"""Each reconstruction against its own truth: PSNR, SSIM, 8-bit images, the accuracy of a classifier."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffem_jax.errors import UserError
from diffem_jax.metrics.base import Estimate, flat, mean_estimate, same_shape

SMALLEST_ERROR = 1e-10  # of a mean square: equal images give a finite number


def _squared_errors(x: ArrayLike, truth: ArrayLike) -> np.ndarray:
    x, truth = np.asarray(x), np.asarray(truth)
    same_shape(x, truth, "reconstructions")
    return np.square(flat(x) - flat(truth), dtype=np.float64).mean(axis=1)


def psnr(x: ArrayLike, truth: ArrayLike, data_range: float = 4.0) -> Estimate:
    """10 log10(data_range^2 / MSE) in dB, with the MSE over the whole set of reconstructions and truths, [N, ...] each.

    Its standard error is that of the MSE, to first order. Samples: examples.
    """
    error = mean_estimate(_squared_errors(x, truth))
    mse = max(error.value, SMALLEST_ERROR)
    spread = None if error.standard_error is None else 10 / math.log(10) * error.standard_error / mse
    return Estimate(10 * math.log10(data_range**2 / mse), spread, error.samples)


def psnr_per_example(x: ArrayLike, truth: ArrayLike, data_range: float = 4.0) -> Estimate:
    """The mean over examples of each example's own PSNR, as the imaging literature reports it; at least ``psnr``."""
    return mean_estimate(10 * np.log10(data_range**2 / np.maximum(_squared_errors(x, truth), SMALLEST_ERROR)))


def ssim(x: ArrayLike, truth: ArrayLike, data_range: float = 4.0) -> Estimate:
    """The mean structural similarity of images [N, H, W] or [N, H, W, C], over all windows that lie inside the image.

        (2 m_x m_y + c_1) (2 s_xy + c_2) / ((m_x^2 + m_y^2 + c_1) (s_x^2 + s_y^2 + c_2))

    with means, variances and covariance under a Gaussian window of 11 x 11 pixels and standard deviation 1.5 (the largest odd
    window that fits a smaller image), c_1 = (0.01 data_range)^2 and c_2 = (0.03 data_range)^2; channels are averaged. A
    ``UserError`` where the shapes differ or an image is smaller than 3 pixels.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
    """
    x, truth = np.asarray(x, np.float64), np.asarray(truth, np.float64)
    same_shape(x, truth, "reconstructions")
    if x.ndim not in (3, 4) or min(x.shape[1:3]) < 3:
        raise UserError(f"ssim: {x.shape}; expected images [N, H, W] or [N, H, W, C] of at least 3 pixels a side")
    side = min(11, (min(x.shape[1:3]) - 1) // 2 * 2 + 1)
    window = np.exp(-0.5 * ((np.arange(side) - side // 2) / 1.5) ** 2)
    window /= window.sum()

    def average(image: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            image = np.lib.stride_tricks.sliding_window_view(image, side, axis) @ window
        return image

    def similarity(a: np.ndarray, b: np.ndarray) -> float:
        mean_a, mean_b = average(a), average(b)
        spread = average(a * a) - mean_a**2 + average(b * b) - mean_b**2
        together = average(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        return float(np.mean(light * (2 * together + c2) / (spread + c2)))

    return mean_estimate([similarity(a, b) for a, b in zip(x, truth, strict=True)])


def to_uint8(x: ArrayLike) -> np.ndarray:
    """[-2, 2] -> 0 ... 255 by rounding, values outside clipped; a level v comes back from v * 4 / 255 - 2."""
    return np.clip(np.rint((np.asarray(x, np.float32) + 2) * (255 / 4)), 0, 255).astype(np.uint8)


def train_classifier(x: ArrayLike, labels: ArrayLike) -> Any:
    """A scikit-learn estimator for ``accuracy``: logistic regression of labels [N] on the standardised pixels of images [N, ...]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(flat(x), np.asarray(labels))


def accuracy(classifier: Any, x: ArrayLike, labels: ArrayLike) -> Estimate:
    """The share of images [N, ...] that the classifier puts into their class."""
    return mean_estimate(classifier.predict(flat(x)) == np.asarray(labels))
