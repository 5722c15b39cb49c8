"""Its contract, and its name in a config."""

from pathlib import Path

import pytest
from gated import Gated

from diffem_jax import testing


def test_contract():
    testing.check_network(Gated(width=8, depth=1), starts_at_zero=True)


@pytest.mark.slow
def test_by_name(tmp_path):
    testing.check_command("--config=config.py", folder=tmp_path, source=Path(__file__).parent)
