"""Draws are as wide as they should be, by every shipped config's sampler, grid and number of steps."""

import numpy as np
import pytest

from diffem_jax.build.width import DRAWS, LEAST, MOST, draw_width
from diffem_jax.usage import load_config, shipped_configs

OURS = [
    *("digits", "digits:mask75", "digits:mask90", "digits:projection", "digits:jpeg", "digits:phase"),
    *("fourier", "fourier:patches", "fourier:knee", "manifold", "manifold:quick", "patches", "patches:mask90"),
    *("own_data", "own_data:images", "own_data:table", "series", "tables", "volumes"),
]
ERROR = np.sqrt(2 / DRAWS)


@pytest.mark.parametrize("name", OURS)
def test_width_of_shipped_config(name):
    f = draw_width(load_config(name, []))
    assert LEAST - 3 * ERROR < f < MOST + 3 * ERROR


def test_published_samplers_draw_too_narrowly():
    """The reason for ours: the published grid of 256 ancestral steps, and the same with few steps."""
    assert draw_width(load_config("digits:paper", [])) < 0.97
    assert draw_width(load_config("digits:paper", [("e_step.steps", "16")])) < 0.6


def test_every_config_has_its_width_tested():
    assert {name.partition(":")[0] for name in OURS} >= set(shipped_configs()) - {"celeba", "cifar10"}
