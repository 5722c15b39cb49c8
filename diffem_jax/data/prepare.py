"""Prepares a tensorflow-datasets image set for ``data.name = 'tfds:NAME'``.

    python -m diffem_jax.data.prepare cifar10 [--cache_dir=DIR] [--archives=DIR]

This alone needs TensorFlow (extra ``tfds``) and an internet connection; what it writes, DIR/tfds/NAME, can be copied elsewhere.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from diffem_jax.data.images import check_tfds_name, how_to_prepare, prepared_folder
from diffem_jax.errors import UserError
from diffem_jax.storage.files import Place, cache_folder


def _elsewhere(name: str, cache: Path, why: str) -> UserError:
    expected = f"expected TensorFlow and an internet connection; {how_to_prepare(name, cache)}"
    return UserError(f"tfds name: {name!r}: cannot be prepared here, {why}; {expected}")


def prepare(name: str, cache_dir: Place | None = None, archives: Place | None = None) -> Path:
    """Downloads and prepares a set as array_record files under ``cache_dir``/tfds unless it is there; returns its folder.

    ``archives`` is a folder of archives downloaded by hand. UserError, with what to run and what to copy, if there is no TensorFlow
    ('digits' needs none), no connection or no such set.
    """
    cache = cache_folder(cache_dir)
    if name == "digits":
        from diffem_jax.data.digits import prepare_digits

        return prepare_digits(cache / "tfds")
    if found := prepared_folder(check_tfds_name(name), cache):
        return found
    if "tensorflow" not in sys.modules and find_spec("tensorflow") is None:
        raise _elsewhere(name, cache, "TensorFlow is not installed")
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(manual_dir=archives) if archives else None
    try:
        builder = tfds.builder(name, data_dir=str(cache / "tfds"), file_format="array_record")
        builder.download_and_prepare(download_config=config)
    except tfds.core.DatasetNotFoundError:
        raise UserError(f"tfds name: {name!r}; expected a set of tensorflow-datasets; see its catalogue") from None
    except Exception as error:
        # Whatever a downloader raises (connection, proxy, checksum, quota): the remedy is the same.
        raise _elsewhere(name, cache, f"{type(error).__name__}: {str(error)[:300]}") from error
    return Path(builder.data_path)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 for a mistake that the user can fix."""
    parser = argparse.ArgumentParser(prog="python -m diffem_jax.data.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="digits, cifar10, celeb_a, mnist, ...")
    parser.add_argument("--cache_dir", help="default: $DIFFEM_DATA_DIR or ~/.cache/diffem_jax")
    parser.add_argument("--archives", help="folder of archives downloaded by hand")
    given = parser.parse_args(argv)
    try:
        folder = prepare(given.name, given.cache_dir, given.archives)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    source = "digits" if given.name == "digits" else f"tfds:{given.name}"
    print(f"{folder}: ready; use it with --config.data.name={source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
