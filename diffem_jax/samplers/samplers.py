"""Reverse-diffusion samplers as (init, step, final) triples of pure functions, and the one scan that runs them.

A sampler of your own is a function that returns a ``Sampler``: hand it to ``sample`` or to ``em.make_e_step``, or add
it to ``SAMPLERS``. Everything is for one example and speaks of the denoiser x-hat alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffem_jax.samplers.schedules import noise_ratio
from diffem_jax.types import DenoiseFn, Key, LinearCorruption, Observation, Sampler, Schedule, Spread


def sample(key: Key, sampler: Sampler, denoise: DenoiseFn, times: Array, shape: tuple[int, ...]) -> Array:
    """Draws one x of ``shape`` by running a sampler from times[0] down to times[-1] in one ``lax.scan``.

    The ``times`` [N + 1] decrease; the initial noise and every step use keys of their own.
    """
    state = sampler.init(jax.random.fold_in(key, 0), times[0], shape)

    def body(state: Any, step: tuple[Array, Array, Array]) -> tuple[Any, None]:
        index, t, s = step
        state, _ = sampler.step(jax.random.fold_in(key, index), state, t, s, denoise)
        return state, None

    state, _ = jax.lax.scan(body, state, (jnp.arange(1, len(times)), times[:-1], times[1:]))
    return sampler.final(state, times[-1])


def initial_noise(schedule: Schedule, data_std: float, key: Key, t: Array, shape: tuple[int, ...]) -> Array:
    """x_t ~ N(0, (alpha_t^2 data_std^2 + sigma_t^2) I), the distribution of x_t for centred data of that standard deviation."""
    alpha, sigma = schedule(t)
    return jnp.sqrt((alpha * data_std) ** 2 + sigma**2) * jax.random.normal(key, shape)


class _State(NamedTuple):
    x: Array
    denoised: Array
    log_snr: Array


def _exponential(schedule: Schedule, *, stochastic: bool, order: int, data_std: float = 1.0) -> Sampler:
    """The exponential integrators of the diffusion SDE and ODE in the half log signal-to-noise ratio l = log(alpha / sigma).

    With h = l_s - l_t and D the denoised point, extrapolated from the last two evaluations for order 2,

        ODE:  x_s = (sigma_s / sigma_t) x_t         + alpha_s (1 - e^-h)  D
        SDE:  x_s = (sigma_s / sigma_t) e^-h x_t    + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) z.
    """

    def init(key: Key, t: Array, shape: tuple[int, ...]) -> _State:
        x = initial_noise(schedule, data_std, key, t, shape)
        # The first step has no past: an infinitely long previous step makes the extrapolation vanish.
        return _State(x, jnp.zeros(shape), jnp.full((), -jnp.inf))

    def step(key: Key, state: _State, t: Array, s: Array, denoise: DenoiseFn) -> tuple[_State, dict[str, Array]]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        now = jnp.log(alpha_t / sigma_t)
        h = jnp.log(alpha_s / sigma_s) - now
        denoised = denoise(state.x, t)
        target = denoised
        if order == 2:
            target = denoised + (h / (2 * (now - state.log_snr))) * (denoised - state.denoised)
        if stochastic:
            pull = -jnp.expm1(-2 * h)
            noise = sigma_s * jnp.sqrt(pull) * jax.random.normal(key, state.x.shape)
            x = (sigma_s / sigma_t) * jnp.exp(-h) * state.x + alpha_s * pull * target + noise
        else:
            x = (sigma_s / sigma_t) * state.x - alpha_s * jnp.expm1(-h) * target
        return _State(x, denoised, now), {"denoised": denoised}

    return Sampler(init, step, lambda state, t: state.x / schedule(t)[0])


def ddpm(schedule: Schedule, data_std: float = 1.0) -> Sampler:
    """Ancestral sampling, one evaluation a step: x_s ~ q(x_s | x_t, x = x-hat).

    Source: Ho et al. 2020, arXiv 2006.11239, equation 6, for any alpha_t, sigma_t.
    """
    return _exponential(schedule, stochastic=True, order=1, data_std=data_std)


def ddim(schedule: Schedule, data_std: float = 1.0) -> Sampler:
    """Deterministic first-order sampling, one evaluation a step.

    Source: Song et al. 2021, arXiv 2010.02502, equation 12 with eta = 0.
    """
    return _exponential(schedule, stochastic=False, order=1, data_std=data_std)


def dpmpp_2m(schedule: Schedule, data_std: float = 1.0) -> Sampler:
    """Second-order multistep solver of the probability-flow ODE, one evaluation a step.

    Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2.
    """
    return _exponential(schedule, stochastic=False, order=2, data_std=data_std)


def dpmpp_2m_sde(schedule: Schedule, data_std: float = 1.0) -> Sampler:
    """Second-order multistep solver of the diffusion SDE, one evaluation a step.

    Source: Lu et al. 2022, arXiv 2211.01095, equation 19 (SDE-DPM-Solver++(2M)).
    """
    return _exponential(schedule, stochastic=True, order=2, data_std=data_std)


def isotropic_spread(key: Key, w: Array, v: Array) -> Array:
    """A draw of N(v w, v I): what a denoiser without a spread of its own is taken to leave open."""
    return v * w + jnp.sqrt(v) * jax.random.normal(key, w.shape)


def observed_spread(corruption: LinearCorruption, observation: Observation) -> Spread:
    """The spread given y = A x + n: a draw of N(C w, C), C = (I / v + A^T A / noise_std^2)^-1, by one solve.

    With x' ~ N(v w, v I) and n' of the noise, x' - v A^T (v A A^T + noise_std^2 I)^-1 (A x' + n') has that distribution.

    Source: Matheron's rule; Doucet 2010, "A note on efficient conditional simulation of Gaussian distributions".
    """
    y, operator = observation

    def spread(key: Key, w: Array, v: Array) -> Array:
        x_key, noise_key = jax.random.split(key)
        x = isotropic_spread(x_key, w, v)
        noise = corruption.noise_level(operator) * jax.random.normal(noise_key, y.shape)
        solved = corruption.solve_gram(corruption.forward(x, operator) + noise, operator, v)
        return x - v * corruption.adjoint(solved, operator)

    return spread


class _Memory(NamedTuple):
    x: Array
    denoised: Array
    noise: Array
    h: Array


def analytic_2m(schedule: Schedule, data_std: float = 1.0) -> Sampler:
    """Ancestral steps with the posterior's variance put back, and a second-order correction; one evaluation per step.

    In units of x (x_t / alpha_t at noise r = sigma_t / alpha_t), with p = 1 - (r_s / r_t)^2 and D = x-hat(x_t, t), a step
    draws x_s exactly as it is for a given x, with a draw of x in the place of x:

        x_s = (1 - p) x_t + p (D + d) + r_s sqrt(p) z,    d ~ N(0, C),  C = Cov[x | x_t, y] of a Gaussian stand-in.

    The stand-in is N(., data_std^2 I), given y where the denoiser has a ``spread``. Exact for it, at any number of steps. What
    the denoiser knows beyond it is in how D answered to the last step's noise e = x_t - E[x_t | step before]:

        d <- d + q (D - D_before - C e / r_t^2),    q = h / (2 h_before),  h = log(r_t / r_s),

    where D - D_before, whose expectation is 0, has the true Cov[x | x_t, y] / r_t^2 in the place of C / r_t^2. With C = 0 this is
    ``dpmpp_2m_sde``. The step to t = 0 goes to r_s = 0, with q = 1/2: a draw is x itself, not x + sigma_min z.

    Source: Bao et al. 2022, arXiv 2201.06503 (the posterior's variance in ancestral steps); Lu et al. 2022,
    arXiv 2211.01095, equation 19 (the multistep correction); their combination is this project's.
    """

    def init(key: Key, t: Array, shape: tuple[int, ...]) -> _Memory:
        alpha, _ = schedule(t)
        x = initial_noise(schedule, data_std, key, t, shape) / alpha
        # The first step has no past: an infinitely long step before it leaves the correction out.
        return _Memory(x, jnp.zeros(shape), jnp.zeros(shape), jnp.full((), jnp.inf))

    def step(key: Key, state: _Memory, t: Array, s: Array, denoise: DenoiseFn) -> tuple[_Memory, dict[str, Array]]:
        spread_key, noise_key = jax.random.split(key)
        alpha, _ = schedule(t)
        now, next_ratio = noise_ratio(schedule, t), noise_ratio(schedule, s)
        then = jnp.where(s > 0, next_ratio, 0.0)
        h, pull = jnp.log(now / next_ratio), 1 - (then / now) ** 2
        denoised = denoise(alpha * state.x, t)
        weight = jnp.where(s > 0, h / (2 * state.h), jnp.where(jnp.isfinite(state.h), 0.5, 0.0))
        spread = getattr(denoise, "spread", isotropic_spread)
        scatter = spread(spread_key, -weight * state.noise / now**2, 1 / (1 / data_std**2 + 1 / now**2))
        scatter = scatter + weight * (denoised - state.denoised)
        noise = pull * scatter + then * jnp.sqrt(pull) * jax.random.normal(noise_key, state.x.shape)
        x = state.x + pull * (denoised - state.x) + noise
        return _Memory(x, denoised, noise, h), {"denoised": denoised}

    return Sampler(init, step, lambda state, t: state.x)


def heun(schedule: Schedule, data_std: float = 1.0) -> Sampler:
    """Heun's second-order rule on the probability-flow ODE dx / dr = (x - x-hat) / r, r = sigma / alpha; two evaluations a step.

    Source: Karras et al. 2022, arXiv 2206.00364, algorithm 1.
    """

    def step(key: Key, x: Array, t: Array, s: Array, denoise: DenoiseFn) -> tuple[Array, dict[str, Array]]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        ratio_t, ratio_s = sigma_t / alpha_t, sigma_s / alpha_s
        start = x / alpha_t
        denoised = denoise(x, t)
        slope = (start - denoised) / ratio_t
        guess = start + (ratio_s - ratio_t) * slope
        slope_end = (guess - denoise(alpha_s * guess, s)) / ratio_s
        return alpha_s * (start + (ratio_s - ratio_t) * 0.5 * (slope + slope_end)), {"denoised": denoised}

    return Sampler(partial(initial_noise, schedule, data_std), step, lambda x, t: x / schedule(t)[0])


def predictor_corrector(
    schedule: Schedule, data_std: float = 1.0, corrections: int = 1, step_size: float = 0.1
) -> Sampler:
    """A ddim predictor followed by Langevin corrections at the new noise level; 1 + corrections evaluations a step.

    A correction is x <- x + d score + sqrt(2 d) z with d = step_size sigma_s^2, step_size in (0, 1), and
    score = (alpha_s x-hat - x) / sigma_s^2; there are ``corrections`` after each prediction.

    Source: Song et al. 2021, arXiv 2011.13456, algorithm 1.
    """
    predictor = ddim(schedule, data_std)

    def step(key: Key, state: _State, t: Array, s: Array, denoise: DenoiseFn) -> tuple[_State, dict[str, Array]]:
        state, info = predictor.step(key, state, t, s, denoise)
        alpha, sigma = schedule(s)

        def correct(x: Array, index: Array) -> tuple[Array, None]:
            drift = step_size * (alpha * denoise(x, s) - x)
            noise = jax.random.normal(jax.random.fold_in(key, index), x.shape)
            return x + drift + jnp.sqrt(2 * step_size) * sigma * noise, None

        x, _ = jax.lax.scan(correct, state.x, jnp.arange(corrections))
        return state._replace(x=x), info

    return Sampler(predictor.init, step, predictor.final)


SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "analytic_2m": analytic_2m, "ddpm": ddpm, "ddim": ddim, "heun": heun, "pc": predictor_corrector, "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
}  # fmt: skip
EVALUATIONS: dict[str, int] = {"heun": 2, "pc": 2}  # network evaluations a step, where it is not 1
