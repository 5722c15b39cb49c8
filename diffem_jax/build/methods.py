"""From a config to a method: ``METHODS[name](setup, start)`` is the model that a run trains and draws with.

    name        trains                       on                draws x given y by
    diffem      d(x_t, t | y')               its draws         the sampler with d(. | y)
    oracle      the same                     the hidden truth  the same
    em_<name>   d(x_t, t)                    its draws         the sampler with d under a posterior transform
    ambient     h(A~, A~ x_t, t)             observations      restoration, or the sampler with h under DPS

'module:function' in the place of a name is a posterior transform from outside. Whatever is particular to a method,
refusals included, stands in its function here; the rest of the package looks at the ``Model`` alone.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array
from ml_collections import ConfigDict

from diffem_jax import denoisers, em, types
from diffem_jax.build import parts
from diffem_jax.build.auto import changed, choose
from diffem_jax.config import flatten, lookup
from diffem_jax.corruptions.masks import Mask
from diffem_jax.denoisers import ambient, augment, guidance, losses
from diffem_jax.errors import Preempted, UserError, first_line
from diffem_jax.gaussians.gaussians import Mixture, Start
from diffem_jax.samplers import sample
from diffem_jax.types import Corruption, DenoiseFn, LinearCorruption, Observation, PyTree, Sampler, Schedule, TimeLaw

OWN_PARTS = ("start.name", "schedule.name", "corruption.name", "e_step.sampler", "network.name", "method")
"""Fields whose 'module:name' is traced before any compute."""


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


Prior = Callable[[Sampler, Array], em.Draw]  # (sampler, times) -> draws of p(x)


class Model(NamedTuple):
    """What a method trains and draws with."""

    denoiser: denoisers.Denoiser  # its parameters are what is trained
    loss: em.Loss  # (params, key, example) -> []
    bind: em.Bind  # the denoiser of one observation, for the sampler of the E-step
    draw: em.Draw | None = None  # (key, params, observation) -> x, where the E-step is not the sampler with ``bind``
    prior: Prior | None = None  # draws of p(x) without an observation; None where the network needs one
    trains_on: str = "draws"  # the examples of ``loss``: 'draws' of the round before, 'observations' or 'truth'
    # What an example of the loss holds beside x: 'operator' of the data for the fresh y', and x's 'own' operator.
    takes: tuple[str, ...] = ()


def make_setup(config: ConfigDict, shape: tuple[int, ...], count: int = 0) -> Setup:
    """Looks up everything that needs no data, but for the number of observations (0: many) where fields are 'auto'."""
    config = choose(config, shape, count, parts.make_corruption("corruption", config.corruption, shape))
    corruption = parts.make_corruption("corruption", config.corruption, shape)
    other, schedule = config.data_corruption, parts.make_schedule(config)
    return Setup(
        config=config, shape=shape, corruption=corruption, schedule=schedule, network=parts.make_network(config.network),
        data_corruption=parts.make_corruption("data_corruption", other, shape) if len(other) else corruption,
        sampler=parts.make_sampler("e_step.sampler", config.e_step.sampler, schedule, config.denoiser.sigma_data),
        times=parts.make_times(config, schedule, config.e_step.steps), time_law=parts.make_time_law(config, schedule),
        optimizer=parts.make_optimizer(config.m_step, config.m_step.steps),
    )  # fmt: skip


def make_model(setup: Setup, start: Start) -> Model:
    """The model of the config's method; UserError for an unknown one, or one that does not fit another field."""
    name = setup.config.method
    method = lookup("method", name, METHODS)
    return method(setup, start) if name in METHODS else guided(setup, method)


def diffem(setup: Setup, start: Start) -> Model:
    """DiffEM: a conditional denoiser, trained on its own draws and on fresh observations of them."""
    config, corruption = setup.config, setup.corruption
    denoiser, m = conditional_denoiser(setup, start), config.m_step
    hidden_weight = m.hidden_weight if corruption.is_linear else 1.0
    if hidden_weight < 1 and (moved := {"flip", "shift"} & set(m.augment)):
        found = f"{hidden_weight} with m_step.augment {sorted(moved)}, which move x away from what its observation saw"
        raise UserError(f"config.m_step.hidden_weight: {found}; expected 1; set it, or leave those augmentations out")

    def bind(params: PyTree, observation: Observation) -> DenoiseFn:
        denoise = denoisers.bind(denoiser, params, observation, config.e_step.guidance)
        steps = config.e_step.consistency
        if not steps:
            return denoise
        return guidance.consistent(denoise, setup.schedule, corruption, observation, iterations=steps)

    loss = make_loss(setup, denoiser, corruption, m.loss_weight, hidden_weight)
    prior = sampled_prior(setup, denoiser) if m.condition_dropout > 0 else None
    takes = ("operator",) * (m.operators == "data") + ("own",) * (hidden_weight < 1)
    return Model(denoiser, loss, bind, prior=prior, takes=takes)


