"""The contracts of schedules, samplers, posterior transforms and networks."""

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
from diffem_jax.samplers import VarianceExploding, VariancePreserving, log_uniform_grid, sample
from diffem_jax.testing.base import require, require_finite
from diffem_jax.types import DenoiseFn, Observation, Sampler, Schedule

POINTS = 65
BOTH_SCHEDULES = (VarianceExploding(1e-2, 40.0), VariancePreserving(1e-2, 40.0))  # alpha = 1, alpha < 1


def check_schedule(schedule: Schedule) -> None:
    """Checks the contract of ``diffem_jax.types.Schedule``; an AssertionError names what does not hold.

    Hashing; float32 scalars from a scalar, under ``jit`` and ``vmap`` too; alpha > 0 and sigma > 0; sigma / alpha rises with t
    from below 0.2 to above 2, and from ``sigma_min`` to ``sigma_max`` where the schedule has these.
    """
    require(len({schedule, copy.copy(schedule)}) == 1, "equal instances must hash and compare equal")
    t = jnp.linspace(0.0, 1.0, POINTS)
    single = jax.jit(schedule)(t[3])
    require(len(single) == 2 and all(jnp.shape(v) == () for v in single), "a scalar t must give two scalars")
    alpha, sigma = (np.asarray(leaf) for leaf in jax.jit(jax.vmap(schedule))(t))
    require_finite("alpha and sigma", alpha, sigma)
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
    """Checks a sampler's maker ``(schedule, data_std) -> Sampler`` against a Gaussian; an AssertionError names what does not hold.

    The first state's distribution, N(0, (alpha^2 data_std^2 + sigma^2) I); the draw's shape; equal draws for equal keys and
    others for others; no key used twice; mean and covariance of the draws of an exact denoiser, within ``tolerance`` standard
    deviations and variances beyond five standard errors, for alpha = 1 and for alpha < 1. Slow samplers need more ``steps``.
    """
    mean, variance = np.array([-1.0, 0.0, 1.5], np.float32), np.array([0.1, 0.6, 2.0], np.float32)
    shape, std, keys = mean.shape, np.sqrt(variance), jax.random.split(jax.random.key(seed), samples)
    for schedule in BOTH_SCHEDULES:
        sampler, under, times = make(schedule, 1.0), type(schedule).__name__, log_uniform_grid(schedule, steps)
        require(isinstance(sampler, Sampler), f"expected a diffem_jax.Sampler, not a {type(sampler).__name__}")
        denoise = gaussian_denoiser(schedule, Gaussian(jnp.array(mean), jnp.array(variance), jnp.zeros((0, *shape))))

        def draw(key: Any, sampler: Sampler = sampler, times: Any = times, denoise: DenoiseFn = denoise) -> Any:
            start = sampler.final(sampler.init(jax.random.fold_in(key, 0), times[0], shape), times[0])
            return start, sample(key, sampler, denoise, times, shape)

        def one_step(keys: Any, sampler: Sampler = sampler, denoise: DenoiseFn = denoise) -> Any:
            state = sampler.init(keys[0], jnp.ones(()), shape)
            return sampler.step(keys[1], state, jnp.ones(()), jnp.float32(0.9), denoise)[0]

        with jax.debug_key_reuse(True):
            try:
                jax.jit(one_step)(jax.random.split(jax.random.key(7)))
            except jax.errors.KeyReuseError as error:
                raise AssertionError(f"init or step uses one key twice: {str(error).splitlines()[0]}") from error
        with jax.debug_key_reuse(False):
            drawn = jax.eval_shape(draw, keys[0])[1]
            require(drawn.shape == shape, f"a draw's shape is {drawn.shape}, not {shape}")
            run = jax.jit(jax.vmap(draw))
            (first, x), (_, again) = (map(np.asarray, run(keys)) for _ in range(2))
        require_finite(f"draws under {under}", x)
        require(np.array_equal(x, again), "equal keys must draw equal x")
        require(len(np.unique(x.round(4), axis=0)) > 0.98 * samples, "different keys must draw different x")
        alpha, sigma = (float(leaf) for leaf in schedule(jnp.ones(())))
        spread = first.std(axis=0) / np.hypot(alpha, sigma) * alpha
        require(np.abs(spread - 1).max() < 0.15, f"under {under} the first state's std is {spread} of the noise's")
        off = (np.abs(x.mean(axis=0) - mean) / std).max()
        what = f"under {under} the draws' mean is off by {off:.3f} standard deviations"
        require(off < tolerance + 5 / np.sqrt(samples), what)
        off = (np.abs(np.cov(x.T) - np.diag(variance)) / np.outer(std, std)).max()
        what = f"under {under} the draws' covariance is off by {off:.3f} variances"
        require(off < tolerance + 5 * np.sqrt(2 / samples), what)


