"""Measures: known numbers, invariances, other implementations, and standard errors that are honest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ott.geometry import pointcloud
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn
from scipy import linalg
from skimage.metrics import structural_similarity
from sklearn.datasets import load_digits

from diffem_jax import metrics
from diffem_jax.corruptions import PixelMask
from diffem_jax.errors import UserError


def key(seed=0):
    return jax.random.key(seed)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def curve(count, seed):
    t = np.random.default_rng(seed).uniform(0, 2 * np.pi, size=(count, 1))
    return (2 * np.cos(t * np.arange(1, 6) + np.arange(5))).astype(np.float32)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.images[..., None] / 4 - 2).astype(np.float32), data.target


def within(estimate, expected, errors=4.0):
    assert abs(estimate.value - expected) < errors * estimate.standard_error, (estimate, expected)


# Paired.


def test_psnr():
    """An error of a tenth of the range is 20 dB; of the whole set, examples weigh by their error."""
    x = normal(6, 4, 4, 1)
    estimate = metrics.psnr(x + 0.4, x)
    assert estimate.value == pytest.approx(20.0, abs=1e-4) and estimate.samples == 6
    assert estimate.standard_error == pytest.approx(0.0, abs=1e-4)
    assert metrics.psnr(x + 0.4, x, data_range=40.0).value == pytest.approx(40.0, abs=1e-4)
    assert 100 < metrics.psnr(x, x).value < np.inf and metrics.psnr(x[:1], x[:1]).standard_error is None
    zeros = np.zeros((2, 100), np.float32)
    off = zeros + np.array([[0.04], [0.4]], np.float32)
    assert metrics.psnr_per_example(off, zeros).value == pytest.approx(30.0, abs=1e-3)
    assert 20 < metrics.psnr(off, zeros).value < 24
    with pytest.raises(UserError, match="reconstructions"):
        metrics.psnr(x, x[:2])


def test_standard_error_of_psnr_is_the_scatter_over_sets():
    scale = np.exp(0.5 * normal(200, 50, 1, seed=3))
    noise = scale * normal(200, 50, 16)
    estimates = [metrics.psnr(e, np.zeros_like(e)) for e in noise]
    scatter = np.std([e.value for e in estimates])
    assert np.mean([e.standard_error for e in estimates]) == pytest.approx(scatter, rel=0.25)


def test_ssim_is_the_published_one():
    x = np.clip(normal(2, 24, 20, 3), -2, 2)
    y = np.clip(0.8 * x + 0.4 * normal(*x.shape), -2, 2)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 4.0}
    right = [structural_similarity(a, b, channel_axis=-1, **options) for a, b in zip(x, y, strict=True)]
    assert metrics.ssim(x, y).value == pytest.approx(np.mean(right), rel=1e-4)
    one = [metrics.ssim(a, b).value for a, b in ((x[..., 0], y[..., 0]), (x[..., :1], y[..., :1]))]
    assert one[0] == pytest.approx(one[1])
    with pytest.raises(UserError, match="ssim"):
        metrics.ssim(normal(5, 7), normal(5, 7))


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_all_256_levels_survive_the_round_trip(convert):
    levels = np.arange(256, dtype=np.uint8)
    x = levels.astype(np.float32) * np.float32(4 / 255) - np.float32(2)
    np.testing.assert_array_equal(metrics.to_uint8(convert(x)), levels)
    # Rounding to the nearest: a third of a level either way changes nothing, and what is outside is clipped.
    for shift in (-4 / 255 / 3, 4 / 255 / 3):
        np.testing.assert_array_equal(metrics.to_uint8(convert(x + np.float32(shift))), levels)
    np.testing.assert_array_equal(metrics.to_uint8(np.array([-9.0, 9.0])), [0, 255])


def test_classifier_on_digits(digits):
    x, labels = digits
    classifier = metrics.train_classifier(x[:1000], labels[:1000])
    clean = metrics.accuracy(classifier, x[1000:], labels[1000:])
    assert clean.value > 0.88 and clean.samples == 797 and 0 < clean.standard_error < 0.02
    noisy = metrics.accuracy(classifier, x[1000:] + 2 * normal(797, 8, 8, 1), labels[1000:])
    chance = metrics.accuracy(classifier, x[1000:][::-1], labels[1000:])
    assert clean.value > noisy.value > chance.value


# Transport.


def ott_cost(x, y, iterations):
    # ott-jax itself is not written for strict promotion.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
        geometry = pointcloud.PointCloud(jnp.asarray(x), jnp.asarray(y), epsilon=1e-3)
        counts = dict.fromkeys(("min_iterations", "max_iterations", "inner_iterations"), iterations)
        solver = sinkhorn.Sinkhorn(threshold=-1.0, **counts)
        out = jax.jit(solver)(linear_problem.LinearProblem(geometry))
        return float(jnp.sum(out.matrix * geometry.cost_matrix))


CLOUDS = {
    # Mass must move between clusters: the scalings grow without end until the potentials have bridged the gap.
    "clusters": lambda: (
        0.05 * normal(501, 5) + 0.4 * (np.arange(501)[:, None] > 0),
        0.05 * normal(501, 5, seed=1) + 0.4 * (np.arange(501)[:, None] > 499),
    ),
    "noisy": lambda: (curve(256, 0), curve(256, 1) + 0.3 * normal(256, 5)),
    "far": lambda: (curve(256, 0), curve(200, 1) * 3 + 5),
}


@pytest.mark.parametrize("iterations", [5, 101])
@pytest.mark.parametrize("name", CLOUDS)
def test_sinkhorn_cost_is_that_of_ott(name, iterations):
    x, y = CLOUDS[name]()
    # Far costs are 100,000 times the regularization, where ott-jax's float32 potentials hold 3 digits.
    tolerance = 5e-3 if name == "far" else 3e-4
    ours = metrics.sinkhorn_cost(x, y, iterations=iterations).value
    assert ours == pytest.approx(ott_cost(x, y, iterations), rel=tolerance)
    with pytest.raises(UserError, match="sinkhorn_cost"):
        metrics.sinkhorn_cost(x, y[:, :3])


def test_sinkhorn_divergence():
    truth = curve(600, 0)
    floor = metrics.sinkhorn_floor(truth, rows=200)
    shift = np.full(5, 0.3, np.float32)
    fresh = metrics.sinkhorn_divergence(curve(300, 5), truth, rows=200, floor=floor)
    shifted = metrics.sinkhorn_divergence(curve(300, 5) + shift, truth, rows=200, floor=floor)
    assert floor > 0 and abs(fresh.value) < 0.5 * floor
    assert fresh.samples == 200 and 0 < fresh.standard_error < floor
    # Moving one side by c moves the squared cost by |c|^2 and a term in the difference of the means.
    assert shifted.value - fresh.value == pytest.approx(0.45, rel=0.4)
    assert metrics.sinkhorn_divergence(truth, truth, rows=200).value == pytest.approx(-floor, rel=0.3)
    assert metrics.sinkhorn_divergence(curve(300, 5), truth, rows=200).value == fresh.value
    # Only the first rows of the reconstructions count; few rows of truth are halved.
    assert metrics.sinkhorn_divergence(curve(300, 5)[:200], truth, rows=200, floor=floor).value == fresh.value
    assert metrics.sinkhorn_divergence(truth, truth[:100]).samples == 50
    with pytest.raises(UserError, match="150 reconstructions"):
        metrics.sinkhorn_divergence(truth[:150], truth, rows=200)
    with pytest.raises(UserError, match="non-empty"):
        metrics.sinkhorn_floor(truth[:1])


@pytest.mark.parametrize("paired", [True, False])
def test_the_standard_error_of_a_divergence_is_its_scatter(paired):
    found = []
    for seed in range(60):
        x = normal(128, 2, seed=2 * seed) * np.float32([1.0, 2.0])
        y = 2 * x + 1 if paired else 2 * normal(128, 2, seed=2 * seed + 1) + 1
        found.append(metrics.sinkhorn_divergence(y, x, 1.0, 256, rows=128, floor=0.0))
    scatter = np.std([f.value for f in found], ddof=1)
    assert np.mean([f.standard_error for f in found]) == pytest.approx(scatter, rel=0.3)


def test_sliced_wasserstein_of_a_shift():
    x = normal(500, 8)
    shift = normal(8, seed=1)
    estimate = metrics.sliced_wasserstein(x, x + shift, key(), projections=512)
    within(estimate, np.sum(shift**2) / 8)
    assert estimate.samples == 500 and metrics.sliced_wasserstein(x, x[::-1], key()).value < 1e-10
    again = metrics.sliced_wasserstein(x, x + shift, key(1), projections=512)
    assert again.value != estimate.value
    within(again, estimate.value)
    x, y = normal(20, 3), normal(30, 3, seed=1)
    expected = metrics.sliced_wasserstein(np.repeat(x, 3, axis=0), np.repeat(y, 2, axis=0), key())
    actual = metrics.sliced_wasserstein(x, y, key())
    assert actual.value == pytest.approx(expected.value, rel=1e-4) and actual.samples == 20
    with pytest.raises(UserError, match="sliced_wasserstein"):
        metrics.sliced_wasserstein(x, y[:, :2], key())


def test_observation_distance_ranks_reconstructions_without_clean_data(digits):
    x, corruption = digits[0], PixelMask(shape=(8, 8, 1), rate=0.5, noise_std=1e-2)
    sample = jax.jit(jax.vmap(corruption.sample))

    def observe(seed, images):
        return metrics.observation_features(*sample(jax.random.split(key(seed), len(images)), jnp.asarray(images)))

    others = [observe(2, x[898:1796] + s * normal(898, 8, 8, 1)) for s in (0.0, 0.3, 1.0)]
    distances = [metrics.sliced_wasserstein(observe(1, x[:898]), other, key(), 64).value for other in others]
    assert distances[0] < distances[1] < distances[2]


# Features.


def test_frechet_distance_of_gaussians():
    x = normal(400, 6) @ normal(6, 6, seed=1)
    shift = normal(6, seed=2)
    assert metrics.frechet_distance(x, x).value == pytest.approx(0.0, abs=1e-6)
    assert metrics.frechet_distance(x + shift, x).value == pytest.approx(float(np.sum(shift**2)), rel=1e-4)
    # Between N(0, 4 S) and N(0, S) the map x / 2 is optimal: the cost is the trace of S.
    centered = x - x.mean(axis=0)
    half = metrics.frechet_distance(2 * centered, centered).value
    assert half == pytest.approx(float(np.trace(np.cov(centered.T))), rel=1e-4)
    y = normal(300, 6, seed=3)
    root = linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert metrics.frechet_distance(x, y).value == pytest.approx(float(expected), rel=1e-4)
    assert metrics.frechet_distance(x, y).samples == 300 and metrics.frechet_distance(x[:4], y[:4]).value > 0
    with pytest.raises(UserError, match="frechet_distance"):
        metrics.frechet_distance(x[:1], y)


@pytest.mark.parametrize("moved", ["mean", "both"])
def test_standard_error_of_the_frechet_distance_is_the_scatter_over_sets(moved):
    mix = np.eye(4, dtype=np.float32) + (0.4 * normal(4, 4, seed=5) if moved == "both" else 0)
    x, y = normal(200, 300, 4) @ mix + np.float32(0.7), normal(200, 500, 4, seed=1)
    estimates = [metrics.frechet_distance(a, b) for a, b in zip(x, y, strict=True)]
    scatter = np.std([e.value for e in estimates])
    assert np.mean([e.standard_error for e in estimates]) == pytest.approx(scatter, rel=0.2)


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    same = metrics.kernel_distance(normal(4000, 6), normal(4000, 6, seed=1), block=100)
    within(same, 0.0)
    assert same.samples == 4000
    moved = metrics.kernel_distance(normal(4000, 6) + 0.5, normal(4000, 6, seed=1), block=100)
    assert moved.value > 10 * moved.standard_error
    assert metrics.kernel_distance(normal(50, 6), normal(60, 6)).standard_error is None
    with pytest.raises(UserError, match="kernel_distance"):
        metrics.kernel_distance(normal(1, 6), normal(60, 6))


def test_precision_recall_density_coverage():
    x, y = normal(1200, 4), normal(1100, 4, seed=1)
    same = metrics.precision_recall_density_coverage(x, y)
    assert min(same.precision.value, same.recall.value, same.coverage.value) > 0.85
    within(same.density, 1.0, errors=6)
    assert (same.precision.samples, same.recall.samples) == (1200, 1100)
    collapsed = metrics.precision_recall_density_coverage(0.3 * x, y)
    assert collapsed.precision.value > 0.95 and collapsed.recall.value < 0.3 and collapsed.coverage.value < 0.6
    smeared = metrics.precision_recall_density_coverage(3 * x, y)
    assert smeared.precision.value < 0.5 and smeared.recall.value > 0.95
    far = metrics.precision_recall_density_coverage(x + 50, y)
    assert [e.value for e in far] == [0.0] * 4
    with pytest.raises(UserError, match="k: 5"):
        metrics.precision_recall_density_coverage(x[:5], y)


# Posterior.


def posterior(draws, observations=600, dimensions=3, width=1.0, bias=0.0, seed=0):
    """Exact posteriors N(m, s^2) with m and s of each observation's own; draws of another width or bias."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(observations, dimensions))
    scale = np.exp(rng.normal(size=(observations, dimensions)))
    truth = mean + scale * rng.normal(size=mean.shape)
    samples = mean + scale * (bias + width * rng.normal(size=(draws, *mean.shape)))
    return samples.astype(np.float32), truth.astype(np.float32)


