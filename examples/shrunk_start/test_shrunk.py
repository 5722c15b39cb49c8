"""Its contract, and its name in a config."""

from pathlib import Path

import pytest
from shrunk import shrunk

from diffem_jax import testing


@pytest.mark.slow
def test_contract():
    testing.check_start(shrunk, shrink=0.2)


@pytest.mark.slow
def test_by_name(tmp_path):
    testing.check_command("--config=config.py", folder=tmp_path, source=Path(__file__).parent)