def oracle(setup: Setup, start: Start) -> Model:
    """DiffEM's conditional denoiser trained on the clean examples: an upper bound where the data's truth is there."""
    whole = changed(setup.config, {"m_step.hidden_weight": 1.0})
    return diffem(setup._replace(config=whole), start)._replace(trains_on="truth")


def em_mmps(setup: Setup, start: Start) -> Model:
    """EM with an unconditional network and moment matching: Rozet et al. 2024, arXiv 2405.13712."""
    require_linear(setup)
    iterations, moments = setup.config.mmps.iterations, None
    if setup.config.mmps.covariance == "cov_x":
        if not isinstance(start, Mixture):
            given, cure = "config.mmps.covariance: 'cov_x'", "use start.name 'gaussian' or mmps.covariance 'jacobian'"
            raise UserError(f"{given} with start {setup.config.start.name!r}; expected a start of low rank; {cure}")
        moments = guidance.single_gaussian(start)
    return guided(setup, partial(guidance.mmps, iterations=iterations, moments=moments))


def em_pigdm(setup: Setup, start: Start) -> Model:
    """EM with an unconditional network and pseudo-inverse guidance: Song et al. 2023."""
    require_linear(setup)
    return guided(setup, partial(guidance.pigdm, data_std=setup.config.denoiser.sigma_data))


def em_dps(setup: Setup, start: Start) -> Model:
    """EM with an unconditional network and diffusion posterior sampling: Bai et al. 2024, arXiv 2407.01014."""
    return guided(setup, partial(guidance.dps, step=setup.config.dps.step))


def ambient_diffusion(setup: Setup, start: Start) -> Model:
    """Ambient Diffusion: trained on observations that are hidden further, no EM: Daras et al. 2023, arXiv 2305.19256."""
    config, mask, schedule = setup.config, setup.corruption, setup.schedule
    if not isinstance(mask, Mask):
        name = config.corruption.name
        raise UserError(f"config.method: 'ambient' is written for masks, not for {name!r}; use 'diffem' or 'em_mmps'")
    if augmented := tuple(config.m_step.augment):
        raise UserError(f"config.m_step.augment: {augmented}; 'ambient' trains on observations as they are; use ()")
    std, further = config.denoiser.sigma_data, config.ambient.further
    denoiser = ambient.ambient_denoiser(setup.network, schedule, mask, std)
    weight = losses.LOSS_WEIGHTS.get(config.m_step.loss_weight)
    loss = ambient.ambient_loss(denoiser, schedule, mask, setup.time_law, weight, further=further, data_std=std)
    if config.ambient.reconstruction == "restoration":
        draw = ambient.restoration(denoiser, setup.times, schedule)
    else:
        differentiated = ambient.ambient_denoiser(network_in_loops(setup), schedule, mask, std)
        options = {"further": further, "step": config.dps.step}
        draw = ambient.posterior_draw(differentiated, setup.sampler, setup.times, schedule, mask, **options)
    prior = partial(ambient.prior_draw, denoiser, mask=mask, further=further)
    return Model(denoiser, loss, partial(denoisers.bind, denoiser), draw, prior, trains_on="observations")


METHODS: dict[str, Callable[[Setup, Start], Model]] = {
    "diffem": diffem, "oracle": oracle, "em_mmps": em_mmps, "em_pigdm": em_pigdm, "em_dps": em_dps, "ambient": ambient_diffusion,
}  # fmt: skip


def prior_model(setup: Setup, start: Start) -> Model:
    """The model of a run's own prior, whatever its method: unconditional, trained on the last reconstructions.

    By ``prior.base`` 'start' its denoiser begins as the fitted start, whose open part weighs its loss; else it is the published one.
    """
    if setup.config.prior.base == "start":
        denoiser, weight = denoisers.start_denoiser(setup.network, setup.schedule, setup.shape, start), "base"
    else:
        denoiser, weight = edm(setup, setup.network, None), setup.config.m_step.loss_weight
    loss = make_loss(setup, denoiser, None, weight)
    return Model(denoiser, loss, bind=partial(denoisers.bind, denoiser), prior=sampled_prior(setup, denoiser))


def conditional_denoiser(setup: Setup, start: Start) -> denoisers.Denoiser:
    """The denoiser of ``denoiser.preconditioning`` and ``denoiser.base``."""
    config = setup.config.denoiser
    if config.preconditioning == "edm":
        return edm(setup, setup.network, setup.corruption)
    given = setup.network, setup.schedule, require_linear(setup), setup.shape
    if config.base == "start_moments":
        return denoisers.moments_denoiser(*given, start)
    return denoisers.posterior_denoiser(*given, start if config.base == "start" else denoisers.isotropic_base(start))


