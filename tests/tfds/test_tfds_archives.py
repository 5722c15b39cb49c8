"""The real cifar10 and celeb_a builders on tiny archives of the right format; run by ``make test-tfds``.

Preparing needs TensorFlow (extra ``tfds``); reading is done in a process where it cannot be imported.
"""

import io
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(
    find_spec("tensorflow") is None,
    reason="preparing a tfds image set needs TensorFlow: pip install 'diffem-jax[tfds]'",
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


def _read_without_tensorflow(tmp_path, cache, name, output):
    block = tmp_path / "block" / "tensorflow"
    block.mkdir(parents=True)
    (block / "__init__.py").write_text("raise ImportError('TensorFlow is blocked in this test')")
    path = os.pathsep.join([str(block.parent), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    code = (
        "import sys, numpy as np; from diffem_jax import data; "
        f"d = data.load('tfds:{name}', cache_dir={str(cache)!r}); "
        f"np.savez({str(output)!r}, x=np.asarray(d.x), test=np.asarray(d.test_x)); "
        "assert 'tensorflow' not in sys.modules"
    )
    env = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return np.load(output)


def _sorted_grey(x):
    grey = np.round((x + 2) * 255 / 4).astype(np.uint8)
    return sorted(image.tobytes() for image in grey)


def test_cifar10(tmp_path):
    import tensorflow_datasets as tfds

    from diffem_jax.data import prepare

    extracted, pixels = _cifar_folder(tmp_path / "extracted")
    with mock.patch.object(tfds.download.DownloadManager, "download_and_extract", lambda self, url: str(extracted)):
        assert prepare.main(["cifar10", "--cache_dir", str(tmp_path / "cache")]) == 0
    read = _read_without_tensorflow(tmp_path, tmp_path / "cache", "cifar10", tmp_path / "out.npz")
    for key, split in (("x", "train"), ("test", "test")):
        assert _sorted_grey(read[key]) == sorted(np.moveaxis(p, 0, -1).tobytes() for p in pixels[split])


def _celeba_files(root):
    """The zip of JPEG files and the text tables, as the builder downloads them."""
    root.mkdir(parents=True)
    count = 6
    names = [f"{i:06d}.jpg" for i in range(1, count + 1)]
    with zipfile.ZipFile(root / "img_align_celeba.zip", "w") as archive:
        for i, name in enumerate(names):
            buffer = io.BytesIO()
            Image.new("RGB", (178, 218), (40 * i, 255 - 40 * i, 128)).save(buffer, "JPEG", quality=95)
            archive.writestr(f"img_align_celeba/{name}", buffer.getvalue())
    (root / "eval.txt").write_text("".join(f"{n} {p}\n" for n, p in zip(names, (0, 0, 0, 1, 2, 2), strict=True)))
    return root, names


def _table(names, columns, count):
    rows = "".join(f"{n} " + " ".join(["1"] * len(columns)) + "\n" for n in names)
    return f"{count}\n{' '.join(columns)}\n{rows}"


def test_celeb_a(tmp_path):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.datasets.celeb_a import celeb_a_dataset_builder as celeba

    from diffem_jax.data import prepare

    root, names = _celeba_files(tmp_path / "downloaded")
    (root / "attr.txt").write_text(_table(names, list(celeba.ATTR_HEADINGS), len(names)))
    (root / "landmarks.txt").write_text(_table(names, list(celeba.LANDMARK_HEADINGS), len(names)))
    (root / "identity.txt").write_text("".join(f"{n} 1\n" for n in names))
    paths = {
        "img_align_celeba": root / "img_align_celeba.zip",
        "list_eval_partition": root / "eval.txt",
        "list_attr_celeba": root / "attr.txt",
        "landmarks_celeba": root / "landmarks.txt",
        "identity_celeba": root / "identity.txt",
    }
    with mock.patch.object(tfds.download.DownloadManager, "download", lambda self, urls: {k: paths[k] for k in urls}):
        assert prepare.main(["celeb_a", "--cache_dir", str(tmp_path / "cache")]) == 0
    read = _read_without_tensorflow(tmp_path, tmp_path / "cache", "celeb_a", tmp_path / "out.npz")
    assert read["x"].shape == (3, 64, 64, 3) and read["test"].shape == (2, 64, 64, 3)
    reds = np.sort((read["x"][..., 0].mean((1, 2)) + 2) * 255 / 4)
    assert np.allclose(reds, [0, 40, 80], atol=4)
