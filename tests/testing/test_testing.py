"""Contract checks pass on the registries (some in their own tests) and fail on wrong objects, one fault at a time."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from diffem_jax import testing
from diffem_jax.denoisers import POSTERIORS
from diffem_jax.networks import MLP, NETWORKS, UNet
from diffem_jax.samplers import VarianceExploding, ddim, ddpm

SMALL = {"mlp": MLP(features=(8,), embedding=8), "unet": UNet(channels=(4, 4), blocks=1, heads=(), embedding=8)}


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

    sigma: Callable
    alpha: Callable = jnp.ones_like

    def __call__(self, t):
        return self.alpha(t), self.sigma(t)


@dataclasses.dataclass(frozen=True)
class WrongEnd:
    sigma_max: float = 100.0

    def __call__(self, t):
        return VarianceExploding(1e-3, self.sigma_max)(0.9 * t)


WRONG_SCHEDULES = {
    "must rise": Bad(lambda t: 10.0 - 9.99 * t),
    "two scalars": Bad(lambda t: jnp.ones((2,)) * t),
    "must be positive": Bad(lambda t: 0.01 + t, lambda t: 1.0 - 2.0 * t),
    "at t = 0": Bad(lambda t: 1.0 + 9.0 * t),
    "at t = 1": Bad(lambda t: 0.01 + t),
    "sigma_max": WrongEnd(),
}


@pytest.mark.parametrize("said", WRONG_SCHEDULES)
def test_wrong_schedules(said):
    with pytest.raises(AssertionError, match=said):
        testing.check_schedule(WRONG_SCHEDULES[said])


def changed(**parts):
    return lambda schedule, data_std: ddpm(schedule, data_std)._replace(**{k: v(schedule) for k, v in parts.items()})


def half_noise(schedule):
    """Adds less than the noise that is due."""

    def step(key, state, t, s, denoise):
        full, info = ddpm(schedule).step(key, state, t, s, denoise)
        dry, _ = ddim(schedule).step(key, state, t, s, denoise)
        return full._replace(x=0.7 * full.x + 0.3 * dry.x), info

    return step


def twice(schedule):
    def init(key, t, shape):
        return ddpm(schedule).init(key, t, shape)._replace(denoised=jax.random.normal(key, shape))

    return init


def one_key(schedule):
    return lambda key, t, shape: ddpm(schedule).init(jax.random.key(0), t, shape)


WRONG_SAMPLERS = {
    "expected a diffem_jax.Sampler": lambda schedule, data_std: ddpm(schedule)[:3],
    "shape": changed(final=lambda schedule: lambda state, t: state.x[:2]),
    "different keys": changed(init=one_key, step=lambda schedule: ddim(schedule).step),
    "first state": changed(init=lambda s: lambda key, t, shape: ddpm(s).init(key, 0.5 * t, shape)),
    "mean|covariance|first state": changed(step=lambda schedule: lambda key, state, t, s, denoise: (state, {})),
    "covariance": changed(step=half_noise),
    "twice": changed(init=twice),
}


@pytest.mark.parametrize("said", WRONG_SAMPLERS)
def test_wrong_samplers(said):
    with pytest.raises(AssertionError, match=said):
        testing.check_sampler(WRONG_SAMPLERS[said], steps=24, samples=512)


def moved(by):
    """A transform that adds something to x-hat: by(x_hat, corruption, observation)."""

    def transform(denoise, schedule, corruption, observation):
        def guided(x_t, t):
            x_hat = denoise(x_t, t)
            return x_hat + by(x_hat, corruption, observation)

        return guided

    return transform


def masked(rate, seen=lambda corruption, observation: corruption.observed(observation.operator)):
    """Moves x-hat by a rate toward y where it is seen."""
    return moved(lambda x, corruption, o: jnp.where(seen(corruption, o), rate * (o.y - x), 0.0))


WRONG_POSTERIORS = {
    "nothing is observed": moved(lambda x_hat, corruption, observation: 0.5 * (observation.y - x_hat)),
    "hidden entries": masked(0.5, lambda corruption, observation: observation.operator.any()),
    "moves away": masked(-0.5),
    "does not come closer": masked(0.0),
    "off E": masked(0.5),
    "shape": lambda *args: lambda x, t: args[0](x, t)[0],
}


@pytest.mark.parametrize("said", WRONG_POSTERIORS)
def test_wrong_posteriors(said):
    with pytest.raises(AssertionError, match=said):
        testing.check_posterior(WRONG_POSTERIORS[said], exact=said == "off E")


class Net(nn.Module):
    """A linear network with one chosen fault."""

    fault: str = ""
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, noise, condition=None, train=False):
        parts = [x] if self.fault == "deaf" else [x, noise[:, None]]
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
        init = nn.initializers.ones if self.fault == "start" else nn.initializers.zeros
        return nn.Dense(x.shape[-1] + (self.fault == "shape"), kernel_init=init)(h)


WRONG_NETWORKS = {"shape": "shape", "deaf": "depend on noise", "blind": "depend on the condition", "batch": "another"}
WRONG_NETWORKS |= {"state": "parameters alone", "dropout": "'dropout'", "range": "finite", "start": "must yield 0"}


@pytest.mark.parametrize("fault", WRONG_NETWORKS)
def test_wrong_networks(fault):
    with pytest.raises(AssertionError, match=WRONG_NETWORKS[fault]):
        testing.check_network(Net(fault), starts_at_zero=fault == "start")


def test_right_networks_and_a_posterior_without_exactness_pass():
    testing.check_posterior(masked(0.5))
    testing.check_network(Net("dropout", dropout=0.5))
    with pytest.raises(AssertionError, match=r"flax\.linen\.Module"):
        testing.check_network(Net)