def edm(setup: Setup, network: nn.Module, corruption: Corruption | None) -> denoisers.Denoiser:
    """The published denoiser; unconditional for ``corruption`` None."""
    return denoisers.edm_denoiser(network, setup.schedule, corruption, setup.shape, setup.config.denoiser.sigma_data)


def guided(setup: Setup, transform: Callable[..., DenoiseFn]) -> Model:
    """An unconditional denoiser, drawn from under a posterior transform (denoise, schedule, corruption, observation)."""
    denoiser = edm(setup, setup.network, None)
    differentiated = edm(setup, network_in_loops(setup), None)

    def bind(params: PyTree, observation: Observation) -> DenoiseFn:
        return transform(denoisers.bind(differentiated, params), setup.schedule, setup.corruption, observation)

    loss = make_loss(setup, denoiser, None, setup.config.m_step.loss_weight)
    return Model(denoiser, loss, bind, prior=sampled_prior(setup, denoiser))


def network_in_loops(setup: Setup) -> nn.Module:
    """The network, the same parameters, for samplers that take its products with the Jacobian in the loop over steps."""
    # XLA's own convolution gradient, which a config may ask for in the M-step, takes a CPU ten times as long in a loop.
    section = setup.config.network
    return parts.make_network({name: section[name] for name in section if name != "native_gradient"})


def sampled_prior(setup: Setup, denoiser: denoisers.Denoiser) -> Prior:
    """Draws of p(x) by a denoiser without an observation."""
    return lambda sampler, times: (
        lambda key, params, _: sample(key, sampler, denoisers.bind(denoiser, params), times, setup.shape)
    )


def require_linear(setup: Setup) -> LinearCorruption:
    """The corruption, which the method or the preconditioning solves with; UserError where it is not linear."""
    config = setup.config
    if not setup.corruption.is_linear:
        wants = f"config.method {config.method!r} with denoiser.preconditioning {config.denoiser.preconditioning!r}"
        cure = "use denoiser.preconditioning='edm' with method 'diffem', or method 'em_dps'"
        found = f"{config.corruption.name!r} is not linear, as {wants} needs it"
        raise UserError(f"config.corruption.name: {found}; {cure}")
    return cast(LinearCorruption, setup.corruption)


def make_loss(
    setup: Setup, denoiser: denoisers.Denoiser, corruption: Corruption | None, weight: str, hidden_weight: float = 1.0
) -> em.Loss:
    """The denoising loss with the config's distribution of t and augmentations; 'base' weighs by what the base leaves open."""
    m, sigma_data = setup.config.m_step, setup.config.denoiser.sigma_data
    strengths = {"shift": m.augment_shift, "hue": m.augment_hue, "saturation": m.augment_saturation}
    options = {"condition_dropout": m.condition_dropout, "operators": m.operators, "hidden_weight": hidden_weight}
    options |= {"augment": augment.make(tuple(m.augment), setup.shape, **strengths), "data_std": sigma_data}
    given = denoiser, setup.schedule, corruption, setup.time_law, losses.LOSS_WEIGHTS.get(weight)
    return denoisers.denoising_loss(*given, **options)


def check_own_parts(setup: Setup, model: Model) -> None:
    """Traces one draw of 'module:name' parts, which may not keep their contract; UserError says which and what went wrong."""
    config = flatten(setup.config)
    own = ", ".join(f"config.{field}: {config[field]!r}" for field in OWN_PARTS if ":" in config[field])
    if not own:
        return

    def use(key: types.Key) -> Array:
        params = model.denoiser.init(key)
        x = jnp.zeros(setup.shape)
        denoise = model.bind(params, setup.corruption.sample(key, x))
        if denoise(x, jnp.ones(())).shape != setup.shape:
            raise ValueError(f"the denoiser yields {denoise(x, jnp.ones(())).shape} for x of {setup.shape}")
        return sample(key, setup.sampler, denoise, setup.times, setup.shape)

    try:
        with jax.debug_key_reuse(False):
            drawn = jax.eval_shape(use, types.stream_key(setup.config.seed, "init"))
        if drawn.shape != setup.shape:
            raise ValueError(f"a draw has shape {drawn.shape}, x has {setup.shape}")
    except (UserError, Preempted):
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {first_line(error)[:200]}"
        cure = "expected objects that keep their contract; try them by the checks of diffem_jax.testing"
        raise UserError(f"{own}: cannot be traced ({found}); {cure}") from error
