"""Its contract, and its name in a config."""

from pathlib import Path

import pytest
from churn import churn

from diffem_jax import testing


def test_contract():
    testing.check_sampler(churn, samples=1024)


@pytest.mark.slow
def test_by_name(tmp_path):
    testing.check_command(
        "--config=digits", "--config.e_step.sampler=churn:churn", folder=tmp_path, source=Path(__file__).parent
    )
