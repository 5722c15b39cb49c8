"""Laws with known answers: DiffEM on Gaussians in closed form, sampled and by networks; mixtures with exact posteriors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffem_jax.corruptions import PixelMask, Projection
from diffem_jax.denoisers import BetaMixture, bind, denoising_loss, posterior_denoiser, snr_weight
from diffem_jax.em import make_e_step, make_m_step, make_state, map_examples
from diffem_jax.gaussians import Gaussian, Mixture, sample_posterior, starts
from diffem_jax.metrics import coverage
from diffem_jax.networks import MLP
from diffem_jax.samplers import VarianceExploding, dpmpp_2m_sde, log_uniform_grid
from diffem_jax.storage.reconstructions import index_stream
from diffem_jax.types import Observation
from experiments.theory import exact
from experiments.theory.run import as_gaussian, moments, network_course

TRUTH = exact.Normal(np.array([0.5, -1.0, 0.3]), np.array([[1.0, 0.5, -0.2], [0.5, 0.7, 0.1], [-0.2, 0.1, 0.4]]))
START = exact.Normal(np.zeros(3), 2.0 * np.eye(3))
RNG = np.random.default_rng(0)
FOUR_ROWS = np.array([[1.0, 0.2, 0.0], [0.0, 1.0, 0.3], [0.1, 0.0, 1.0], [0.5, 0.5, 0.0]])
CHANNELS = {
    "one operator": exact.Channel(FOUR_ROWS[None], 0.5),
    "projections": exact.Channel(RNG.normal(size=(6, 2, 3)) / np.sqrt(3), 0.3),
    "masks": exact.Channel(np.stack([np.eye(3)[[0, 1]], np.eye(3)[[0, 2]], np.eye(3)[[1, 2]]]), 0.3),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_the_observation_divergence_falls_every_round_at_the_predicted_rate(name):
    channel = CHANNELS[name]
    laws = exact.course(START, TRUTH, channel, 400)
    values = np.array([exact.observation_kl(TRUTH, law, channel) for law in laws])
    falling = values > 1e-12  # below, rounding decides
    assert falling[:20].all() and (np.diff(values[falling]) < 0).all()
    rate = exact.predicted_rate(TRUTH, channel)
    last = int(np.flatnonzero(values > 1e-10)[-1])
    assert 0.05 < rate < 0.999 and values[last - 1] < 1e-3 * values[0]
    assert values[last] / values[last - 1] == pytest.approx(rate, rel=0.02)
    if name == "one operator":
        # The theorem itself, with what the round moved; exact rounds stay Gaussian here.
        moved = np.array([exact.kl(b, a) for a, b in itertools.pairwise(laws[:21])])
        assert (values[1:21] <= values[:20] - moved + 1e-12).all() and moved[0] > 0.01


def test_sampled_rounds_follow_the_exact_course():
    """Within 4 errors of the mean over replicates, and the bias p / N per round of p = 9 parameters from N draws."""
    channel, count, rounds, replicates = CHANNELS["projections"], 3000, 5, 8
    corruption = Projection(shape=(3,), measurements=2, noise_std=channel.noise_std)
    operators = jnp.asarray(np.repeat(channel.operators, count // 6, axis=0), jnp.float32)
    wanted = [exact.observation_kl(TRUTH, law, channel) for law in exact.course(START, TRUTH, channel, rounds)]

    def e_step(key, law, observations):
        mixture = Mixture(jnp.zeros(1), jax.tree.map(lambda a: a[None], law))
        keys = jax.random.split(key, count)
        return jax.vmap(lambda k, o: sample_posterior(k, corruption, mixture, o))(keys, observations)

    step = jax.jit(e_step)
    courses = []
    for replicate in range(replicates):
        rng = np.random.default_rng(replicate)
        x = rng.multivariate_normal(TRUTH.mean, TRUTH.cov, count)
        y = np.einsum("nmd,nd->nm", operators, x) + channel.noise_std * rng.normal(size=(count, 2))
        observations, law = Observation(jnp.asarray(y, jnp.float32), operators), START
        values = [exact.observation_kl(TRUTH, law, channel)]
        for number in range(rounds):
            law = moments(step(jax.random.key(100 * replicate + number), as_gaussian(law), observations))
            values.append(exact.observation_kl(TRUTH, law, channel))
        courses.append(values)
    courses = np.array(courses)
    error = courses.std(0, ddof=1) / np.sqrt(replicates)
    off = np.abs(courses.mean(0) - wanted)
    assert (off <= 4 * error + np.arange(rounds + 1) * 9 / count).all(), (courses.mean(0), wanted, error)
    assert (np.diff(courses, axis=1) < 0).all() and wanted[-1] < 0.3 * wanted[0]


@pytest.mark.slow
def test_network_rounds_follow_within_their_score_error():
    """Each round stays below the theorem's bound, and within the sum of its score errors of the exact course."""

    def course(**sizes):
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules promote integers by themselves
            return network_course(**sizes)

    rows = course(rounds=3, updates=300, count=4096)
    total = 0.0
    for before, row in itertools.pairwise(rows):
        total += row.error
        assert row.kl <= row.bound and row.kl < before.kl
        # The first course starts from a finite sample too.
        assert abs(row.kl - row.exact) <= total + abs(rows[0].kl - rows[0].exact) and row.error < 0.15
    assert rows[-1].kl < 0.1 * rows[0].kl
    # A network that has hardly been trained is told by its score error.
    assert course(rounds=1, updates=5, count=2048)[1].error > 5 * rows[1].error


