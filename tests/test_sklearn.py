"""The imputer: what is there stays, what is missing is drawn, and scikit-learn's own checks."""

import pickle

import jax
import numpy as np
import pytest
from faults.harness import SMALL
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from diffem_jax.sklearn import DiffEMImputer

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(autouse=True)
def as_for_users():
    """Without the strictness of the other tests, which optax does not keep to."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
        yield


def imputer(**given):
    return DiffEMImputer(fields=SMALL | {"start.iterations": 5}, **given)


@pytest.fixture(scope="module")
def numbers():
    rng = np.random.default_rng(0)
    a = rng.normal(5, 2, 60)
    x = np.stack([a, 3 * a + rng.normal(size=60), np.full(60, 7.0)], axis=1)
    x[rng.random((60, 3)) < 0.2] = np.nan
    return x


@pytest.fixture(scope="module")
def fitted(numbers):
    return imputer().fit(numbers)


def test_what_is_there_stays_and_what_is_missing_follows_the_other_column(numbers, fitted):
    filled, there = fitted.transform(numbers), ~np.isnan(numbers)
    np.testing.assert_array_equal(filled[there], numbers[there])
    assert np.isfinite(filled).all() and (filled[:, 2] == 7).all()
    only = there[:, 0] & ~there[:, 1]
    assert np.abs(filled[only, 1] - 3 * numbers[only, 0]).max() < 5  # the column's own spread is 6


def test_samples_differ_where_missing_alone_and_have_the_transform_as_mean(numbers, fitted):
    draws, there = fitted.sample(numbers, 64), ~np.isnan(numbers)
    assert draws.shape == (64, 60, 3) and (np.ptp(draws, axis=0)[there] == 0).all()
    missing = ~there[:, :2]
    assert (draws.std(axis=0)[:, :2][missing] > 0.01).all()
    error = (draws.mean(axis=0) - fitted.transform(numbers))[:, :2][missing]
    assert np.abs(error / draws.std(axis=0)[:, :2][missing]).mean() < 0.5


def test_same_seed_same_numbers_and_a_pickle_keeps_the_model(numbers, fitted):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(numbers), fitted.transform(numbers))
    np.testing.assert_array_equal(clone(fitted).fit(numbers).sample(numbers), fitted.sample(numbers))


def test_categories_are_filled_by_one_of_them():
    rng = np.random.default_rng(0)
    colours = np.array(["red", "blue"])[rng.integers(0, 2, 40)]
    x = np.stack([rng.normal(size=40).astype(object), colours.astype(object), rng.integers(0, 3, 40)], axis=1)
    x[::5, 1], x[::7, 2], x[::11, 0] = "?", None, np.nan
    filled = imputer(categories=(2,)).fit_transform(x)
    assert set(filled[:, 1]) == {"red", "blue"} and {float(v) for v in filled[:, 2]} == {0.0, 1.0, 2.0}
    assert np.isfinite(filled[:, 0].astype(float)).all()


@pytest.mark.parametrize(
    ("given", "x", "words"),
    [
        ({}, [[1.0, np.nan], [2.0, np.nan]], "column 1: no entry is there"),
        ({}, [[1.0, np.inf], [2.0, 1.0]], "infinity"),
        ({"fields": {"m_step.stepz": 3}}, [[1.0], [2.0]], "stepz"),
    ],
)
def test_mistakes_are_value_errors(given, x, words):
    with pytest.raises(ValueError, match=words):
        DiffEMImputer(**given).fit(np.array(x))


@pytest.mark.slow
@parametrize_with_checks([imputer()])
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)
