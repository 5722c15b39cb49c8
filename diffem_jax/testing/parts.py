"""The contracts of schedules, samplers, posterior transforms and networks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.corruptions import PixelMask
from diffem_jax.denoisers.edm import gaussian_denoiser
from diffem_jax.gaussians.linalg import Gaussian
from diffem_jax.samplers.samplers import sample
from diffem_jax.samplers.schedules import VarianceExploding, VariancePreserving, log_uniform_grid
from diffem_jax.testing.base import finite, require
from diffem_jax.types import DenoiseFn, Observation, Sampler, Schedule

POINTS = 65


def check_schedule(schedule: Schedule) -> None:
    """Checks the contract of ``diffem_jax.types.Schedule``.

    Checked are: equal instances hash and compare equal; float32 scalars from a scalar, under ``jit`` and ``vmap`` too;
    alpha > 0 and sigma > 0; sigma / alpha rises with t, from below 0.2 (data nearly seen) to above 2 (data of unit
    variance nearly gone); where the schedule has ``time``, that it inverts sigma / alpha; where it has ``sigma_min`` and
    ``sigma_max``, that these are the ratio at both ends.

    Raises:
        AssertionError: naming what does not hold.
    """
    require(len({schedule, copy.copy(schedule)}) == 1, "equal instances must hash and compare equal")
    t = jnp.linspace(0.0, 1.0, POINTS)
    single = jax.jit(schedule)(t[3])
    require(len(single) == 2 and all(jnp.shape(v) == () for v in single), "a scalar t must give two scalars")
    alpha, sigma = (np.asarray(leaf) for leaf in jax.jit(jax.vmap(schedule))(t))
    finite("alpha and sigma", alpha, sigma)
    require(np.allclose([alpha[3], sigma[3]], single, rtol=1e-5), "vmap and a single call must agree")
    require((alpha > 0).all() and (sigma > 0).all(), "alpha and sigma must be positive in all of [0, 1]")
    ratio = sigma / alpha
    require((np.diff(ratio) > 0).all(), "sigma / alpha must rise with t")
    require(ratio[0] < 0.2, f"sigma / alpha is {ratio[0]:.3g} at t = 0, where the data must be nearly seen")
    require(ratio[-1] > 2, f"sigma / alpha is {ratio[-1]:.3g} at t = 1, where the data must be nearly gone")
    for name, end in (("sigma_min", ratio[0]), ("sigma_max", ratio[-1])):
        stated = getattr(schedule, name, end)
        require(np.isclose(stated, end, rtol=1e-3), f"{name} is {stated}, sigma / alpha there is {end:.6g}")


def check_sampler(
    make: Callable[..., Sampler], *, steps: int = 128, samples: int = 2048, tolerance: float = 0.06, seed: int = 0
) -> None:
    """Checks a sampler's maker ``(schedule, data_std) -> Sampler`` against a Gaussian law, whose denoiser is exact.

    Checked are: three functions; the first state's law, N(0, (alpha^2 data_std^2 + sigma^2) I); the draw's shape; equal
    keys draw equal x and different keys different x; one key is never used twice; the mean and covariance of the draws,
    for a schedule with alpha = 1 and for one with alpha < 1.

    Args:
        make: what a config names.
        steps: of the grid; more for a sampler that converges slowly.
        samples: draws.
        tolerance: of a mean in standard deviations and of a covariance in variances, beyond five standard errors.
        seed: of all the keys used.

    Raises:
        AssertionError: naming what does not hold.
    """
    mean, variance = np.array([-1.0, 0.0, 1.5], np.float32), np.array([0.1, 0.6, 2.0], np.float32)
    shape, std = mean.shape, np.sqrt(variance)
    keys = jax.random.split(jax.random.key(seed), samples)
    for schedule in (VarianceExploding(1e-2, 40.0), VariancePreserving(1e-2, 40.0)):
        name = type(schedule).__name__
        sampler = make(schedule, 1.0)
        require(isinstance(sampler, Sampler), f"expected a diffem_jax.Sampler, not a {type(sampler).__name__}")
        times = log_uniform_grid(schedule, steps)

        def denoise(x_t: Any, t: Any, schedule: Schedule = schedule) -> Any:
            alpha, sigma = schedule(t)
            return (sigma**2 * mean + alpha * variance * x_t) / (sigma**2 + alpha**2 * variance)

        def draw(key: Any, sampler: Sampler = sampler, times: Any = times, denoise: DenoiseFn = denoise) -> Any:
            start = sampler.final(sampler.init(jax.random.fold_in(key, 0), times[0], shape), times[0])
            return start, sample(key, sampler, denoise, times, shape)

        def one_step(keys: Any, sampler: Sampler = sampler, denoise: DenoiseFn = denoise) -> Any:
            state = sampler.init(keys[0], jnp.ones(()), shape)
            return sampler.step(keys[1], state, jnp.ones(()), jnp.float32(0.9), denoise)[0]

        _require_one_use(one_step)
        with jax.debug_key_reuse(False):
            drawn = jax.eval_shape(draw, keys[0])[1]
            require(drawn.shape == shape, f"a draw's shape is {drawn.shape}, not {shape}")
            run = jax.jit(jax.vmap(draw))
            (first, x), (_, again) = ((np.asarray(a), np.asarray(b)) for a, b in (run(keys), run(keys)))
        finite(f"draws under {name}", x)
        require(np.array_equal(x, again), "equal keys must draw equal x")
        require(len(np.unique(x.round(4), axis=0)) > 0.98 * samples, "different keys must draw different x")
        alpha, sigma = (float(leaf) for leaf in schedule(jnp.ones(())))
        spread = first.std(axis=0) / np.hypot(alpha, sigma) * alpha
        require(np.abs(spread - 1).max() < 0.15, f"under {name} the first state's std is {spread} of the noise's")
        error = np.abs(x.mean(axis=0) - mean) / std
        require(
            error.max() < tolerance + 5 / np.sqrt(samples),
            f"under {name} the draws' mean is off by {error.max():.3f} standard deviations",
        )
        error = np.abs(np.cov(x.T) - np.diag(variance)) / np.outer(std, std)
        require(
            error.max() < tolerance + 5 * np.sqrt(2 / samples),
            f"under {name} the draws' covariance is off by {error.max():.3f} variances",
        )


def _require_one_use(function: Callable[..., Any]) -> None:
    with jax.debug_key_reuse(True):
        try:
            jax.jit(function)(jax.random.split(jax.random.key(7)))
        except jax.errors.KeyReuseError as error:
            raise AssertionError(f"init or step uses one key twice: {str(error).splitlines()[0]}") from error


def check_posterior(
    transform: Callable[..., DenoiseFn], *, exact: bool = False, tolerance: float = 1e-3, seed: int = 0
) -> None:
    """Checks a posterior transform ``(denoise, schedule, corruption, observation) -> denoise`` on N(0, I) seen through a mask.

    Checked are: shape, ``jit`` and ``vmap``; where nothing is observed x-hat stays as it is; what hidden entries of y
    hold does not matter; x-hat comes no further from y at any noise level, and closer at some; with ``exact``, that the
    result is E[x | x_t, y].

    Args:
        transform: what a config names as ``method``.
        exact: whether the transform is exact for x ~ N(0, I).
        tolerance: largest error of an exact one.
        seed: of all the keys used.

    Raises:
        AssertionError: naming what does not hold.
    """
    shape = (4, 4, 1)
    corruption: Any = PixelMask(shape=shape, rate=0.5, noise_std=0.05)
    prior = Gaussian(jnp.zeros(shape), jnp.ones(shape), jnp.zeros((0, *shape)))
    for schedule in (VarianceExploding(1e-2, 40.0), VariancePreserving(1e-2, 40.0)):
        free = gaussian_denoiser(schedule, prior)
        t = jnp.linspace(0.1, 0.9, 9)
        keys = jax.random.split(jax.random.key(seed), 3)
        x = jax.random.normal(keys[0], shape)
        observation = corruption.sample(keys[1], x)
        alpha, sigma = jax.vmap(schedule)(t)
        lift = (-1, *(1,) * len(shape))
        x_t = alpha.reshape(lift) * x[None] + sigma.reshape(lift) * jax.random.normal(keys[2], (len(t), *shape))

        def guided(observation: Observation, schedule: Schedule = schedule, free: DenoiseFn = free) -> Any:
            denoise = transform(free, schedule, corruption, observation)
            return jax.jit(jax.vmap(denoise))

        given = guided(observation)(x_t, t)
        require(given.shape == x_t.shape, f"x-hat has shape {given.shape[1:]} for x of shape {shape}")
        finite("x-hat", given)
        plain = jax.jit(jax.vmap(free))(x_t, t)
        blind = guided(Observation(jnp.zeros(shape), jnp.zeros_like(observation.operator)))(x_t, t)
        require(np.allclose(blind, plain, atol=1e-4), "where nothing is observed x-hat must stay as it is")
        spoiled = jnp.where(corruption.observed(observation.operator), observation.y, 7.0)
        other = guided(observation._replace(y=spoiled))(x_t, t)
        require(np.allclose(given, other, atol=1e-5), "hidden entries of y change x-hat")

        before, after = (_misfit(corruption, observation, x_hat) for x_hat in (plain, given))
        require((after < before + 0.05).all(), f"x-hat moves away from y: misfit {before} -> {after}")
        require((after < 0.95 * before).any(), f"x-hat does not come closer to y: misfit {before} -> {after}")
        if exact:
            right = gaussian_denoiser(schedule, prior, corruption, observation)
            error = float(jnp.abs(given - jax.jit(jax.vmap(right))(x_t, t)).max())
            require(error < tolerance, f"x-hat is off E[x | x_t, y] by {error:.2e}")


def _misfit(corruption: PixelMask, observation: Observation, x_hat: Any) -> np.ndarray:
    """|y - A x-hat| for each of x-hat [T, *X]."""
    rest = jax.vmap(lambda z: corruption.forward(z, observation.operator))(x_hat) - observation.y[None]
    return np.sqrt(np.sum(np.asarray(rest).reshape(len(x_hat), -1) ** 2, axis=1))


def check_network(
    network: nn.Module, *, shape: tuple[int, ...] = (6,), channels: int = 3, starts_at_zero: bool = False, seed: int = 0
) -> None:
    """Checks a network ``(x [B, *X], noise [B], condition [B, ...] or None, train) -> [B, *X]``.

    Checked are: a Linen module with parameters alone; shape and dtype; an example's output depends on all its inputs and
    on no other example; with ``train`` it asks for dropout keys only if it has a ``dropout`` > 0; it runs without
    condition; finite outputs and gradients from the least to the greatest noise level.

    Args:
        network: an instance.
        shape: the shape of x.
        channels: extra channels of the condition.
        starts_at_zero: whether the fresh network yields 0, as the built-in ones do. The first denoiser is then its
            preconditioning's own, and with 'posterior' the first round loses nothing of the start.
        seed: of all the keys used.

    Raises:
        AssertionError: naming what does not hold.
    """
    require(isinstance(network, nn.Module), f"expected a flax.linen.Module, not a {type(network).__name__}")
    require("train" in inspect.signature(type(network).__call__).parameters, "__call__ must take train")
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(3, *shape)), jnp.float32)
    noise = jnp.array([-7.0, 0.0, 4.0])
    condition = jnp.asarray(rng.normal(size=(3, *shape[:-1], channels)), jnp.float32)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(seed), x, noise, condition, False))
    require(list(variables) == ["params"], f"expected parameters alone, found {list(variables)}: no running averages")
    # Random parameters: a last layer of zeros would hide what the others do.
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) / max(1, s.shape[0]) ** 0.5, s.dtype), variables
    )

    @jax.jit
    def run(x: Any, noise: Any, condition: Any) -> Any:
        return network.apply(params, x, noise, condition, False)

    out = np.asarray(run(x, noise, condition))
    require(out.shape == x.shape, f"the output's shape is {out.shape[1:]}, not {shape}")
    finite("the output", out)
    require(np.array_equal(out, run(x, noise, condition)), "without train the network must be deterministic")
    for name, place in (("x", 0), ("noise", 1), ("the condition", 2)):
        inputs = [x, noise, condition]
        inputs[place] = inputs[place].at[1].add(1.0)
        moved = np.abs(np.asarray(run(*inputs)) - out).reshape(3, -1).max(axis=1)
        require(moved[1] > 1e-5, f"the output does not depend on {name}")
        require(max(moved[0], moved[2]) < 1e-4, f"{name} of one example changes the output of another")
    without = jax.eval_shape(lambda: network.init_with_output(jax.random.key(seed), x, noise, None, False)[0])
    require(without.shape == x.shape, "without condition the output's shape must be that of x")
    dropout = getattr(network, "dropout", 0.0) > 0

    def loss(params: Any, key: Any) -> Any:
        rngs = {"dropout": key} if dropout else {}
        out: Any = network.apply(params, x, noise, condition, True, rngs=rngs)
        return jnp.sum((out - x) ** 2)

    try:
        gradient = jax.jit(jax.grad(loss))(params, jax.random.key(seed))
    except Exception as error:
        raise AssertionError(
            f"with train it fails; a network that drops out needs a field 'dropout': {error}"
        ) from error
    finite("the gradient", *jax.tree.leaves(gradient))
    if starts_at_zero:
        fresh = jax.jit(lambda key: network.init_with_output(key, x, noise, condition, False)[0])(jax.random.key(seed))
        require(not np.asarray(fresh).any(), "a fresh network must yield 0: initialise its last layer with zeros")
