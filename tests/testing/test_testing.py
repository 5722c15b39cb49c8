"""The contract checks pass on every registry entry, and each fails on wrong objects, one fault at a time."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from diffem_jax import testing
from diffem_jax.denoisers.guidance import POSTERIORS
from diffem_jax.networks import NETWORKS
from diffem_jax.networks.mlp import MLP
from diffem_jax.networks.unet import UNet
from diffem_jax.samplers.samplers import ddim, ddpm
from diffem_jax.samplers.schedules import SCHEDULES, VarianceExploding

SMALL = {"mlp": MLP(features=(8,), embedding=8), "unet": UNet(channels=(4, 4), blocks=1, heads=(), embedding=8)}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    testing.check_schedule(SCHEDULES[name]())


@pytest.mark.parametrize("name", POSTERIORS)
def test_posteriors(name):
    testing.check_posterior(POSTERIORS[name], exact=name != "dps")


@pytest.mark.parametrize("name", ["mlp", pytest.param("unet", marks=pytest.mark.slow)])
def test_networks(name):
    assert set(SMALL) == set(NETWORKS)
    testing.check_network(SMALL[name], shape=(4, 2) if name == "unet" else (6,), starts_at_zero=True)


# Wrong objects -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Bad:
    """A schedule made of two functions."""

    alpha: Callable
    sigma: Callable

    def __call__(self, t):
        return self.alpha(t), self.sigma(t)


@dataclasses.dataclass(frozen=True)
class WrongEnd:
    """Ends below its sigma_max."""

    sigma_max: float = 100.0

    def __call__(self, t):
        return VarianceExploding(1e-3, self.sigma_max)(0.9 * t)


def ones(t):
    return jnp.ones_like(t)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (Bad(ones, lambda t: 10.0 - 9.99 * t), "must rise"),
        (Bad(ones, lambda t: jnp.ones((2,)) * t), "two scalars"),
        (Bad(lambda t: 1.0 - 2.0 * t, lambda t: 0.01 + t), "must be positive"),
        (Bad(ones, lambda t: 1.0 + 9.0 * t), "at t = 0"),
        (Bad(ones, lambda t: 0.01 + t), "at t = 1"),
        (WrongEnd(), "sigma_max"),
    ],
)
def test_wrong_schedules(schedule, said):
    with pytest.raises(AssertionError, match=said):
        testing.check_schedule(schedule)


def changed(**parts):
    return lambda schedule, data_std: ddpm(schedule, data_std)._replace(**{k: v(schedule) for k, v in parts.items()})


def silent_noise(schedule):
    def init(key, t, shape):
        return ddpm(schedule).init(jax.random.key(0), t, shape)

    return init


def still(schedule):
    """Never leaves the first noise."""
    return lambda key, state, t, s, denoise: (state, {})


def half_noise(schedule):
    """Adds half of the noise that is due."""

    def step(key, state, t, s, denoise):
        full, info = ddpm(schedule).step(key, state, t, s, denoise)
        dry, _ = ddim(schedule).step(key, state, t, s, denoise)
        return full._replace(x=0.7 * full.x + 0.3 * dry.x), info

    return step


def twice(schedule):
    def init(key, t, shape):
        state = ddpm(schedule).init(key, t, shape)
        return state._replace(denoised=jax.random.normal(key, shape))

    return init


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda schedule, data_std: ddpm(schedule)[:3], "expected a diffem_jax.Sampler"),
        (changed(final=lambda schedule: lambda state, t: state.x[:2]), "shape"),
        (changed(init=silent_noise, step=lambda schedule: ddim(schedule).step), "different keys"),
        (changed(init=lambda s: lambda key, t, shape: ddpm(s).init(key, 0.5 * t, shape)), "first state"),
        (changed(step=still), "mean|covariance|first state"),
        (changed(step=half_noise), "covariance"),
        (changed(init=twice), "twice"),
    ],
    ids=["type", "shape", "same draw", "init", "still", "noise", "key"],
)
def test_wrong_samplers(make, said):
    with pytest.raises(AssertionError, match=said):
        testing.check_sampler(make, steps=24, samples=512)


def toward(rate):
    """Moves x-hat by a rate toward y, hidden entries of which are 0."""

    def transform(denoise, schedule, corruption, observation):
        def guided(x_t, t):
            x_hat = denoise(x_t, t)
            return x_hat + rate * (observation.y - x_hat)

        return guided

    return transform


def masked(rate, seen=lambda corruption, observation: corruption.observed(observation.operator)):
    """The same for seen entries alone."""

    def transform(denoise, schedule, corruption, observation):
        def guided(x_t, t):
            x_hat = denoise(x_t, t)
            return jnp.where(seen(corruption, observation), x_hat + rate * (observation.y - x_hat), x_hat)

        return guided

    return transform


@pytest.mark.parametrize(
    ("transform", "exact", "said"),
    [
        (toward(0.5), False, "nothing is observed"),
        (masked(0.5, lambda corruption, observation: observation.operator.any()), False, "hidden entries"),
        (masked(-0.5), False, "moves away"),
        (masked(0.0), False, "does not come closer"),
        (masked(0.5), True, "off E"),
        (lambda *args: lambda x, t: args[0](x, t)[0], False, "shape"),
    ],
)
def test_wrong_posteriors(transform, exact, said):
    with pytest.raises(AssertionError, match=said):
        testing.check_posterior(transform, exact=exact)


def test_a_right_posterior_passes_without_exactness():
    testing.check_posterior(masked(0.5))


class Net(nn.Module):
    """A linear network with one chosen fault."""

    fault: str = ""
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, noise, condition=None, train=False):
        parts = [x, noise[:, None]]
        if self.fault == "deaf":
            parts = [x]
        if condition is not None and self.fault != "blind":
            parts.append(condition)
        h = jnp.concatenate(parts, axis=-1)
        if self.fault == "batch":
            h = h - h.mean(axis=0, keepdims=True)
        if self.fault == "state":
            h = nn.BatchNorm(use_running_average=not train)(h)
        if self.fault == "dropout":
            h = nn.Dropout(0.5)(h, deterministic=not train)
        if self.fault == "range":
            h = jnp.log(h)
        return nn.Dense(x.shape[-1] + (self.fault == "shape"), kernel_init=nn.initializers.zeros)(h)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("shape", "shape"),
        ("deaf", "depend on noise"),
        ("blind", "depend on the condition"),
        ("batch", "another"),
        ("state", "parameters alone"),
        ("dropout", "'dropout'"),
        ("range", "finite"),
    ],
)
def test_wrong_networks(fault, said):
    with pytest.raises(AssertionError, match=said):
        testing.check_network(Net(fault))


def test_right_networks():
    testing.check_network(Net("dropout", dropout=0.5))
    with pytest.raises(AssertionError, match="must yield 0"):
        testing.check_network(nn.Module.clone(Unzeroed()), starts_at_zero=True)
    with pytest.raises(AssertionError, match=r"flax\.linen\.Module"):
        testing.check_network(Net)


class Unzeroed(nn.Module):
    """Its last layer is drawn."""

    @nn.compact
    def __call__(self, x, noise, condition=None, train=False):
        parts = [x, noise[:, None]] + ([] if condition is None else [condition])
        return nn.Dense(x.shape[-1])(jnp.concatenate(parts, axis=-1))
