"""The parts that a config names, one function per section: every name is looked up here, and nowhere else."""

import inspect
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array
from ml_collections import ConfigDict

from diffem_jax import corruptions, networks, samplers
from diffem_jax.build.muon import muon
from diffem_jax.config import FIELDS, frozen, lookup
from diffem_jax.denoisers import gaussian_denoiser, losses
from diffem_jax.errors import UserError
from diffem_jax.gaussians import Gaussian
from diffem_jax.parallel import accelerated
from diffem_jax.samplers import schedules
from diffem_jax.types import Corruption, LinearCorruption, Sampler, Schedule, TimeLaw, stream_key

LEAST, MOST = 0.98, 1.03  # a config's draws are wide enough between these: EM feeds larger errors back (theory.md)
DRAWS = 2**14


def construct(field: str, section: Any, registry: dict[str, Any], **given: Any) -> Any:
    """Calls the class or function that a section names with the section's further fields, and with what it takes of ``given``.

    Fields of the table that an object of the user's own does not take are left out. UserError for an unknown name or value.
    """
    name = section.get("name")
    if not isinstance(name, str):
        raise UserError(f"config.{field}.name: {name!r}; expected a name: {', '.join(registry)}")
    factory = lookup(f"{field}.name", name, registry)
    accepted = inspect.signature(factory).parameters
    taken = (key for key in section if key in accepted or f"{field}.{key}" not in FIELDS or name in registry)
    options = {key: frozen(section[key]) for key in taken if key != "name"}
    try:
        return factory(**options, **{key: value for key, value in given.items() if key in accepted})
    except (TypeError, ValueError) as error:
        raise UserError(f"config.{field}: {options!r} does not fit {name!r} ({error}); correct the field") from error


def make_corruption(field: str, section: Any, shape: tuple[int, ...]) -> Corruption:
    """The corruption of a section; where ``noise_std_max`` is above 0, each observation has a noise level of its own."""
    options, known = {key: section[key] for key in section}, corruptions.CORRUPTIONS
    factory = lookup(f"{field}.name", str(options.get("name")), known)
    largest = 0.0 if "noise_std_max" in inspect.signature(factory).parameters else options.pop("noise_std_max", 0.0)
    corruption = construct(field, options, known, shape=shape)
    if not isinstance(corruption, corruptions.AdditiveNoise):
        base = "a subclass of diffem_jax.Linear or diffem_jax.corruptions.AdditiveNoise"
        raise _misfit(f"{field}.name", str(options["name"]), base, f"a {type(corruption).__name__}")
    if largest:
        wrapped = {"of": corruption, "noise_std": corruption.noise_std, "noise_std_max": largest}
        corruption = construct(field, {"name": "varying_noise", **wrapped}, known, shape=shape)
    return corruption


def check_noise(config: ConfigDict, corruption: Corruption) -> None:
    """Refuses to train where solves need noise and there is none, or draws would carry as much as the measurements do."""
    noise, least = corruption.noise_std, config.schedule.sigma_min
    if not corruption.is_linear:
        return
    if noise == 0 and cast(LinearCorruption, corruption).needs_noise:
        expected = f"more than 0 for {config.corruption.name!r}, whose solves divide by the noise"
        cure = "give the measurements' own, or --config.corruption.noise_std=0.001 where there is hardly any"
        raise UserError(f"config.corruption.noise_std: 0; expected {expected}; {cure}")
    sampler = config.e_step.sampler
    if sampler != "analytic_2m" and 0 < noise < 3 * least:
        expected = f"at most a third of corruption.noise_std = {noise} with e_step.sampler {sampler!r}"
        why = "whose draws keep noise of sigma_min on top of what was measured"
        cure = f"set --config.schedule.sigma_min={noise / 3:.1g} or --config.e_step.sampler=analytic_2m"
        raise UserError(f"config.schedule.sigma_min: {least}; expected {expected}, {why}; {cure}")


def _misfit(field: str, name: str, expected: str, found: Any) -> UserError:
    """What is said of an object from outside that does not keep its contract."""
    return UserError(f"config.{field}: {name!r} does not fit ({found}); expected {expected}; see diffem_jax.testing")


def make_schedule(config: ConfigDict) -> Schedule:
    """The noise schedule; UserError for an object that is none."""
    schedule = construct("schedule", config.schedule, schedules.SCHEDULES)
    try:
        alpha, sigma = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.float32))
        fits = alpha.shape == sigma.shape == ()
    except Exception as error:
        raise _misfit("schedule.name", config.schedule.name, "t [] -> (alpha [], sigma [])", error) from error
    if not fits:
        raise _misfit("schedule.name", config.schedule.name, "two scalars", f"shapes {alpha.shape}, {sigma.shape}")
    return schedule


