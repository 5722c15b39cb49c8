"""Draws are as wide as they should be, by every shipped config's sampler, grid and number of steps."""

import numpy as np

from diffem_jax.build.auto import choose
from diffem_jax.build.parts import DRAWS, LEAST, MOST, draw_width
from diffem_jax.corruptions import PixelMask
from diffem_jax.run import train
from diffem_jax.usage import load_config, shipped_configs

OURS = [
    *("digits", "digits:mask75", "digits:mask90", "digits:projection", "digits:jpeg", "digits:phase"),
    *("fourier", "fourier:patches", "fourier:knee", "manifold", "manifold:quick", "patches", "patches:mask90"),
    *("own_data", "own_data:images", "own_data:table", "series", "tables", "volumes"),
]
ERROR = np.sqrt(2 / DRAWS)


def test_width_of_shipped_configs():
    """Of each combination of sampler, grid, steps and schedule that they have."""
    widths = {}
    for name in OURS:
        given = load_config(name, [("data.path", "x.npz")] if name.startswith("own_data") else [])
        config = choose(given, (16, 16, 3), 5000, PixelMask(shape=(16, 16, 3)))
        e_step = config.e_step
        key = (e_step.sampler, e_step.time_grid, e_step.steps, config.denoiser.sigma_data, str(config.schedule))
        widths[key] = widths[key] if key in widths else draw_width(config)
        assert LEAST - 3 * ERROR < widths[key] < MOST + 3 * ERROR, (name, widths[key])


def test_published_samplers_draw_too_narrowly():
    """The reason for ours: the published grid of 256 ancestral steps, and the same with few steps."""
    assert draw_width(load_config("digits:paper", [])) < 0.97
    few = load_config("digits:paper", [("e_step.steps", "16")])
    assert draw_width(few) < 0.6
    (line,) = train._advice(few)
    assert "ddpm in 16 steps" in line and "use e_step.sampler=analytic_2m" in line
    assert not list(train._advice(load_config("digits", [])))


def test_every_config_has_its_width_tested():
    assert {name.partition(":")[0] for name in OURS} >= set(shipped_configs()) - {"celeba", "cifar10"}
