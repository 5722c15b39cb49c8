"""From a config to objects: every name is looked up here, and nowhere else."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array
from ml_collections import ConfigDict

from diffem_jax import ambient, augment, bases, corruptions, denoisers, em, networks, posteriors, samplers, schedules
from diffem_jax.config import nearest
from diffem_jax.corruptions.masks import Mask
from diffem_jax.gaussians import Mixture
from diffem_jax.parallel import accelerated
from diffem_jax.types import (
    Corruption,
    DenoiseFn,
    LinearCorruption,
    Observation,
    PyTree,
    Sampler,
    Schedule,
    TimeLaw,
    UserError,
)


class Setup(NamedTuple):
    """What follows from a config and the shape of x, before any data is read or any model fitted."""

    config: ConfigDict
    shape: tuple[int, ...]
    corruption: Corruption
    data_corruption: Corruption
    schedule: Schedule
    network: nn.Module
    sampler: Sampler
    times: Array
    optimizer: optax.GradientTransformation


class Model(NamedTuple):
    """What the method trains and draws with; it depends on the fitted start."""

    denoiser: denoisers.Denoiser
    bind: Callable[[PyTree, Observation], DenoiseFn]
    loss: em.Loss
    draw: Callable[[Array, PyTree, Observation], Array] | None = None
    """How an example is drawn, where it is not by the sampler with ``bind``."""


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
    rate = getattr(corruption, "rate", 0.0)
    if not 0 <= rate < 1:
        raise UserError(f"config.{field}.rate: {rate}; expected a number in [0, 1)")
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
    """The law of t in the loss."""
    m = config.m_step
    if m.time_law == "beta":
        return schedules.BetaMixture(tuple((float(a), float(b)) for a, b in m.time_law_beta))
    if m.time_law == "log_normal":
        return schedules.LogNormal(schedule, *m.time_law_log_normal)
    return schedules.Uniform()


def make_optimizer(m_step: Any, steps: int) -> optax.GradientTransformation:
    """Clipping, the optimiser and its learning-rate schedule over ``steps`` updates (one round)."""
    peak, end = m_step.learning_rate, m_step.learning_rate_end
    body = max(1, steps - m_step.warmup_steps)
    rate: optax.Schedule = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, end, body),
        "cosine": lambda: optax.cosine_decay_schedule(peak, body, alpha=min(1.0, end / peak)),
    }[m_step.learning_rate_schedule]()
    if m_step.warmup_steps:
        ramp = optax.linear_schedule(0.0, peak, m_step.warmup_steps)
        rate = optax.join_schedules([ramp, rate], [m_step.warmup_steps])
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


def make_setup(config: ConfigDict, shape: tuple[int, ...]) -> Setup:
    """Looks up everything that needs no data.

    Raises:
        UserError: an unknown name or a field that its class refuses.
    """
    corruption = make_corruption("corruption", config.corruption, shape)
    changed = len(config.data_corruption) > 0
    data_corruption = make_corruption("data_corruption", config.data_corruption, shape) if changed else corruption
    schedule = make_schedule(config)
    grid = schedules.TIME_GRIDS[config.e_step.time_grid](schedule, config.e_step.steps)
    return Setup(
        config=config,
        shape=shape,
        corruption=corruption,
        data_corruption=data_corruption,
        schedule=schedule,
        network=make_network(config.network),
        sampler=make_sampler("e_step.sampler", config.e_step.sampler, schedule, config.denoiser.sigma_data),
        times=grid,
        optimizer=make_optimizer(config.m_step, config.m_step.steps),
    )


METHODS: dict[str, Callable[..., DenoiseFn]] = {f"em_{name}": make for name, make in posteriors.POSTERIORS.items()}
"""Methods that train an unconditional network and condition it by a posterior transform."""


def is_unconditional(config: ConfigDict) -> bool:
    """Whether the method trains an unconditional network: the rivals' and any transform from outside."""
    return config.method in METHODS or ":" in config.method


def is_linear(corruption: Corruption) -> bool:
    """Whether the corruption offers the linear family's closed forms."""
    return hasattr(corruption, "solve_gram")


def make_model(setup: Setup, base: Mixture) -> Model:
    """The denoiser, how it is drawn from, and its loss, for the config's method.

    Args:
        setup: what ``make_setup`` gave.
        base: the fitted start.
    """
    config, c = setup.config, setup.corruption
    if config.method == "ambient":
        return _ambient_model(setup)
    if is_unconditional(config):
        denoiser, differentiated = edm(setup, None), edm(_differentiated(setup), None)
        transform = lookup("method", config.method, METHODS)
        options = _transform_options(config, base)

        def bind_transformed(params: PyTree, observation: Observation) -> DenoiseFn:
            return transform(denoisers.bind(differentiated, params), setup.schedule, c, observation, **options)

        return Model(denoiser, bind_transformed, make_loss(setup, denoiser, None))
    if config.denoiser.preconditioning == "posterior":
        if not is_linear(c):
            raise UserError(
                f"config.denoiser.preconditioning: 'posterior' needs a linear corruption, not {config.corruption.name!r}; "
                "use 'edm'"
            )
        linear = cast(LinearCorruption, c)
        prior = base if config.denoiser.base == "start" else bases.isotropic_base(base)
        if config.denoiser.base == "start_moments":
            denoiser = bases.moments_denoiser(setup.network, setup.schedule, linear, setup.shape, base)
        else:
            denoiser = denoisers.posterior_denoiser(setup.network, setup.schedule, linear, setup.shape, prior)
    else:
        denoiser = edm(setup, c)

    def bind(params: PyTree, observation: Observation) -> DenoiseFn:
        denoise = denoisers.bind(denoiser, params, observation, config.e_step.guidance)
        if not config.e_step.consistency:
            return denoise
        return posteriors.consistent(denoise, setup.schedule, c, observation, iterations=config.e_step.consistency)

    return Model(denoiser, bind, make_loss(setup, denoiser, c))


