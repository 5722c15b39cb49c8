"""Its contract, and its name in a config."""

from pathlib import Path

import pytest
from gradient_free import gradient_free

from diffem_jax import testing


@pytest.mark.slow
def test_contract():
    testing.check_posterior(gradient_free, exact=True)


@pytest.mark.slow
def test_by_name(tmp_path):
    testing.check_command(
        "--config=digits", "--config.method=gradient_free:gradient_free", folder=tmp_path, source=Path(__file__).parent
    )
