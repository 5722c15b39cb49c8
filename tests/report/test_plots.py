"""Pictures: real digits and random vectors become PNG files with something in them, whole or not at all."""

import numpy as np
import pytest
from faults.command import python
from matplotlib.image import imread
from sklearn.datasets import load_digits

from diffem_jax.errors import UserError
from diffem_jax.report import plots


def digits(count=12):
    return (load_digits().images[:count, ..., None] / 4 - 2).astype(np.float32)


def masked(x, seed=0):
    return x * (np.random.default_rng(seed).uniform(size=x.shape) > 0.5)


def pixels(path):
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    image = imread(path)
    assert image.shape[0] > 50 and image.shape[1] > 50 and image[..., :3].std() > 0.02
    return image


def vectors(dimensions, count=400, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)


IMAGES = {
    "gray": lambda: digits(),
    "no channel": lambda: digits()[..., 0],
    "colour": lambda: np.repeat(digits(), 3, axis=-1),
    "volume": lambda: np.stack([digits(5), digits(5)[::-1], digits(5)], axis=1),
}


@pytest.mark.parametrize("name", IMAGES)
def test_grids_of_images(tmp_path, name):
    x = IMAGES[name]()
    with_truth = pixels(plots.image_grid(tmp_path / "a.png", masked(x), x, x, title="round 1"))
    without = pixels(plots.image_grid(tmp_path / "b.png", masked(x), x))
    assert with_truth.shape[0] > without.shape[0]


def test_a_grid_shows_what_it_is_given(tmp_path):
    x = digits()
    same = [pixels(plots.image_grid(tmp_path / f"{i}.png", x, x, x)) for i in range(2)]
    np.testing.assert_array_equal(*same)
    other = pixels(plots.image_grid(tmp_path / "other.png", x, -x, x))
    rows = np.abs(same[0] - other).sum(axis=(1, 2)) > 0
    third = len(rows) // 3
    assert rows[third + 10 : 2 * third - 10].all() and not rows[: third - 10].any() and not rows[2 * third + 10 :].any()


def test_picture_chooses_by_shape(tmp_path):
    x, y, z = vectors(3), vectors(20), digits()
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    same = np.testing.assert_array_equal
    same(pixels(plots.picture(one, x[:, :2], x, x)), pixels(plots.corner(other, x, x)))
    same(pixels(plots.picture(one, y, y, y)), pixels(plots.series(other, y, y[None], y)))
    same(pixels(plots.picture(one, z, z)), pixels(plots.image_grid(other, z, z)))


def test_hidden_pixels_have_a_colour_of_their_own(tmp_path):
    x = digits(3)
    seen = np.where(masked(np.ones_like(x)) > 0, x, np.nan)
    grey = pixels(plots.image_grid(tmp_path / "a.png", np.nan_to_num(seen), x))
    marked = pixels(plots.image_grid(tmp_path / "b.png", seen, x))
    colour = np.abs(marked[..., :3] - marked[..., :1]).max(-1) > 0.05
    hidden = np.isnan(seen).mean()
    assert not (np.abs(grey[..., :3] - grey[..., :1]).max(-1) > 0.05).any()
    top = colour[: colour.shape[0] // 2]
    assert 0.4 * hidden < top.mean() < hidden and not colour[colour.shape[0] // 2 + 10 :].any()


@pytest.mark.parametrize("channels", [1, 2])
def test_series_are_lines_with_gaps_and_a_band(tmp_path, channels):
    t = np.linspace(0, 9, 60)
    x = np.stack([np.sin(t + k)[:, None] * np.ones(channels) for k in range(3)]).astype(np.float32)
    seen = x.copy()
    seen[:, 20:40] = np.nan
    draws = x + np.random.default_rng(0).normal(size=(8, *x.shape)).astype(np.float32)
    wide = pixels(plots.spread(tmp_path / "a.png", seen, draws, x, title="draws"))
    none = pixels(plots.series(tmp_path / "b.png", seen, np.stack([x] * 8), x, title="draws"))
    whole = pixels(plots.series(tmp_path / "c.png", x, np.stack([x] * 8), x, title="draws"))
    for one, other in ((wide, none), (none, whole)):
        assert one.shape != other.shape or (one != other).any()
    with pytest.raises(UserError, match="series"):
        plots.series(tmp_path / "f.png", seen, x[0, 0])


@pytest.mark.parametrize("dimensions", [1, 3])
def test_corner_plots(tmp_path, dimensions):
    x = vectors(dimensions)
    pixels(plots.corner(tmp_path / "a.png", x, x + 0.5, title="round 1"))
    for shape in ((4, 9), (4, 0), (4,), (4, 2, 2)):
        with pytest.raises(UserError, match="corner"):
            plots.corner(tmp_path / "b.png", np.zeros(shape))


def test_spreads_of_draws(tmp_path):
    x, noise = digits(6), np.random.default_rng(1).normal(size=(9, 6, 8, 8, 1)).astype(np.float32)
    full, none = (plots.spread_grid(tmp_path / f"{s}.png", masked(x), x + s * noise, x) for s in (0.5, 0.0))
    assert (pixels(full) != pixels(none)).any()
    with pytest.raises(UserError, match="draws"):
        plots.spread_grid(tmp_path / "d.png", masked(x), noise[:, :3])


def test_calibration_shows_what_it_is_given(tmp_path):
    levels = (0.5, 0.8, 0.9, 0.95)
    curves = ({"x": levels}, {"x": [0.3, 0.5, float("nan"), 0.7]}, {"x": levels, "y": [0.4, 0.7, 0.8, 0.9]})
    right, *others = (pixels(plots.calibration(tmp_path / f"{i}.png", levels, c)) for i, c in enumerate(curves))
    assert all(right.shape != other.shape or (right != other).any() for other in others)


def test_importing_plots_does_not_import_matplotlib():
    python("import sys, diffem_jax.report.plots; assert 'matplotlib' not in sys.modules")
