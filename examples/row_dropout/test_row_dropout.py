"""Its contract, and its name in a config."""

from pathlib import Path

import pytest
from row_dropout import RowDropout

from diffem_jax import testing


def test_contract():
    testing.check_corruption(RowDropout(shape=(4, 3, 1), rate=0.4, noise_std=0.1))


@pytest.mark.slow
def test_by_name(tmp_path):
    testing.check_command("--config=config.py", folder=tmp_path, source=Path(__file__).parent)
