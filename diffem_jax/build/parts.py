"""The parts that a config names, one function a section: every name is looked up here, and nowhere else."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from diffem_jax import corruptions, networks, samplers
from diffem_jax.config import nearest
from diffem_jax.denoisers import losses
from diffem_jax.errors import UserError
from diffem_jax.parallel import accelerated
from diffem_jax.samplers import schedules
from diffem_jax.types import Corruption, Sampler, Schedule, TimeLaw


def lookup(field: str, name: str, registry: dict[str, Any]) -> Any:
    """A registry's entry, or the object 'module:attribute' names.

    Raises:
        UserError: unknown; with the nearest name, or why the import failed.
    """
    if name in registry:
        return registry[name]
    if ":" not in name:
        raise UserError(f"config.{field}: {name!r} is not known; {nearest(name, registry)} (or give 'module:name')")
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise UserError(
            f"config.{field}: {name!r} cannot be imported ({error}); expected 'module:name' on PYTHONPATH"
        ) from error


def construct(field: str, section: Any, registry: dict[str, Any], **given: Any) -> Any:
    """Calls the class or function a section names with the section's further fields.

    Raises:
        UserError: an unknown name or field, or a value that the class refuses.
    """
    if not isinstance(section.get("name"), str):
        raise UserError(f"config.{field}.name: {section.get('name')!r}; expected a name: {', '.join(registry)}")
    options = {key: _frozen(section[key]) for key in section if key != "name"}
    factory = lookup(f"{field}.name", section["name"], registry)
    accepted = set(inspect.signature(factory).parameters)
    for key in options:
        if key not in accepted - {"shape", "parent", "name"}:
            raise UserError(
                f"config.{field}.{key}: {section['name']!r} has no such field; {nearest(key, accepted - {'shape'})}"
            )
    try:
        return factory(**options, **{key: value for key, value in given.items() if key in accepted})
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config.{field}: {options!r} does not fit {section['name']!r} ({error}); correct the field"
        ) from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value


def _section(config: Any, **overrides: Any) -> dict[str, Any]:
    return {**{key: config[key] for key in config}, **overrides}


def make_corruption(field: str, section: Any, shape: tuple[int, ...]) -> Corruption:
    """The corruption of a section, checked on one abstract example."""
    for key in ("rate", "noise_std", "noise_std_max"):
        if key in section and (isinstance(section[key], bool) or not isinstance(section[key], int | float)):
            raise UserError(f"config.{field}.{key}: {section[key]!r}; expected a number")
    options = dict(section)
    known = inspect.signature(lookup(f"{field}.name", str(options.get("name")), corruptions.CORRUPTIONS)).parameters
    largest = 0.0 if "noise_std_max" in known else options.pop("noise_std_max", 0.0)
    corruption = construct(field, options, corruptions.CORRUPTIONS, shape=shape)
    if not isinstance(corruption, corruptions.AdditiveNoise):
        base = "a subclass of diffem_jax.Linear or diffem_jax.corruptions.AdditiveNoise"
        raise _misfit(f"{field}.name", str(options["name"]), base, f"a {type(corruption).__name__}")
    if largest:
        # One noise level an observation: the same corruption, told with each operator how loud it was.
        wrapped = {
            "name": "varying_noise",
            "of": corruption,
            "noise_std": corruption.noise_std,
            "noise_std_max": largest,
        }
        corruption = construct(field, wrapped, corruptions.CORRUPTIONS, shape=shape)
    if corruption.noise_std < 0:
        raise UserError(f"config.{field}.noise_std: {corruption.noise_std}; expected 0 or more")
    return corruption


def _misfit(field: str, name: str, expected: str, found: Any) -> UserError:
    """What is said of an object from outside that does not keep its contract."""
    return UserError(f"config.{field}: {name!r} does not fit ({found}); expected {expected}; see diffem_jax.testing")


def make_schedule(config: ConfigDict) -> Schedule:
    """The noise schedule.

    Raises:
        UserError: an object that is no schedule, or lacks the ``time`` that another field needs.
    """
    schedule = construct("schedule", config.schedule, schedules.SCHEDULES)
    try:
        alpha, sigma = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.float32))
        fits = alpha.shape == sigma.shape == ()
    except Exception as error:
        raise _misfit("schedule.name", config.schedule.name, "t [] -> (alpha [], sigma [])", error) from error
    if not fits:
        raise _misfit("schedule.name", config.schedule.name, "two scalars", f"shapes {alpha.shape}, {sigma.shape}")
    needs_time = {"e_step.time_grid": "karras", "m_step.time_law": "log_normal"}
    for field, value in needs_time.items():
        if config[field.split(".")[0]][field.split(".")[1]] == value and not hasattr(schedule, "time"):
            raise UserError(
                f"config.{field}: {value!r}; expected a schedule with time(sigma), which {config.schedule.name!r} lacks; "
                "write it, or choose another value"
            )
    return schedule


def make_sampler(field: str, name: str, schedule: Schedule, data_std: float) -> Sampler:
    """A sampler by name.

    Raises:
        UserError: an unknown name, or an object that is no sampler.
    """
    try:
        sampler = lookup(field, name, samplers.SAMPLERS)(schedule, data_std)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.{field}: {name!r} cannot be called with (schedule, data_std): {error}") from error
    if not isinstance(sampler, Sampler):
        raise UserError(
            f"config.{field}: {name!r} returned a {type(sampler).__name__}; expected a diffem_jax.types.Sampler"
        )
    return sampler


def make_time_law(config: ConfigDict, schedule: Schedule) -> TimeLaw:
    """The distribution of t in the loss."""
    m = config.m_step
    given: dict[str, tuple[Any, ...]] = {
        "beta": (tuple((float(a), float(b)) for a, b in m.time_law_beta),),
        "log_normal": (schedule, *m.time_law_log_normal),
    }
    return losses.TIME_LAWS[m.time_law](*given.get(m.time_law, ()))


def make_optimizer(m_step: Any, steps: int) -> optax.GradientTransformation:
    """Clipping, the optimiser and its learning-rate schedule over ``steps`` updates (one round), anew in each round."""
    peak, end = m_step.learning_rate, m_step.learning_rate_end
    body = max(1, steps - m_step.warmup_steps)
    course: optax.Schedule = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, end, body),
        "cosine": lambda: optax.cosine_decay_schedule(peak, body, alpha=min(1.0, end / peak)),
    }[m_step.learning_rate_schedule]()
    if m_step.warmup_steps:
        ramp = optax.linear_schedule(0.0, peak, m_step.warmup_steps)
        course = optax.join_schedules([ramp, course], [m_step.warmup_steps])

    def rate(count: Any) -> Any:
        # An optimiser that is carried over (m_step.carry 'all') counts on through the rounds.
        return course(count % steps)

    optimizer = {
        "adam": lambda: optax.adam(rate),
        "adamw": lambda: optax.adamw(rate, weight_decay=m_step.weight_decay),
        "sgd": lambda: optax.sgd(rate),
    }[m_step.optimizer]()
    return optax.chain(optax.clip_by_global_norm(m_step.clip_norm), optimizer) if m_step.clip_norm else optimizer


def make_network(section: Any) -> nn.Module:
    """The network of a section; ``dtype``, where the network has it, is what it computes in.

    Raises:
        UserError: an unknown name, field or dtype.
    """
    given = {} if "native_gradient" in section else {"native_gradient": accelerated()}
    dtype = section.get("dtype", "float32")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.network.dtype: {dtype!r}; expected 'float32' or 'bfloat16'; choose one of them")
    options = _section(section, dtype=jnp.dtype(dtype)) if "dtype" in section else section
    return cast(nn.Module, construct("network", options, networks.NETWORKS, **given))