def _mixture():
    means = np.array([[1.2, 0.8], [-1.0, 0.9], [0.1, -1.1]])
    factors = np.array([[[0.3, 0.2]], [[0.3, -0.2]], [[0.4, 0.0]]])
    parts = Gaussian(means, np.full((3, 2), 0.03), factors)
    law = Mixture(np.log([0.4, 0.3, 0.3]), parts)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), law)


def _draw_mixture(law, count, seed):
    rng = np.random.default_rng(seed)
    which = rng.choice(3, count, p=[0.4, 0.3, 0.3])
    z, e = rng.normal(size=(count, 1)), rng.normal(size=(count, 2))
    mean, variance, factor = (np.asarray(leaf)[which] for leaf in law.components)
    return (mean + z * factor[:, 0] + np.sqrt(variance) * e).astype(np.float32)


def _sliced(a, b):
    """The mean over observations of the sliced W2^2 between two sets of draws [S, N, 2]."""
    angles = np.linspace(0, np.pi, 16, endpoint=False)
    axes = np.stack([np.cos(angles), np.sin(angles)])
    return float(np.mean((np.sort(a @ axes, axis=0) - np.sort(b @ axes, axis=0)) ** 2))


def _learnt_draws(corruption, observations, held_out, draws, rounds=2, updates=1500, batch=512):
    """The pipeline on observations alone: a mixture start, then network rounds; posterior draws for the held-out ones."""
    schedule, count = VarianceExploding(1e-2, 20.0), len(observations.y)
    options = {"rank": 1, "components": 3, "iterations": 250, "tolerance": 1e-7}
    base = starts.fit(jax.random.key(5), corruption, observations, **options).mixture
    denoiser = posterior_denoiser(MLP(features=(64, 64), embedding=16), schedule, corruption, (2,), base)
    loss = denoising_loss(denoiser, schedule, corruption, BetaMixture(((2.0, 2.0),)), snr_weight)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, updates, alpha=0.01))
    m_step = jax.jit(make_m_step(loss, optimizer, ema_decay=0.99))
    bound = make_e_step(lambda p, o: bind(denoiser, p, o), dpmpp_2m_sde(schedule), log_uniform_grid(schedule, 64), (2,))
    e_step = jax.jit(bound)
    start = jax.jit(map_examples(starts.make_start_draw(corruption)))
    x = np.asarray(start(jax.random.key(6), base, observations, jnp.arange(count)))
    params, slots = denoiser.init(jax.random.key(7)), jnp.tile(jnp.arange(batch, dtype=jnp.int32), (updates, 1))
    for number in range(rounds):
        batches = index_stream(0, number, count, batch)
        chosen = np.stack([next(batches) for _ in range(updates)])
        with jax.numpy_dtype_promotion("standard"):
            state, _ = m_step(jax.random.key(10 + number), make_state(params, optimizer), x[chosen], slots)
        params = state.params
        x = np.asarray(e_step(jax.random.key(20 + number), state.ema_params, observations, jnp.arange(count)))
    given = (state.ema_params, held_out, jnp.arange(len(held_out.y)))
    return np.stack([np.asarray(e_step(jax.random.key(100 + s), *given)) for s in range(draws)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masks", "projections"])
def test_posterior_of_a_mixture_is_learnt_from_observations(name):
    """Against exact draws; a calibrated posterior misses 2% of 50, 80 or 95% with probability under 10%, a wrong noise always."""
    law, levels, count, size, draws = _mixture(), (0.5, 0.8, 0.95), 8192, 2048, 40
    kinds = {"masks": (PixelMask, {"rate": 0.3}), "projections": (Projection, {"measurements": 1})}
    kind, options = kinds[name]
    right, wrong = (kind(shape=(2,), noise_std=noise, **options) for noise in (0.15, 0.05))
    sample = jax.jit(jax.vmap(right.sample))
    observations = sample(jax.random.split(jax.random.key(1), count), _draw_mixture(law, count, 1))
    truth = _draw_mixture(law, size, 2)
    held_out = sample(jax.random.split(jax.random.key(2), size), truth)
    exact_draw = jax.jit(jax.vmap(lambda k, o: sample_posterior(k, right, law, o)))
    keys = jax.random.split(jax.random.key(0), (2, draws, size))
    ideal = [np.stack([exact_draw(one, held_out) for one in some]) for some in keys]
    floor = _sliced(*ideal)

    def matches(x):
        off = max(abs(e.value - level) for e, level in zip(coverage(x, truth, levels), levels, strict=True))
        distance = _sliced(x, ideal[0]) - floor
        print(f"{name}: coverage off by {off:.4f}, sliced distance {distance:.4f} above a floor of {floor:.4f}")
        return off < 0.02 and distance < 0.02

    assert matches(ideal[1]) and matches(_learnt_draws(right, observations, held_out, draws))
    assert not matches(_learnt_draws(wrong, observations, held_out, draws))