LEVELS = (0.1, 0.5, 0.77, 0.95)
MEASURES = {"coverage": metrics.coverage, "tarp": lambda x, truth, levels: metrics.tarp(x, truth, key(), levels)}


@pytest.mark.parametrize("draws", [1, 7, 64])
@pytest.mark.parametrize("name", MEASURES)
def test_calibrated_draws_give_each_level_back(name, draws):
    samples, truth = posterior(draws)
    estimates = MEASURES[name](samples, truth, LEVELS)
    for estimate, level in zip(estimates, LEVELS, strict=True):
        assert abs(estimate.value - level) < 4 * estimate.standard_error + 1e-6 and estimate.samples == 600


@pytest.mark.parametrize(("change", "sign"), [({"width": 0.3}, -1), ({"width": 3.0}, 1), ({"bias": 1.5}, -1)])
def test_coverage_sees_collapse_smear_and_bias(change, sign):
    found = metrics.coverage(*posterior(64, **change), (0.8,))[0]
    assert sign * (found.value - 0.8) > 10 * found.standard_error


def test_ties_leave_calibration_alone():
    draws, truth = posterior(16)
    for estimate, level in zip(metrics.coverage(np.round(draws), np.round(truth), LEVELS), LEVELS, strict=True):
        within(estimate, level)
    constant = metrics.coverage(np.zeros((4, 5, 2)), np.zeros((5, 2)), LEVELS)
    assert [e.value for e in constant] == pytest.approx(LEVELS)


