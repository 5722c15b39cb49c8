"""tensorflow-datasets without TensorFlow: preparing the digits, reading images, races and kills."""

import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from faults.command import ROOT, python, without_tensorflow
from PIL import Image

from configs import celeba
from diffem_jax import data
from diffem_jax.data import prepare
from diffem_jax.errors import UserError
from diffem_jax.storage import files


def test_digits_prepare_and_load_where_tensorflow_cannot_be_imported(tmp_path):
    code = "import sys; from diffem_jax import data; assert 'tensorflow_datasets' not in sys.modules\n"
    code += "d = data.load('digits', cache_dir=sys.argv[1]); assert 'tensorflow' not in sys.modules\n"
    code += "print(d.x.shape, d.test_x.shape, float(d.x.min()), float(d.x.max()))"
    said = without_tensorflow(tmp_path, code, tmp_path / "c")
    assert said == "(1500, 8, 8, 1) (297, 8, 8, 1) -2.0 2.0\n"


@pytest.mark.slow
def test_two_processes_prepare_at_once(tmp_path):
    code = "import sys; from diffem_jax import data; print(data.load('digits', cache_dir=sys.argv[1]).x.shape)"
    call = [sys.executable, "-c", code, tmp_path]
    racers = [subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {racer.communicate(timeout=120)[0] for racer in racers} == {"(1500, 8, 8, 1)\n"}
    assert len([path for path in tmp_path.rglob("1.0.0") if path.is_dir()]) == 1


def test_what_a_failed_or_killed_process_left_is_not_taken_for_the_result(tmp_path):
    folder = tmp_path / "set"
    with pytest.raises(ZeroDivisionError):
        files.publish(folder, lambda scratch: scratch / str(1 // 0))
    assert not list(tmp_path.iterdir())
    code = "import os, sys, pathlib; from diffem_jax.storage.files import publish\n"
    code += "publish(pathlib.Path(sys.argv[1]), lambda s: (s / 'half').write_text('cut') and os._exit(0))"
    python(code, folder)
    (left,) = tmp_path.iterdir()
    assert not folder.exists()

    def whole(scratch):
        (scratch / "whole").write_text("all of it")
        return scratch

    assert [f.name for f in files.publish(folder, whole).iterdir()] == ["whole"]
    assert left.exists()  # too young to be known as abandoned
    os.utime(left, (0, 0))
    files.publish(tmp_path / "set", whole)
    assert left.exists()  # nothing is made, nothing is touched
    folder.rename(tmp_path / "elsewhere")
    files.publish(folder, whole)
    assert not left.exists()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A set with an Image feature, prepared here from PNG files: TensorFlow is needed for neither."""
    root = tmp_path_factory.mktemp("tiny")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 10, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(root / f"{i}.png")

    class TinySet(tfds.core.GeneratorBasedBuilder):
        """Nine pictures."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(num_classes=9)
            features = {"image": tfds.features.Image(shape=(12, 10, 3)), "label": label}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(range(6)), "test": self._generate_examples(range(6, 9))}

        def _generate_examples(self, numbers):
            for i in numbers:
                yield i, {"image": root / f"{i}.png", "label": i}

    TinySet(data_dir=str(root / "cache" / "tfds"), file_format="array_record").download_and_prepare()
    return root / "cache", pixels


def test_images_are_read_by_index_scaled_and_labelled(tiny):
    cache, pixels = tiny
    loaded = data.load("tfds:tiny_set", cache_dir=cache)
    assert loaded.shape == (12, 10, 3) and sorted(loaded.labels) == list(range(6)) and len(loaded.test_x) == 3
    for x, labels in ((loaded.x, loaded.labels), (loaded.test_x, loaded.test_labels)):
        assert np.allclose((np.asarray(x) + 2) * 255 / 4, pixels[labels], atol=1e-3)
    assert len(data.load("tfds:tiny_set", split="test", num_examples=2, cache_dir=cache).x) == 2
    assert data.load("tfds:tiny_set", shape=(6, 6, 1 + 2), cache_dir=cache).shape == (6, 6, 3)
    with pytest.raises(UserError, match=r"data\.split: 'dev'.*'train'"):
        data.load("tfds:tiny_set", split="dev", cache_dir=cache)


def test_splits_are_joined_and_the_shape_is_that_of_the_celeba_config(tiny):
    cache, pixels = tiny
    whole = data.load("tfds:tiny_set", split="train+test", cache_dir=cache)
    assert sorted(whole.labels[:6]) == list(range(6)) and sorted(whole.labels[6:]) == [6, 7, 8]
    assert np.allclose((np.asarray(whole.x) + 2) * 255 / 4, pixels[whole.labels], atol=1e-3)
    assert len(data.load("tfds:tiny_set", split="train+test", num_examples=7, cache_dir=cache).x) == 7
    shape = tuple(celeba.get_config().data.shape)
    assert data.load("tfds:tiny_set", split="train+test", shape=shape, crop=8, cache_dir=cache).x.shape == (9, *shape)
    with pytest.raises(UserError, match=r"'train\+dev'.*not 'dev'"):
        data.load("tfds:tiny_set", split="train+dev", cache_dir=cache)
    with pytest.raises(UserError, match=r"data\.shape: \(6, 6\)"):
        data.load("tfds:tiny_set", shape=(6, 6), cache_dir=cache)


def test_prepare_command(tmp_path, capsys, tiny):
    assert prepare.main(["digits", "--cache_dir", str(tmp_path)]) == 0
    assert "--config.data.name=digits" in capsys.readouterr().out
    assert prepare.prepare("tiny_set", tiny[0]).name == "1.0.0"
    assert prepare.main(["../up", "--cache_dir", str(tmp_path)]) == 2


def test_without_tensorflow_or_network_the_commands_for_a_connected_machine_are_given(tmp_path, monkeypatch, capsys):
    """Both say what to run elsewhere and which folder to copy where, and leave nothing behind."""
    offline = mock.Mock(side_effect=ConnectionError("no route to host"))
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    for found, reason in ((None, "TensorFlow is not installed"), (object(), "no route to host")):
        monkeypatch.setattr(prepare, "find_spec", lambda name, found=found: found)
        assert prepare.main(["cifar10", "--cache_dir", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert reason in said
        assert "pip install 'diffem-jax[tfds]' && python -m diffem_jax.data.prepare cifar10 --cache_dir=DIR" in said
        assert f"copy the folder DIR/tfds/cifar10 to {tmp_path / 'tfds' / 'cifar10'}" in said
    assert not list(tmp_path.rglob("*.array_record*"))
