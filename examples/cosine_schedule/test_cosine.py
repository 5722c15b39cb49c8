"""Its contract, and its name in a config."""

from pathlib import Path

import pytest
from cosine import Cosine

from diffem_jax import testing


def test_contract():
    testing.check_schedule(Cosine())


@pytest.mark.slow
def test_by_name(tmp_path):
    testing.check_command(
        "--config=digits", "--config.schedule.name=cosine:Cosine", folder=tmp_path, source=Path(__file__).parent
    )
