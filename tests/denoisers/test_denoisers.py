"""Preconditionings around exact network terms, ignored and hidden observations, and the denoising loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffem_jax.corruptions import GaussianBlur, PixelMask
from diffem_jax.denoisers.denoiser import Denoiser, bind
from diffem_jax.denoisers.edm import edm_denoiser, mixture_denoiser
from diffem_jax.denoisers.losses import Example, Uniform, denoising_loss, snr_weight
from diffem_jax.denoisers.posterior import left_open, moments_denoiser, posterior_denoiser, start_denoiser
from diffem_jax.gaussians.gaussians import Mixture, posterior_moments, sample_posterior
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.networks.mlp import MLP
from diffem_jax.samplers.schedules import SCHEDULES
from diffem_jax.types import Observation

D, NOISE = 3, 0.4
CORRUPTION = PixelMask(shape=(D,), rate=0.5, noise_std=NOISE)
OBSERVATION = Observation(jnp.array([0.9, 0.0, -0.4]), jnp.array([1.0, 0.0, 1.0]))
MEAN = np.array([0.3, -0.5, 0.1])
COV = np.array([[1.0, 0.7, 0.2], [0.7, 1.2, -0.3], [0.2, -0.3, 0.6]])
BASE_MEAN, BASE_VARIANCE = 0.2, 0.8
TIMES = jnp.array([0.0, 0.4, 0.7, 1.0])
X_T, T = jnp.array([0.5, -1.0, 0.3]), jnp.float32(0.6)
NETWORK = MLP(features=(8,), embedding=4)


def base(variance=BASE_VARIANCE):
    part = Gaussian(jnp.full((1, D), BASE_MEAN), jnp.full((1,), variance), jnp.zeros((1, 0, D)))
    return Mixture(jnp.zeros((1,)), part)


def at_all_times(function):
    """What a function of t yields at each of TIMES, stacked, by one program."""
    return jax.jit(jax.vmap(function))(TIMES)


def schedule_of(name="ve"):
    return SCHEDULES[name](sigma_min=0.05, sigma_max=20.0)


def two_components():
    keys = jax.random.split(jax.random.key(3), 2)
    means, factors = jax.random.normal(keys[0], (2, D)), 0.5 * jax.random.normal(keys[1], (2, 1, D))
    return Mixture(jnp.log(jnp.array([0.3, 0.7])), Gaussian(means, jnp.full((2, D), 0.3), factors))


def exact(x, ratio, y, mask, mean=MEAN, cov=COV):
    """E[x | x + ratio z, y] by precisions."""
    inverse = jnp.asarray(np.linalg.inv(cov), jnp.float32)
    precision = inverse + jnp.diag(mask / NOISE**2) + jnp.eye(len(x)) / ratio**2
    return jnp.linalg.solve(precision, inverse @ jnp.float32(mean) + mask * y / NOISE**2 + x / ratio**2)


class EdmTerm(nn.Module):
    """The residual that c_skip x + c_out F still lacks."""

    @nn.compact
    def __call__(self, x, noise, condition, train=False):
        def one(x, noise, condition):
            ratio, y, mask = jnp.exp(noise), condition[:D], condition[D:]
            x = x * jnp.sqrt(ratio**2 + 1)
            return (exact(x, ratio, y, mask) - x / (1 + ratio**2)) * jnp.sqrt(1 + ratio**2) / ratio

        return jax.vmap(one)(x, noise, condition)


class PosteriorTerm(nn.Module):
    """What the base's posterior mean lacks, divided by sqrt(v) and by the projection's eigenvalues."""

    @nn.compact
    def __call__(self, x, noise, condition, train=False):
        def one(x, noise, condition):
            ratio, (m, y, mask) = jnp.exp(noise), jnp.split(condition, 3)
            x = x * jnp.sqrt(BASE_VARIANCE + ratio**2)
            v = BASE_VARIANCE * ratio**2 / (BASE_VARIANCE + ratio**2)
            left = jnp.where(mask > 0, NOISE**2 / (v + NOISE**2), 1.0)
            return (exact(x, ratio, y, mask) - m) / (jnp.sqrt(v) * left)

        return jax.vmap(one)(x, noise, condition)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["edm", "posterior"])
def test_exact_network_term_yields_the_exact_posterior(name, schedule):
    schedule = schedule_of(schedule)
    if name == "edm":
        denoiser = edm_denoiser(EdmTerm(), schedule, CORRUPTION, (D,))
    else:
        denoiser = posterior_denoiser(PosteriorTerm(), schedule, CORRUPTION, (D,), base())

    @at_all_times
    def both(t):
        alpha, sigma = schedule(t)
        x_t = alpha * X_T + sigma
        return bind(denoiser, {}, OBSERVATION)(x_t, t), exact(x_t / alpha, sigma / alpha, *OBSERVATION)

    np.testing.assert_allclose(*both, atol=2e-3)


@pytest.mark.parametrize("prior", ["isotropic", "mixture"])
def test_zero_network_is_the_base(prior):
    """A fresh network outputs zero, so the posterior denoiser is the exact conditional mean of its base."""
    law = base() if prior == "isotropic" else two_components()
    schedule = schedule_of("vp")
    denoiser = posterior_denoiser(NETWORK, schedule, CORRUPTION, (D,), law)
    params = jax.jit(denoiser.init)(jax.random.key(0))
    runs = bind(denoiser, params, OBSERVATION), bind(denoiser, params)
    truths = mixture_denoiser(schedule, law, CORRUPTION, OBSERVATION), mixture_denoiser(schedule, law)
    given, free, *truth = jax.jit(lambda *point: [run(*point) for run in (*runs, *truths)])(X_T, T)
    np.testing.assert_allclose([given, free], truth, atol=1e-5)
    assert jnp.abs(given - free).max() > 0.05
    if prior == "isotropic":
        alpha, sigma = schedule(T)
        cov, mean = BASE_VARIANCE * np.eye(D), np.full(D, BASE_MEAN)
        np.testing.assert_allclose(given, exact(X_T / alpha, sigma / alpha, *OBSERVATION, mean, cov), atol=1e-4)


def trained(name):
    make = {"edm": edm_denoiser, "posterior": posterior_denoiser, "moments": moments_denoiser}[name]
    denoiser = make(NETWORK, schedule_of(), CORRUPTION, (D,), *([] if name == "edm" else [two_components()]))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(denoiser.init, jax.random.key(0))
    return denoiser, jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)


@pytest.mark.parametrize("name", ["edm", "posterior", "moments"])
def test_ignored_and_hidden_observations(name):
    denoiser, params = trained(name)
    run = jax.jit(lambda o, seen: denoiser.either(params, denoiser.prepare(o), jnp.asarray(seen), X_T, T, None))
    given, ignored = run(OBSERVATION, True), run(OBSERVATION, False)
    runs = [bind(denoiser, params, OBSERVATION, guidance=guidance) for guidance in (1.0, 2.0)]
    seen, guided, free = jax.jit(lambda *point: [run(*point) for run in (*runs, bind(denoiser, params))])(X_T, T)
    np.testing.assert_allclose([given, ignored], [seen, free], rtol=1e-5)
    assert jnp.abs(given - ignored).max() > 1e-3
    spoiled = OBSERVATION._replace(y=jnp.where(OBSERVATION.operator > 0, OBSERVATION.y, jnp.nan))
    np.testing.assert_array_equal(run(spoiled, True), given)
    np.testing.assert_array_equal(run(spoiled, False), ignored)
    np.testing.assert_allclose(guided - ignored, 2 * (given - ignored), atol=1e-5)


def stub(posterior, prepare=lambda observation: observation, **others):
    """A denoiser that is a function (params, context, x_t, t, dropout) of the observation."""
    rest = {"prior": None, "either": None, "variance": None} | others
    return Denoiser(init=lambda key: jnp.zeros(D), posterior=posterior, prepare=prepare, **rest)


def test_loss_is_zero_at_the_truth_and_weighted_away_from_it():
    x, schedule = jnp.array([0.5, -1.0, 0.3]), schedule_of()
    denoiser = stub(lambda params, *rest: params)
    loss = denoising_loss(denoiser, schedule, CORRUPTION, Uniform(), snr_weight)
    assert loss(x, jax.random.key(0), x) == 0
    value = jax.jit(lambda weight_key: loss(x + 2.0, weight_key, x))(jax.random.key(0))
    assert value >= 4 * (1 / 20.0**2 + 1) * 0.99
    plain = denoising_loss(denoiser, schedule, CORRUPTION, Uniform(), lambda sigma, data_std: jnp.ones(()))
    np.testing.assert_allclose(plain(x + 2.0, jax.random.key(0), x), 4.0, rtol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_what_an_own_observation_left_open_counts_by_the_hidden_weight(weight):
    """Reconstructions that are 1 where they were measured and 0 where not: the loss is least at p / (p + h (1 - p))."""
    own, noise = jnp.array([1.0, 1.0, 0.0]), CORRUPTION.noise_std
    denoiser = stub(lambda params, *rest: jnp.broadcast_to(params, (D,)))
    flat = lambda sigma, data_std: jnp.ones(())  # noqa: E731
    loss = denoising_loss(denoiser, schedule_of(), CORRUPTION, Uniform(), flat, hidden_weight=weight)
    example = Example(own, own=own) if weight < 1 else own
    best = 2 / (2 + weight)
    assert abs(float(jax.grad(loss)(jnp.float32(best), jax.random.key(0), example))) < 3 * noise**2
    counted = weight + (1 - weight) / (1 + noise**2)
    expected = (2 * 0.5**2 * counted + weight * 1.5**2) / 3
    np.testing.assert_allclose(loss(jnp.float32(1.5), jax.random.key(0), example), expected, rtol=1e-5)


def test_loss_draws_everything_afresh_and_augments_first():
    """Every call draws its own mask, noise and time, and the observation belongs to the augmented x."""
    told = stub(lambda params, context, x_t, t, dropout: jnp.stack([jnp.sum(context.operator), t, x_t[0]]))
    loss = denoising_loss(told, schedule_of(), CORRUPTION, Uniform(), lambda sigma, data_std: jnp.ones(()))
    run = jax.jit(jax.vmap(lambda key: loss(None, key, jnp.zeros(D))))
    seen = run(jax.random.split(jax.random.key(0), 16))
    assert len(np.unique(np.asarray(seen))) == 16
    clear = PixelMask(shape=(D,), rate=0.0, noise_std=0.0)
    keys = []

    def augment(key, x):
        keys.append(key)
        return x[::-1] + 1.0

    echo = stub(lambda params, context, *rest: context.y)
    loss = denoising_loss(echo, schedule_of(), clear, Uniform(), snr_weight, augment=augment)
    assert loss(None, jax.random.key(0), jnp.array([0.5, -1.0, 0.3])) < 1e-10 and keys


def test_condition_dropout_and_network_dropout_reach_the_denoiser():
    def either(params, context, seen, x_t, t, dropout):
        assert dropout is not None
        return jnp.where(seen, jnp.ones(D), jnp.zeros(D))

    parts = (stub(None, either=either), schedule_of(), CORRUPTION, Uniform(), lambda s, d: jnp.ones(()))
    loss = denoising_loss(*parts, condition_dropout=0.25)
    kept = jax.jit(jax.vmap(lambda key: loss(None, key, jnp.zeros(D))))(jax.random.split(jax.random.key(0), 4096))
    assert set(np.unique(kept).tolist()) == {0.0, 1.0}
    assert abs(float(jnp.mean(kept)) - 0.75) < 5 * np.sqrt(0.25 * 0.75 / 4096)


@pytest.mark.parametrize("name", ["mask", pytest.param("blur", marks=pytest.mark.slow)])
def test_posterior_moments_are_those_of_exact_draws(name):
    corruption = CORRUPTION if name == "mask" else GaussianBlur(shape=(6, 6, 1), std=1.0, noise_std=0.1)
    keys, shape = jax.random.split(jax.random.key(8), 4), corruption.shape
    mean, factor = jax.random.normal(keys[1], (2, *shape)), 0.5 * jax.random.normal(keys[0], (2, 2, *shape))
    variance = jnp.full((2, *shape) if name == "mask" else (2,), 0.2)
    law = Mixture(jnp.log(jnp.array([0.4, 0.6])), Gaussian(mean, variance, factor))
    observation = corruption.sample(keys[2], jnp.full(shape, 0.5))
    mean, var = jax.jit(lambda o: posterior_moments(corruption, law, o))(observation)
    draw = jax.jit(jax.vmap(lambda k: sample_posterior(k, corruption, law, observation)))
    draws = np.asarray(draw(jax.random.split(keys[3], 20_000)))
    np.testing.assert_allclose(mean, draws.mean(0), atol=0.04)
    found, tolerance = (draws.var(0), 0.08) if name == "mask" else (draws.var(0).mean(), 0.3)
    np.testing.assert_allclose(np.mean(var) if name == "blur" else var, found, rtol=tolerance, atol=1e-3)


def test_moments_base_without_a_network_is_the_starts_answer():
    """At large noise its posterior mean, at small noise x_t where nothing is seen; exact for independent coordinates."""
    schedule, law = schedule_of(), two_components()
    fresh = moments_denoiser(NETWORK, schedule, CORRUPTION, (D,), law)
    params = jax.jit(fresh.init)(jax.random.key(0))
    run = jax.jit(bind(fresh, params, OBSERVATION))
    mean, _ = jax.jit(lambda: posterior_moments(CORRUPTION, law, OBSERVATION))()
    np.testing.assert_allclose(run(jnp.full(D, 9.0), jnp.float32(1.0)), mean, atol=0.05)
    np.testing.assert_allclose(run(jnp.full(D, 0.7), jnp.float32(0.0))[1], 0.7, atol=0.02)
    plain = elementwise()
    alone = moments_denoiser(NETWORK, schedule, CORRUPTION, (D,), plain)
    truth = mixture_denoiser(schedule, plain, CORRUPTION, OBSERVATION)
    found = at_all_times(lambda t: (bind(alone, params, OBSERVATION)(X_T, t), truth(X_T, t)))
    np.testing.assert_allclose(*found, atol=1e-4)


def test_loss_weighted_by_the_base_is_one_where_the_base_is_right():
    """The squared error over what the base leaves open averages to one at every noise level."""
    schedule = schedule_of()
    denoiser = moments_denoiser(NETWORK, schedule, CORRUPTION, (D,), elementwise())
    params = jax.jit(denoiser.init)(jax.random.key(0))
    x = BASE_MEAN + BASE_VARIANCE**0.5 * jax.random.normal(jax.random.key(1), (20_000, D))
    loss = denoising_loss(denoiser, schedule, CORRUPTION, Uniform(), None)
    values = jax.jit(jax.vmap(loss, (None, 0, 0)))(params, jax.random.split(jax.random.key(2), len(x)), x)
    np.testing.assert_allclose(np.mean(values), 1.0, atol=0.03)


@pytest.mark.parametrize("prior", ["gaussian", "mixture"])
def test_without_an_observation_the_first_denoisers_are_the_start(prior):
    """Both the prior of its own and the posterior's network that ignores y, in mean and in what they leave open."""
    schedule, law = schedule_of(), low_rank() if prior == "gaussian" else two_components()
    both = start_denoiser(NETWORK, schedule, (D,), law), moments_denoiser(NETWORK, schedule, CORRUPTION, (D,), law)
    truth, x, z = mixture_denoiser(schedule, law), sample_mixture(3, law, 40_000), np.random.default_rng(4)
    noise = jnp.asarray(z.normal(size=x.shape), jnp.float32)
    runs = [bind(denoiser, jax.jit(denoiser.init)(jax.random.key(0))) for denoiser in both]

    @at_all_times
    def found(t):
        alpha, sigma = schedule(t)
        left = jnp.mean((jax.vmap(truth, (0, None))(alpha * x + sigma * noise, t) - x) ** 2)
        return [run(X_T, t) for run in runs], truth(X_T, t), left

    draws, expected, left = found
    for denoiser, draw in zip(both, draws, strict=True):
        np.testing.assert_allclose(draw, expected, rtol=1e-4, atol=1e-5)
        for i, t in enumerate(TIMES):
            (alpha, sigma), variance = schedule(t), denoiser.variance(t, None)
            np.testing.assert_allclose(variance, left_open(law)(sigma / alpha), rtol=1e-5)
            # Of a mixture it is an estimate, too large where noise hides some of which component it was.
            np.testing.assert_allclose(variance, left[i], rtol=0.05 if prior == "gaussian" else 0.8)


