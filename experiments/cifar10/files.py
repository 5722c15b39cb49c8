"""The source 'experiments.cifar10.files:images': CIFAR-10 from train-0.npz ... train-4.npz, 10,000 images each."""

from pathlib import Path
from typing import Any

import numpy as np

from diffem_jax.data.npz import existing, read_arrays
from diffem_jax.data.sources import Dataset
from diffem_jax.errors import UserError
from diffem_jax.storage.rows import as_rows


def images(request: Any) -> Dataset:
    """The first ``num_examples`` images of a folder, x uint8 [N, 32, 32, 3] scaled to [-2, 2], and their labels.

    Raises:
        UserError: no such folder or file, or arrays of another shape.
    """
    folder = existing(request.path or "", "a folder with train-0.npz, train-1.npz, ...")
    parts: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    while not request.num_examples or sum(map(len, parts)) < request.num_examples:
        path = Path(folder) / f"train-{len(parts)}.npz"
        if not path.exists():
            break
        found = read_arrays(path, ("x", "labels"))
        if set(found) != {"x", "labels"} or found["x"].shape[1:] != (32, 32, 3) or found["x"].dtype != np.uint8:
            raise UserError(f"{path}: expected x uint8 [N, 32, 32, 3] and labels [N]; save them with numpy.savez")
        parts.append(found["x"])
        labels.append(found["labels"].astype(np.int64))
    if not parts:
        raise UserError(f"{folder}: no train-0.npz; expected train-0.npz, train-1.npz, ...; name their folder")
    x = np.concatenate(parts)
    return Dataset(as_rows(x), np.concatenate(labels), tuple(x.shape[1:]))
