"""The experiment on CIFAR-10: its source of images, and the network that measures them, with weights drawn at random."""

import types

import numpy as np
import pytest

from diffem_jax.errors import UserError
from experiments.cifar10 import files, resnet


def request(path, count=None):
    return types.SimpleNamespace(path=str(path), num_examples=count)


def test_files_are_read_in_order_as_far_as_needed(tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, (3, 32, 32, 3), np.uint8) for _ in range(2)]
    for number, x in enumerate(parts):
        np.savez(tmp_path / f"train-{number}.npz", x=x, labels=np.full(3, number))
    found = files.images(request(tmp_path))
    assert found.x.shape == (6, 32, 32, 3) and found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(found.x[3:], parts[1] * (4 / 255) - 2, atol=1e-6)
    assert len(files.images(request(tmp_path, 2)).x) == 3
    with pytest.raises(UserError, match=r"train-0\.npz"):
        files.images(request(tmp_path / ".."))


def test_features_are_of_images_one_by_one():
    rng, weights = np.random.default_rng(0), {}

    def layer(conv, norm, before, after):
        weights[f"{conv}.weight"] = rng.normal(0, (2 / (9 * after)) ** 0.5, (3, 3, before, after)).astype(np.float32)
        for name, value in (("weight", 0.5), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            weights[f"{norm}.{name}"] = np.full(after, value, np.float32)

    layer("conv1", "bn1", 3, 16)
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(9):
            before = width // 2 if stage > 1 and block == 0 else width
            layer(f"layer{stage}.{block}.conv1", f"layer{stage}.{block}.bn1", before, width)
            layer(f"layer{stage}.{block}.conv2", f"layer{stage}.{block}.bn2", width, width)
    weights["linear.weight"] = rng.normal(size=(10, 64)).astype(np.float32)
    weights["linear.bias"] = np.zeros(10, np.float32)
    x = rng.uniform(-2, 2, (3, 32, 32, 3)).astype(np.float32)
    features, classes = resnet.measure(weights, x, batch=2)
    assert features.shape == (3, 64) and classes.shape == (3,) and np.isfinite(features).all()
    np.testing.assert_allclose(features[2], resnet.measure(weights, x[2:])[0][0], rtol=1e-4, atol=1e-4)