def make_sampler(field: str, name: str, schedule: Schedule, data_std: float) -> Sampler:
    """A sampler by name; UserError for an unknown one, or an object that is no sampler."""
    try:
        sampler = lookup(field, name, samplers.SAMPLERS)(schedule, data_std)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.{field}: {name!r} cannot be called with (schedule, data_std): {error}") from error
    if not isinstance(sampler, Sampler):
        raise _misfit(field, name, "a diffem_jax.types.Sampler", f"a {type(sampler).__name__}")
    return sampler


def make_times(config: ConfigDict, schedule: Schedule, steps: int) -> Array:
    """The times [steps + 1] of a draw, from 1 down to 0; UserError for a function that yields no such array."""
    name = config.e_step.time_grid
    grid = lookup("e_step.time_grid", name, schedules.TIME_GRIDS)
    try:
        times = jnp.asarray(grid(schedule, steps, config.denoiser.sigma_data))
    except Exception as error:
        raise _misfit("e_step.time_grid", name, "(schedule, steps, data_std) -> times [steps + 1]", error) from error
    if times.shape != (steps + 1,):
        raise _misfit("e_step.time_grid", name, f"times of shape ({steps + 1},)", f"shape {times.shape}")
    return times


def draw_width(config: ConfigDict) -> float:
    """Returns f = Var(draw) / Var(exact) of an x ~ N(0, sigma_data^2) of which nothing is seen; its standard error is 0.011.

    With a share p of x seen, EM settles at a variance of V = p / (1 - (1 - p) f) times the true one.
    """
    schedule, std = make_schedule(config), config.denoiser.sigma_data
    sampler = make_sampler("e_step.sampler", config.e_step.sampler, schedule, std)
    times = make_times(config, schedule, config.e_step.steps)
    denoise = gaussian_denoiser(schedule, Gaussian(jnp.zeros(1), jnp.full((1,), std**2), jnp.zeros((0, 1))))
    draw = jax.jit(jax.vmap(lambda key: samplers.sample(key, sampler, denoise, times, (1,))))
    return float(jnp.var(draw(jax.random.split(stream_key(0, "width"), DRAWS)))) / std**2


def make_time_law(config: ConfigDict, schedule: Schedule) -> TimeLaw:
    """The distribution of t in the loss; one of the user's own is made without arguments, or with the schedule if it takes one."""
    m, name = config.m_step, config.m_step.time_law
    make = lookup("m_step.time_law", name, losses.TIME_LAWS)
    if name == "beta":
        return cast(TimeLaw, make(tuple((float(a), float(b)) for a, b in m.time_law_beta)))
    if name == "log_normal":
        return cast(TimeLaw, make(schedule, *m.time_law_log_normal))
    try:
        law = make(schedule) if "schedule" in inspect.signature(make).parameters else make()
        shape = jax.eval_shape(law.sample, jax.random.key(0)).shape
    except Exception as error:
        raise _misfit("m_step.time_law", name, "an object with sample(key) -> t []", error) from error
    if shape != ():
        raise _misfit("m_step.time_law", name, "a scalar t", f"shape {shape}")
    return cast(TimeLaw, law)


def make_optimizer(m_step: Any, steps: int) -> optax.GradientTransformation:
    """Clipping, the optimiser and its learning-rate schedule over ``steps`` updates (one round), again in each round."""
    peak, end = m_step.learning_rate, m_step.learning_rate_end
    body = max(1, steps - m_step.warmup_steps)
    course = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, end, body),
        "cosine": optax.cosine_decay_schedule(peak, body, alpha=min(1.0, end / peak)),
    }[m_step.learning_rate_schedule]
    if m_step.warmup_steps:
        ramp = optax.linear_schedule(0.0, peak, m_step.warmup_steps)
        course = optax.join_schedules([ramp, course], [m_step.warmup_steps])

    def rate(count: Any) -> Any:
        # An optimiser that is carried over (m_step.carry 'all') counts on through the rounds.
        return course(count % steps)

    optimizer = {
        "adam": optax.adam(rate),
        "adamw": optax.adamw(rate, weight_decay=m_step.weight_decay),
        "sgd": optax.sgd(rate),
        "muon": muon(rate),
    }[m_step.optimizer]
    return optax.chain(optax.clip_by_global_norm(m_step.clip_norm), optimizer) if m_step.clip_norm else optimizer


def make_network(section: Any) -> nn.Module:
    """The network of a section; ``dtype``, where the network has it, is what it computes in."""
    given = {} if "native_gradient" in section else {"native_gradient": accelerated()}
    dtype = section.get("dtype", "float32")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.network.dtype: {dtype!r}; expected 'float32' or 'bfloat16'; choose one of them")
    options = {key: section[key] for key in section} | ({"dtype": jnp.dtype(dtype)} if "dtype" in section else {})
    return cast(nn.Module, construct("network", options, networks.NETWORKS, **given))