def test_tarp_sees_what_marginals_hide():
    """Draws with the right marginals but the wrong sign of the correlation."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(33, 2000, 1))
    jitter = 0.1 * rng.normal(size=(33, 2000, 2))
    truth = np.concatenate([z[0], z[0]], axis=1) + jitter[0]
    draws = np.concatenate([z[1:], -z[1:]], axis=2) + jitter[1:]
    for estimate, level in zip(metrics.coverage(draws, truth, LEVELS), LEVELS, strict=True):
        within(estimate, level)
    joint = zip(metrics.tarp(draws, truth, key(), LEVELS), LEVELS, strict=True)
    assert max(abs(e.value - level) / e.standard_error for e, level in joint) > 8


def test_tarp_with_references_that_depend_on_the_observation_sees_the_prior():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2))
    y = x + 0.3 * rng.normal(size=x.shape)
    prior = rng.normal(size=(32, *x.shape))
    blind = metrics.tarp(prior, x, key(), (0.5,))[0]
    within(blind, 0.5)
    seeing = metrics.tarp(prior, x, key(), (0.5,), references=y)[0]
    assert abs(seeing.value - 0.5) > 10 * seeing.standard_error


def test_crps_is_proper_and_unbiased_in_the_number_of_draws():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(4000, 3))
    for count in (2, 5, 40):
        within(metrics.crps(rng.normal(size=(count, 4000, 3)), truth), 1 / np.sqrt(np.pi))
    exact = metrics.crps(rng.normal(size=(40, 4000, 3)), truth)
    for width, bias in ((0.2, 0.0), (2.5, 0.0), (1.0, 0.7)):
        other = metrics.crps(bias + width * rng.normal(size=(40, 4000, 3)), truth)
        assert other.value > exact.value + 4 * other.standard_error
    for draws in (truth[None], rng.normal(size=(4, 10, 3))):
        with pytest.raises(UserError, match="draws"):
            metrics.crps(draws, truth)


def test_spread_is_the_width_of_the_draws():
    draws = 3.0 + 0.7 * normal(400, 30, 4, 4)
    assert metrics.spread(draws).value == pytest.approx(0.7, rel=0.01) and metrics.spread(draws).samples == 30


def test_mean_estimate_is_honest():
    estimates = [metrics.mean_estimate(row) for row in np.random.default_rng(0).exponential(size=(500, 40))]
    inside = np.mean([abs(e.value - 1) < 1.96 * e.standard_error for e in estimates])
    assert 0.88 < inside < 0.97 and metrics.mean_estimate([1.0]) == metrics.Estimate(1.0, None, 1)