def check_posterior(transform: Callable[..., DenoiseFn], *, exact: bool = False, seed: int = 0) -> None:
    """Checks a posterior transform ``(denoise, schedule, corruption, observation) -> denoise`` on N(0, I) seen through a mask.

    Shape, ``jit`` and ``vmap``; where nothing is observed x-hat stays as it is; what hidden entries of y hold does not matter;
    x-hat comes no further from y at any noise level, and closer at some; with ``exact``, for a transform that is so for
    x ~ N(0, I), the result is E[x | x_t, y]. An AssertionError names what does not hold.
    """
    shape, t = (4, 4, 1), jnp.linspace(0.1, 0.9, 9)
    corruption: Any = PixelMask(shape=shape, rate=0.5, noise_std=0.05)
    prior = Gaussian(jnp.zeros(shape), jnp.ones(shape), jnp.zeros((0, *shape)))
    keys = jax.random.split(jax.random.key(seed), 3)
    x, noise = jax.random.normal(keys[0], shape), jax.random.normal(keys[2], (len(t), *shape))
    observation = corruption.sample(keys[1], x)
    seen = corruption.observed(observation.operator)

    def misfit(x_hat: Any) -> np.ndarray:
        rest = np.where(seen, np.asarray(x_hat) - np.asarray(observation.y), 0.0)
        return np.linalg.norm(rest.reshape(len(x_hat), -1), axis=1)

    for schedule in BOTH_SCHEDULES:
        free = gaussian_denoiser(schedule, prior)
        x_t = jax.vmap(lambda t, z, schedule=schedule: schedule(t)[0] * x + schedule(t)[1] * z)(t, noise)

        def guided(observation: Observation, schedule: Schedule = schedule, free: DenoiseFn = free) -> Any:
            return jax.jit(jax.vmap(transform(free, schedule, corruption, observation)))

        given, plain = guided(observation)(x_t, t), jax.jit(jax.vmap(free))(x_t, t)
        require(given.shape == x_t.shape, f"x-hat has shape {given.shape[1:]} for x of shape {shape}")
        require_finite("x-hat", given)
        blind = guided(Observation(jnp.zeros(shape), jnp.zeros_like(observation.operator)))(x_t, t)
        require(np.allclose(blind, plain, atol=1e-4), "where nothing is observed x-hat must stay as it is")
        other = guided(observation._replace(y=jnp.where(seen, observation.y, 7.0)))(x_t, t)
        require(np.allclose(given, other, atol=1e-5), "hidden entries of y change x-hat")
        before, after = misfit(plain), misfit(given)
        require((after < before + 0.05).all(), f"x-hat moves away from y: misfit {before} -> {after}")
        require((after < 0.95 * before).any(), f"x-hat does not come closer to y: misfit {before} -> {after}")
        if exact:
            right = jax.jit(jax.vmap(gaussian_denoiser(schedule, prior, corruption, observation)))(x_t, t)
            error = float(jnp.abs(given - right).max())
            require(error < 1e-3, f"x-hat is off E[x | x_t, y] by {error:.2e}")


def check_network(
    network: nn.Module, *, shape: tuple[int, ...] = (6,), channels: int = 3, starts_at_zero: bool = False, seed: int = 0
) -> None:
    """Checks a network ``(x [B, *X], noise [B], condition [B, ..., channels] or None, train) -> [B, *X]`` for x of ``shape``.

    A Linen module with parameters alone; shape and dtype; an example's output depends on all its inputs and on no other
    example; dropout keys only where it has a ``dropout`` > 0; it runs without condition; finite outputs and gradients. With
    ``starts_at_zero`` the fresh network must yield 0, as the built-in ones do: with 'posterior' the first round then loses
    nothing of the start. An AssertionError names what does not hold.
    """
    require(isinstance(network, nn.Module), f"expected a flax.linen.Module, not a {type(network).__name__}")
    require("train" in inspect.signature(type(network).__call__).parameters, "__call__ must take train")
    rng, noise, key = np.random.default_rng(seed), jnp.array([-7.0, 0.0, 4.0]), jax.random.key(seed)
    x = jnp.asarray(rng.normal(size=(3, *shape)), jnp.float32)
    condition = jnp.asarray(rng.normal(size=(3, *shape[:-1], channels)), jnp.float32)
    variables = jax.eval_shape(lambda: network.init(key, x, noise, condition, False))
    require(list(variables) == ["params"], f"expected parameters alone, found {list(variables)}: no running averages")
    # Random parameters: a last layer of zeros would hide what the others do.
    params = jax.tree.map(lambda s: jnp.float32(rng.normal(size=s.shape) / max(1, s.shape[0]) ** 0.5), variables)
    run = jax.jit(lambda *inputs: network.apply(params, *inputs, False))
    out = np.asarray(run(x, noise, condition))
    require(out.shape == x.shape, f"the output's shape is {out.shape[1:]}, not {shape}")
    require_finite("the output", out)
    require(np.array_equal(out, run(x, noise, condition)), "without train the network must be deterministic")
    for place, name in enumerate(("x", "noise", "the condition")):
        inputs = [x, noise, condition]
        inputs[place] = inputs[place].at[1].add(1.0)
        moved = np.abs(np.asarray(run(*inputs)) - out).reshape(3, -1).max(axis=1)
        require(moved[1] > 1e-5, f"the output does not depend on {name}")
        require(max(moved[0], moved[2]) < 1e-4, f"{name} of one example changes the output of another")
    without = jax.eval_shape(lambda: network.init_with_output(key, x, noise, None, False)[0])
    require(without.shape == x.shape, "without condition the output's shape must be that of x")

    def loss(params: Any, key: Any) -> Any:
        rngs = {"dropout": key} if getattr(network, "dropout", 0.0) > 0 else {}
        out: Any = network.apply(params, x, noise, condition, True, rngs=rngs)
        return jnp.sum((out - x) ** 2)

    try:
        gradient = jax.jit(jax.grad(loss))(params, key)
    except Exception as error:
        raise AssertionError(f"with train it fails; one that drops out needs a field 'dropout': {error}") from error
    require_finite("the gradient", *jax.tree.leaves(gradient))
    if starts_at_zero:
        fresh = jax.jit(lambda key: network.init_with_output(key, x, noise, condition, False)[0])(key)
        require(not np.asarray(fresh).any(), "a fresh network must yield 0: initialise its last layer with zeros")
