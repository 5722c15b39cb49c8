"""Directions of x that no observation sees, found from operators alone, against cases where they are known."""

import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from diffem_jax.corruptions import CORRUPTIONS, Linear, Projection
from diffem_jax.run import identifiability
from diffem_jax.run.identifiability import look
from diffem_jax.types import Observation


def problem_of(corruption, operators=None, count=64):
    """What ``look`` reads; y holds NaN, since it must not be read."""
    if operators is None:
        drawn = jax.vmap(corruption.draw_operator)(jax.random.split(jax.random.key(0), count))
        operators = jax.tree.map(np.asarray, drawn)
    one = jax.tree.map(lambda a: a[0], operators)
    y = jax.eval_shape(corruption.forward, jax.ShapeDtypeStruct(corruption.shape, np.float32), one).shape
    setup = SimpleNamespace(data_corruption=corruption, shape=corruption.shape)
    observations = Observation(np.full((count, *y), np.nan, np.float32), operators)
    return SimpleNamespace(setup=setup, observations=observations, num_examples=count)


def test_a_corruption_of_ones_own_need_not_say_what_is_observed_but_be_linear():
    class Bare(Linear):
        def draw_operator(self, key):
            return jax.numpy.zeros(())

        def forward(self, x, operator):
            return x[:2]

    assert look(problem_of(CORRUPTIONS["clipping"](shape=(4, 4, 1)))) is None
    report = look(problem_of(Bare(shape=(4,))))
    assert report.unseen == 2 and not report.directions[:, :2].any()


def test_masks_are_counted_and_pairs_never_seen_together_are_told():
    corruption = CORRUPTIONS["pixel_mask"](shape=(4, 3, 2))
    masks = (np.random.default_rng(0).uniform(size=(64, 4, 3, 1)) < 0.5).astype(np.float32)
    masks[:, 1, 2] = 0
    masks[:, 0, 0] = 1 - masks[:, 3, 1]
    report = look(problem_of(corruption, masks))
    assert (report.unseen, report.dimensions, report.examples) == (2, 24, 64)
    hidden = np.zeros((4, 3, 2), bool)
    hidden[1, 2] = True
    np.testing.assert_array_equal(np.abs(report.directions).sum(0) > 0, hidden)
    np.testing.assert_allclose(report.seen, np.broadcast_to(masks.mean(0), (4, 3, 2)), atol=1e-6)
    assert report.pairs == 4 and report.least == 0
    told = " ".join(report.warnings())
    assert "2 of 24 directions" in told and "4 pairs" in told
    masks[0], masks[1, 0, 0], masks[1, 3, 1], masks[2] = 1, 1, 1, 1
    report = look(problem_of(corruption, masks))
    assert report.unseen == report.pairs == 0 and not report.warnings() and not len(report.directions)


def test_one_fixed_projection_leaves_its_null_space():
    corruption = Projection(shape=(5,), measurements=2, noise_std=0.01)
    a = np.asarray(corruption.draw_operator(jax.random.key(3)))
    report = look(problem_of(corruption, np.broadcast_to(a, (64, 2, 5))))
    assert report.method == "matrix" and report.unseen == 3 and len(report.directions) == 3
    np.testing.assert_allclose(report.directions @ a.T, 0, atol=1e-3)
    np.testing.assert_allclose(report.directions @ report.directions.T, np.eye(3), atol=1e-4)
    report = look(problem_of(corruption))
    assert report.unseen == 0 and report.least > 0.3 and not report.warnings()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("grayscale", "box_downsampling", "pixel_mask")]


@pytest.mark.parametrize("name", ["gaussian_blur", *SLOW])
def test_lanczos_counts_what_the_matrix_shows(monkeypatch, name):
    shape = (8, 8, 3)
    corruption = CORRUPTIONS[name](shape=shape)
    if name == "pixel_mask":
        masks = np.ones((64, 8, 8, 1), np.float32)
        masks[:, 2:6, 3:7] = 0
        problem = problem_of(corruption, masks)
        exact = look(problem)
        monkeypatch.setattr(identifiability, "Mask", ())
        assert look(problem).unseen == exact.unseen == 48
    else:
        problem = problem_of(corruption)
    dense = look(problem)
    assert dense.method == "matrix"
    monkeypatch.setattr(identifiability, "DENSE", 0)
    found = look(problem)
    assert found.method == "lanczos" and found.dimensions == dense.dimensions == 192
    assert abs(found.unseen - dense.unseen) <= max(2, 0.15 * dense.unseen), (found.unseen, dense.unseen)
    if dense.unseen:
        # What Lanczos names lies in the null space that the matrix has.
        operator = jax.tree.map(lambda a: a[0], problem.observations.operator)
        seen = [np.linalg.norm(corruption.forward(u, operator)) for u in found.directions]
        assert seen and max(seen) < 0.05


@pytest.mark.parametrize(
    ("name", "shape", "words", "operators"),
    [
        ("grayscale", (3, 3, 3), "18 of 27 directions.*colour at equal grey cannot be learnt", None),
        ("box_downsampling", (4, 4, 1), "12 of 16 directions.*within a block", None),
        ("pixel_mask", (3, 3, 1), "", None),
        ("pixel_mask", (3, 3, 1), "1 of 9 directions", np.tile(1.0 - np.eye(9, dtype=np.float32)[4], (64, 1))),
    ],
)
def test_a_null_space_that_all_observations_share_is_said_before_training(name, shape, words, operators):
    problem = problem_of(CORRUPTIONS[name](shape=shape), None if operators is None else operators.reshape(64, *shape))
    problem.setup.config = SimpleNamespace(corruption=SimpleNamespace(name=name))
    lines = identifiability.fixed_null_space(problem)
    assert bool(lines) == bool(words) and re.search(words, " ".join(lines))
