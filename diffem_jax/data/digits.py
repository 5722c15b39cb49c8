"""A tensorflow-datasets builder of scikit-learn's digits that needs no TensorFlow; imported where it is used, as it takes half a second."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from diffem_jax.storage.files import Place, publish

TRAIN_EXAMPLES = 1500


class DiffemDigits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits, 8x8 grey levels 0..16, from scikit-learn: the first 1,500 train, the rest test.

    The pictures are a Tensor feature: an Image feature would encode PNG through TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8)
        features = tfds.features.FeaturesDict({"image": image, "label": tfds.features.Scalar(dtype=np.int64)})
        return tfds.core.DatasetInfo(builder=self, description=self.__doc__, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        examples = list(zip(digits.images.astype(np.uint8)[..., None], digits.target.astype(np.int64), strict=True))
        train, test = examples[:TRAIN_EXAMPLES], examples[TRAIN_EXAMPLES:]
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, examples: list[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(examples):
            yield i, {"image": image, "label": label}


def prepare_digits(data_dir: Place) -> Path:
    """Prepares the set under ``data_dir`` unless it is there, whole or not at all; returns its folder."""

    def build(scratch: Path) -> Path:
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):
            builder = DiffemDigits(data_dir=str(scratch), file_format="array_record")
            builder.download_and_prepare()
        return Path(builder.data_path)

    return publish(Path(data_dir) / "diffem_digits" / str(DiffemDigits.VERSION), build)
