"""The real cifar10 and celeb_a builders on tiny archives of the right format; run by ``make test-tfds``.

Preparing needs TensorFlow (extra ``tfds``); reading is done in a process where it cannot be imported.
"""

import io
import zipfile
from importlib.util import find_spec
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from faults.command import without_tensorflow
from PIL import Image

from diffem_jax.data import prepare

pytestmark = pytest.mark.skipif(
    find_spec("tensorflow") is None, reason="preparing a tfds set needs TensorFlow: pip install 'diffem-jax[tfds]'"
)
CIFAR_CLASSES = 10
PER_FILE = 4


def _cifar_folder(root):
    """cifar-10-batches-bin: records of one label byte and 3 x 32 x 32 channel-first pixels."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels, pixels = {}, {}
    for split, names in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
        labels[split] = rng.integers(0, CIFAR_CLASSES, len(names) * PER_FILE).astype(np.uint8)
        pixels[split] = rng.integers(0, 256, (len(names) * PER_FILE, 3, 32, 32)).astype(np.uint8)
        for i, name in enumerate(names):
            part = slice(i * PER_FILE, (i + 1) * PER_FILE)
            rows = np.concatenate([labels[split][part, None], pixels[split][part].reshape(PER_FILE, -1)], 1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(CIFAR_CLASSES)) + "\n")
    return root, pixels


def _read(tmp_path, name):
    code = "import sys, numpy as np; from diffem_jax import data; d = data.load(sys.argv[1], cache_dir=sys.argv[2])\n"
    code += "np.savez(sys.argv[3], x=d.x, test=d.test_x); assert 'tensorflow' not in sys.modules"
    without_tensorflow(tmp_path, code, f"tfds:{name}", tmp_path / "cache", tmp_path / "out.npz")
    return np.load(tmp_path / "out.npz")


def _sorted_grey(x):
    grey = np.round((x + 2) * 255 / 4).astype(np.uint8)
    return sorted(image.tobytes() for image in grey)


def test_cifar10(tmp_path):
    extracted, pixels = _cifar_folder(tmp_path / "extracted")
    with mock.patch.object(tfds.download.DownloadManager, "download_and_extract", lambda self, url: str(extracted)):
        assert prepare.main(["cifar10", "--cache_dir", str(tmp_path / "cache")]) == 0
    read = _read(tmp_path, "cifar10")
    for key, split in (("x", "train"), ("test", "test")):
        assert _sorted_grey(read[key]) == sorted(np.moveaxis(p, 0, -1).tobytes() for p in pixels[split])


def test_celeb_a(tmp_path):
    """The zip of JPEG files and the text tables, as the builder downloads them."""
    from tensorflow_datasets.datasets.celeb_a import celeb_a_dataset_builder as celeba

    names = [f"{i:06d}.jpg" for i in range(1, 7)]
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for i, name in enumerate(names):
            buffer = io.BytesIO()
            Image.new("RGB", (178, 218), (40 * i, 255 - 40 * i, 128)).save(buffer, "JPEG", quality=95)
            archive.writestr(f"img_align_celeba/{name}", buffer.getvalue())
    lines = {
        "list_eval_partition": [f"{name} {part}" for name, part in zip(names, (0, 0, 0, 1, 2, 2), strict=True)],
        "identity_celeba": [f"{name} 1" for name in names],
    }
    for table, columns in (("list_attr_celeba", celeba.ATTR_HEADINGS), ("landmarks_celeba", celeba.LANDMARK_HEADINGS)):
        lines[table] = ["6", " ".join(columns), *(" ".join([name, *["1"] * len(columns)]) for name in names)]
    paths = {"img_align_celeba": tmp_path / "images.zip"} | {name: tmp_path / f"{name}.txt" for name in lines}
    for name, rows in lines.items():
        paths[name].write_text("\n".join(rows) + "\n")
    with mock.patch.object(tfds.download.DownloadManager, "download", lambda self, urls: {k: paths[k] for k in urls}):
        assert prepare.main(["celeb_a", "--cache_dir", str(tmp_path / "cache")]) == 0
    read = _read(tmp_path, "celeb_a")
    assert read["x"].shape == (3, 64, 64, 3) and read["test"].shape == (2, 64, 64, 3)
    assert np.allclose(np.sort((read["x"][..., 0].mean((1, 2)) + 2) * 255 / 4), [0, 40, 80], atol=4)
