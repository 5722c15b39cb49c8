"""The law of t matched to the loss: what is measured, that the objective stays, and that a resumed run has the same law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults.command import command
from faults.harness import arguments, assert_same, result
from ml_collections import ConfigDict

from diffem_jax import matched, rounds, schedules
from diffem_jax.build import make_loss, make_model, make_setup
from diffem_jax.config import default
from diffem_jax.gaussians import Mixture
from diffem_jax.linalg import Gaussian
from diffem_jax.types import UserError

SHAPE = (4, 4, 1)


def setup_of(**changes):
    config = default()
    with config.unlocked():
        config.corruption = ConfigDict({"name": "pixel_mask", "rate": 0.5, "noise_std": 0.0, "per_channel": False})
        config.network = ConfigDict({"name": "mlp", "features": (8,), "embedding": 4})
    config.m_step.time_law = "matched"
    for name, value in changes.items():
        *sections, field = name.split("__")
        (config[sections[0]] if sections else config)[field] = value
    return make_setup(config, SHAPE)


def start_of(std):
    """Two components of equal law, so that the start is N(0, std^2 I)."""
    component = Gaussian(jnp.zeros((2, *SHAPE)), jnp.full((2,), std**2), jnp.zeros((2, 1, *SHAPE)))
    return Mixture(jnp.log(jnp.array([0.25, 0.75])), component)


def sizes_of(setup, *stds):
    sizes = jax.jit(lambda start: matched.loss_sizes(jax.random.key(0), setup, start))
    return [np.asarray(sizes(start_of(std))) for std in stds]


def test_sizes_of_a_start_that_is_known():
    """The published weight is the inverse of what is open of N(0, I): half of the pixels have a loss of 1, at every level."""
    flat, narrow = sizes_of(setup_of(), 1.0, 0.1)
    assert flat.shape == (matched.LEVELS,)
    np.testing.assert_allclose(flat, 0.5, rtol=0.25)
    # A start of a tenth of the spread: x_t says all at small noise and nothing at large.
    np.testing.assert_allclose(narrow[[0, -1]] / flat[[0, -1]], [1.0, 0.01], rtol=0.05)
    assert (np.diff(narrow) < 1e-3).all()


def test_an_unconditional_network_has_all_to_explain():
    setup = setup_of()
    setup.config.method = "em_mmps"
    np.testing.assert_allclose(sizes_of(setup, 1.0)[0], 1.0, rtol=0.25)


def test_a_weight_by_the_base_leaves_nothing_to_match():
    setup = setup_of(m_step__loss_weight="base", denoiser__base="start_moments")
    np.testing.assert_allclose(matched.loss_sizes(jax.random.key(0), setup, start_of(0.1)), 1.0, rtol=0.3)


@pytest.fixture(scope="module")
def settled():
    return matched.settle(setup_of(), start_of(0.1))


def test_the_law_is_the_same_wherever_it_is_settled(settled):
    restored = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), start_of(0.1))
    again = matched.settle(setup_of(parallel="jit"), restored)
    assert again.time_law == settled.time_law and isinstance(again.time_law, schedules.Matched)
    # Beside it nothing changes, and other laws stay.
    assert settled.time_law.base == setup_of().time_law
    plain = setup_of(m_step__time_law="uniform")
    assert matched.settle(plain, start_of(0.1)) is plain


def test_the_objective_stays_and_its_estimate_has_less_spread(settled):
    """The loss of the untrained network, which is the start's own: many keys under both laws."""
    x = 0.1 * jax.random.normal(jax.random.key(5), SHAPE)

    def losses(setup, seed):
        denoiser = make_model(setup, start_of(0.1)).denoiser
        loss, params = make_loss(setup, denoiser, setup.corruption), denoiser.init(jax.random.key(0))
        keys = jax.random.split(jax.random.key(seed), 8192)
        return np.asarray(jax.jit(jax.vmap(lambda key: loss(params, key, x)))(keys), np.float64)

    plain, weighted = losses(setup_of(), 1), losses(settled, 2)
    assert abs(plain.mean() - weighted.mean()) < 4.5 * np.hypot(plain.std(), weighted.std()) / np.sqrt(len(plain))
    assert weighted.std() < 0.9 * plain.std()


@pytest.mark.parametrize("found", [0.0, float("nan"), float("inf")])
def test_a_start_without_a_loss_is_refused(found, monkeypatch):
    monkeypatch.setattr(matched, "loss_sizes", lambda *args: jnp.full((5,), found))
    with pytest.raises(UserError, match=r"m_step\.time_law: 'matched'"):
        matched.settle(setup_of(), start_of(1.0))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["pmap", "jit"])
def test_a_killed_run_ends_with_the_same_bits(parallel, tmp_path, monkeypatch):
    flags = arguments(m_step__time_law="matched", eval__metrics="()", parallel=parallel)
    assert command(*flags, f"--workdir={tmp_path / 'whole'}").code == 0
    save = rounds.Run._save_rolling

    def dying(self, number, state, course):
        save(self, number, state, course)
        if number == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rounds.Run, "_save_rolling", dying)
        assert command(*flags, f"--workdir={tmp_path / 'run'}").code == 130
    assert command(*flags, f"--workdir={tmp_path / 'run'}").code == 0
    assert_same(tmp_path / "run", result(tmp_path / "whole"))