def elementwise(*variance):
    law, variance = base(), variance or (BASE_VARIANCE,) * D
    return law._replace(components=law.components._replace(variance=jnp.array([variance])))


@pytest.mark.parametrize("make", [posterior_denoiser, moments_denoiser])
def test_variance_is_what_x_t_and_y_leave_open(make):
    """By coordinate, exact where coordinates are independent; for correlated ones never too small on average."""
    schedule = schedule_of("vp")
    for law in (elementwise(0.8, 0.5, 1.2), low_rank()):
        denoiser = make(NETWORK, schedule, CORRUPTION, (D,), law)
        cov = np.diag(law.components.variance[0]) + law.components.factor[0].T @ law.components.factor[0]
        variances = at_all_times(lambda t, denoiser=denoiser: denoiser.variance(t, denoiser.prepare(OBSERVATION)))
        for t, found in zip(TIMES, variances, strict=True):
            alpha, sigma = schedule(t)
            precision = np.linalg.inv(cov) + np.diag(OBSERVATION.operator) / NOISE**2 + np.eye(D) * (alpha / sigma) ** 2
            exact = np.diagonal(np.linalg.inv(precision))
            if law.components.factor.shape[1] == 0:
                np.testing.assert_allclose(found, exact, rtol=1e-4)
            else:
                assert np.mean(exact) - 1e-6 <= np.mean(found) <= 2 * np.mean(exact)