def _differentiated(setup: Setup) -> Setup:
    """The network for samplers that take its products with the Jacobian in the loop over steps.

    A config may ask for XLA's own convolution gradient in the M-step, where the CPU runs it outside of any loop; in the
    sampler's loop it would take the tenfold time. The parameters are the same.
    """
    if not hasattr(setup.network, "native_gradient"):
        return setup
    return setup._replace(network=setup.network.clone(native_gradient=accelerated()))


def _ambient_model(setup: Setup) -> Model:
    config, mask = setup.config, setup.corruption
    if not isinstance(mask, Mask):
        raise UserError(
            f"config.method: 'ambient' is written for masks, not for {config.corruption.name!r}; use 'diffem' or 'em_mmps'"
        )
    if len(config.m_step.augment):
        raise UserError(
            f"config.m_step.augment: {tuple(config.m_step.augment)}; 'ambient' trains on observations as they are; use ()"
        )
    denoiser = ambient.ambient_denoiser(setup.network, setup.schedule, mask, config.denoiser.sigma_data)
    loss = ambient.ambient_loss(
        denoiser,
        setup.schedule,
        mask,
        make_time_law(config, setup.schedule),
        schedules.LOSS_WEIGHTS[config.m_step.loss_weight],
        further=config.ambient.further,
        data_std=config.denoiser.sigma_data,
        dropout=getattr(setup.network, "dropout", 0.0) > 0,
    )
    if config.ambient.reconstruction == "restoration":
        draw = ambient.restoration(denoiser, setup.times, setup.schedule)
    else:
        guided: dict[str, float] = {"further": config.ambient.further, "step": config.dps.step}
        network = _differentiated(setup).network
        differentiated = ambient.ambient_denoiser(network, setup.schedule, mask, config.denoiser.sigma_data)
        draw = ambient.posterior_draw(differentiated, setup.sampler, setup.times, setup.schedule, mask, **guided)
    return Model(denoiser, lambda params, observation: denoisers.bind(denoiser, params, observation), loss, draw)


def _transform_options(config: ConfigDict, base: Mixture) -> dict[str, Any]:
    if ":" in config.method:
        return {}
    if config.method == "em_dps":
        return {"step": config.dps.step}
    if config.method == "em_pigdm":
        return {"data_std": config.denoiser.sigma_data}
    moments = posteriors.single_gaussian(base) if config.mmps.covariance.startswith("cov") else None
    return {"iterations": config.mmps.iterations, "covariance": config.mmps.covariance, "moments": moments}


def draws_from_data(setup: Setup) -> bool:
    """Whether the M-step takes the operators of its fresh observations from those that are there."""
    return (
        setup.config.m_step.operators == "data"
        and not is_unconditional(setup.config)
        and setup.config.method != "ambient"
    )


def edm(setup: Setup, corruption: Corruption | None) -> denoisers.Denoiser:
    """The published denoiser; unconditional for ``corruption`` None."""
    sigma_data = setup.config.denoiser.sigma_data
    return denoisers.edm_denoiser(setup.network, setup.schedule, corruption, setup.shape, sigma_data)


def make_loss(setup: Setup, denoiser: denoisers.Denoiser, corruption: Corruption | None) -> em.Loss:
    """The denoising loss with the config's law of t, weight and augmentations.

    A prior beside a posterior is weighted by its own base, or where it has none as published.
    """
    m, weight = setup.config.m_step, setup.config.m_step.loss_weight
    if corruption is None and not is_unconditional(setup.config):
        weight = "base" if denoiser.open_variance is not None else "snr" if weight == "base" else weight
    if weight == "base" and denoiser.open_variance is None:
        raise UserError(
            "config.m_step.loss_weight: 'base'; expected with denoiser.preconditioning='posterior' and "
            "denoiser.base='start_moments' or 'isotropic'; use 'snr'"
        )
    return denoisers.denoising_loss(
        denoiser,
        setup.schedule,
        corruption,
        make_time_law(setup.config, setup.schedule),
        schedules.LOSS_WEIGHTS.get(weight),
        condition_dropout=m.condition_dropout,
        data_std=setup.config.denoiser.sigma_data,
        dropout=getattr(setup.network, "dropout", 0.0) > 0,
        augment=augment.make(tuple(m.augment), setup.shape),
        operators=m.operators,
        levels=m.noise_levels,
    )
