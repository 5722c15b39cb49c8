"""From a config to a method: what follows from it before any data is read, and the model that it trains and draws with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import optax
from jax import Array
from ml_collections import ConfigDict

from diffem_jax import denoisers, em
from diffem_jax.build.parts import (
    lookup,
    make_corruption,
    make_network,
    make_optimizer,
    make_sampler,
    make_schedule,
    make_time_law,
    make_times,
)
from diffem_jax.corruptions.masks import Mask
from diffem_jax.denoisers import ambient, augment, losses
from diffem_jax.denoisers import guidance as posteriors
from diffem_jax.denoisers import posterior as bases
from diffem_jax.errors import UserError
from diffem_jax.gaussians.gaussians import Mixture
from diffem_jax.parallel import accelerated
from diffem_jax.types import Corruption, DenoiseFn, LinearCorruption, Observation, PyTree, Sampler, Schedule, TimeLaw


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
    time_law: TimeLaw


class Model(NamedTuple):
    """What the method trains and draws with; it depends on the fitted start."""

    denoiser: denoisers.Denoiser
    bind: Callable[[PyTree, Observation], DenoiseFn]
    loss: em.Loss
    draw: Callable[[Array, PyTree, Observation], Array] | None = None
    """How an example is drawn, where it is not by the sampler with ``bind``."""


def make_setup(config: ConfigDict, shape: tuple[int, ...]) -> Setup:
    """Looks up everything that needs no data.

    Raises:
        UserError: an unknown name or a field that its class refuses.
    """
    corruption = make_corruption("corruption", config.corruption, shape)
    changed = len(config.data_corruption) > 0
    data_corruption = make_corruption("data_corruption", config.data_corruption, shape) if changed else corruption
    schedule = make_schedule(config)
    return Setup(
        config=config,
        shape=shape,
        corruption=corruption,
        data_corruption=data_corruption,
        schedule=schedule,
        network=make_network(config.network),
        sampler=make_sampler("e_step.sampler", config.e_step.sampler, schedule, config.denoiser.sigma_data),
        times=make_times(config, schedule),
        optimizer=make_optimizer(config.m_step, config.m_step.steps),
        time_law=make_time_law(config, schedule),
    )


METHODS: dict[str, Callable[..., DenoiseFn]] = {f"em_{name}": make for name, make in posteriors.POSTERIORS.items()}
"""Methods that train an unconditional network and condition it by a posterior transform."""


def is_unconditional(config: ConfigDict) -> bool:
    """Whether the method trains an unconditional network: the rivals' and any transform from outside."""
    return config.method in METHODS or ":" in config.method


def draws_prior(config: ConfigDict) -> bool:
    """Whether the network that the method trains draws from p(x) too, without an observation."""
    return is_unconditional(config) or config.method == "ambient" or config.m_step.condition_dropout > 0


def is_linear(corruption: Corruption) -> bool:
    """Whether the corruption offers the linear family's closed forms."""
    return corruption.is_linear


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
    if config.m_step.loss_weight not in losses.LOSS_WEIGHTS:
        raise UserError(
            f"config.m_step.loss_weight: {config.m_step.loss_weight!r}; 'ambient' has no base to weigh by; use 'snr'"
        )
    denoiser = ambient.ambient_denoiser(setup.network, setup.schedule, mask, config.denoiser.sigma_data)
    loss = ambient.ambient_loss(
        denoiser,
        setup.schedule,
        mask,
        setup.time_law,
        losses.LOSS_WEIGHTS[config.m_step.loss_weight],
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
    """What the config tells a transform; nothing to one that has no section of its own."""
    if config.method == "em_mmps":
        moments = posteriors.single_gaussian(base) if config.mmps.covariance.startswith("cov") else None
        return {"iterations": config.mmps.iterations, "covariance": config.mmps.covariance, "moments": moments}
    if config.method == "em_dps":
        return {"step": config.dps.step}
    return {"data_std": config.denoiser.sigma_data} if config.method == "em_pigdm" else {}


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


def prior_denoiser(setup: Setup, start: Mixture) -> denoisers.Denoiser:
    """That of a run's own prior: as published, or by ``prior.base`` 'start' the one that begins as the fitted start."""
    if setup.config.prior.base == "start":
        return bases.start_denoiser(setup.network, setup.schedule, setup.shape, start)
    return edm(setup, None)


def make_loss(setup: Setup, denoiser: denoisers.Denoiser, corruption: Corruption | None) -> em.Loss:
    """The denoising loss with the config's law of t, weight and augmentations.

    A prior beside a posterior is weighted by its own base, or where it has none as published.
    """
    m, weight = setup.config.m_step, setup.config.m_step.loss_weight
    if corruption is None and not is_unconditional(setup.config):
        weight = "base" if denoiser.open_variance is not None else "snr" if weight == "base" else weight
    if weight == "base" and denoiser.open_variance is None:
        needs = "denoiser.preconditioning='posterior' and denoiser.base='start_moments'"
        if is_unconditional(setup.config):
            needs = f"a method with a base, which {setup.config.method!r} has not"
        raise UserError(f"config.m_step.loss_weight: 'base'; expected with {needs}; use 'snr'")
    return denoisers.denoising_loss(
        denoiser,
        setup.schedule,
        corruption,
        setup.time_law,
        losses.LOSS_WEIGHTS.get(weight),
        condition_dropout=m.condition_dropout,
        data_std=setup.config.denoiser.sigma_data,
        dropout=getattr(setup.network, "dropout", 0.0) > 0,
        augment=augment.make(tuple(m.augment), setup.shape),
        operators=m.operators,
        levels=m.noise_levels,
    )
