"""Continuous EM: each round redraws a part of the examples, each example equally often, and a killed run ends the same."""

import itertools

import numpy as np
import pytest
from faults.command import command
from faults.harness import arguments, assert_same, result

from diffem_jax import refresh, rounds
from diffem_jax.config import default
from diffem_jax.data import ReconstructionStore

PARTS, BURN_IN, ROUNDS = 2, 1, 4
FLAGS = arguments(
    e_step__parts=PARTS,
    e_step__burn_in=BURN_IN,
    rounds=ROUNDS,
    m_step__steps=10,
    m_step__carry="all",
    eval__metrics="()",
)


def turns(parts, burn_in, numbers, count=10, seed=0):
    config = default()
    config.e_step.parts, config.e_step.burn_in, config.seed = parts, burn_in, seed
    return np.array([refresh.redrawn(config, number, count) for number in numbers])


def test_each_example_is_redrawn_once_a_cycle():
    drawn = turns(3, 2, range(9))
    assert drawn[0].all() and not drawn[1:3].any()
    for cycle in (drawn[3:6], drawn[6:9]):
        assert (cycle.sum(axis=0) == 1).all() and (np.abs(cycle.sum(axis=1) - 10 / 3) < 1).all()
    assert not np.array_equal(drawn[3:6], drawn[6:9])
    assert not np.array_equal(drawn, turns(3, 2, range(9), seed=1))


def test_any_run_of_examples_has_equally_much_to_do():
    drawn = turns(8, 0, range(1, 9), count=64 * 8)
    assert (drawn.reshape(8, 8, 64).sum(axis=-1) == 8).all()


def test_one_part_redraws_everything():
    assert turns(1, 0, range(5)).all()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that keeps the reconstructions of all rounds."""
    workdir = tmp_path_factory.mktemp("refresh") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReconstructionStore, "drop_older", lambda self, *_: [])
        ended = command(*FLAGS, f"--workdir={workdir}")
    assert ended.code == 0, ended
    return workdir


def test_what_is_not_redrawn_stays(whole):
    store = ReconstructionStore(whole / "reconstructions")
    x = [np.asarray(store.round(number).open()) for number in range(ROUNDS + 1)]
    changed = np.array([(a != b).reshape(len(a), -1).any(axis=1) for a, b in itertools.pairwise(x)])
    np.testing.assert_array_equal(changed, turns(PARTS, BURN_IN, range(1, ROUNDS + 1), count=200))
    assert changed[2].sum() == 100 and changed[1:3].sum() == 200


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(whole, tmp_path, monkeypatch):
    calls, write = [], rounds.write_shard

    def dying(stored, shard, x):
        calls.append(stored.round)
        if calls.count(2) == 2:
            raise KeyboardInterrupt
        write(stored, shard, x)

    monkeypatch.setattr(ReconstructionStore, "drop_older", lambda self, *_: [])
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "write_shard", dying)
        assert command(*FLAGS, f"--workdir={tmp_path / 'run'}").code == 130
    assert ReconstructionStore(tmp_path / "run" / "reconstructions").round(2).done_shards().shards
    assert command(*FLAGS, f"--workdir={tmp_path / 'run'}").code == 0
    assert_same(tmp_path / "run", result(whole))