@pytest.mark.parametrize("make", [posterior_denoiser, moments_denoiser])
def test_variance_behind_a_blur_is_an_average(make):
    shape, schedule = (6, 6, 1), schedule_of()
    corruption = GaussianBlur(shape=shape, std=1.0, noise_std=0.1)
    law = Mixture(jnp.zeros(1), Gaussian(jnp.zeros((1, *shape)), jnp.ones(1), jnp.zeros((1, 0, *shape))))
    denoiser, y = make(NETWORK, schedule, corruption, shape, law), jnp.ones(shape)
    observation = Observation(y, corruption.draw_operator(jax.random.key(0)))
    seen = denoiser.prepare(observation)
    given, free = at_all_times(lambda t: (denoiser.variance(t, seen), denoiser.variance(t, None)))
    assert given.shape == free.shape == TIMES.shape and (given > 0).all() and (given <= free).all()


def test_variance_of_the_published_preconditioning_is_that_of_isotropic_x():
    denoiser = edm_denoiser(NETWORK, schedule_of("vp"), CORRUPTION, (D,), 1.7)
    alpha, sigma = jax.vmap(schedule_of("vp"))(TIMES)
    expected = 1 / (1 / 1.7**2 + (alpha / sigma) ** 2)
    context = denoiser.prepare(OBSERVATION)
    found = at_all_times(lambda t: (denoiser.variance(t, context), denoiser.variance(t, None)))
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-5)


def low_rank():
    factor = jnp.array([[[1.5, -1.0, 0.5]]])
    return Mixture(jnp.zeros((1,)), Gaussian(jnp.full((1, D), 0.3), jnp.full((1, D), 0.04), factor))


def sample_mixture(seed, law, count):
    rng = np.random.default_rng(seed)
    k = rng.choice(len(law.log_weights), count, p=np.exp(law.log_weights))
    part = jax.tree.map(np.asarray, law.components)
    own = np.broadcast_to(part.variance.reshape(len(part.mean), -1), part.mean.shape)[k]
    latent = rng.normal(size=(count, part.factor.shape[1]))
    x = part.mean[k] + np.einsum("nr,nrd->nd", latent, part.factor[k]) + np.sqrt(own) * rng.normal(size=(count, D))
    return jnp.asarray(x, jnp.float32)
