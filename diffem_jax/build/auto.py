"""What follows from the data and the corruption where a config says 'auto', or nothing: the shape of x, network, method, sizes.

Everything here is a pure function of the config and of shapes; a run says in its first lines what was chosen.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffem_jax.build.parts import make_corruption
from diffem_jax.config import AUTO, class_fields, flatten, frozen, put, validate
from diffem_jax.corruptions import Mask
from diffem_jax.errors import UserError
from diffem_jax.networks import NETWORKS
from diffem_jax.types import Corruption

Shape = tuple[int, ...]
SMALL_IMAGE = 12 * 12
"""Images of more pixels than this take a convolutional network."""
LARGE_SIDE = 48
"""Images of at least this many pixels a side enter the network as patches of 2 x 2."""
LARGE = 2**21
"""Of images with more entries than this in all an E-step takes minutes on two cores: where operators differ there is one round."""
POSITIONS = 2**15
"""Positions of images in a batch, at most where that leaves four: about a third of a second an update on two cores."""
FEW = 1000
"""Of fewer observations than this, several draws of each are trained on, in fewer updates."""


def choose(config: ConfigDict, shape: Shape, count: int, corruption: Corruption) -> ConfigDict:
    """The configuration without any 'auto', for x of a shape and ``count`` observations, 0 where that is not known."""
    given = flatten(config)
    if AUTO not in given.values():
        return config
    fields = recommended(shape, count, corruption, _network(config, shape), config.start.name)
    free = [name for name in fields if name.startswith(("network.", "corruption.")) and name not in given]
    open_fields = {name: value for name, value in fields.items() if name in free or given.get(name) == AUTO}
    chosen = changed(config, open_fields)
    validate(chosen)
    return chosen


def changed(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """A locked copy of a configuration with some fields set."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked(), copy.ignore_type():
        for name, value in fields.items():
            put(copy, name, value)
    return copy.lock()


def _network(config: ConfigDict, shape: Shape) -> str:
    """The network that a config names; for 'auto' that which has the fields that are set, or else by the shape of x."""
    if config.network.name != AUTO:
        return str(config.network.name)
    own = {f"network.{key}" for key in config.network} - {"network.name"}
    fitting = [name for name in NETWORKS if own <= class_fields("network", name).keys()]
    usual = "unet" if len(shape) > 2 and math.prod(shape[:-1]) > SMALL_IMAGE else "mlp"
    return usual if usual in fitting or not fitting else fitting[0]


def recommended(shape: Shape, count: int, corruption: Corruption, network: str, start: str = AUTO) -> dict[str, Any]:
    """Field -> value for data of a shape, a number of observations, a corruption, a network and a start."""
    # Where operators differ, together they see all of x: what a round made up need not count for much.
    together = corruption.is_linear and corruption.random_operator
    few, large, count = 0 < count < FEW, together and count * math.prod(shape) > LARGE, count or 2**20
    # A convolutional network learns from every position of a batch: of larger images fewer are as many.
    # In large images the closed-form mean carries the finest detail.
    patch = 2 if network == "unet" and corruption.is_linear and min(shape[:-1]) >= LARGE_SIDE else 1
    fit = POSITIONS * patch ** max(len(shape) - 2, 0) // math.prod(shape[:-1])
    most = max(4, min(32, fit)) if network == "unet" else 256
    batch = 2 ** int(math.log2(max(min(most, count), 1)))
    found: dict[str, Any] = {
        "network.name": network,
        "denoiser.preconditioning": "posterior" if corruption.is_linear else "edm",
        "denoiser.base": "start",
        "start.name": "gaussian",
        "start.rank": min(24, math.prod(shape), max(2, count // 12)),
        "start.shrinkage": -1.0 if few else 0.0,
        "start.iterations": 40,
        "rounds": 8,
        # Without a closed form nothing says how wide the draws of few steps must be.
        "e_step.sampler": "analytic_2m" if corruption.is_linear else "dpmpp_2m_sde",
        "e_step.time_grid": "tangent" if corruption.is_linear else "log_uniform",
        "e_step.steps": (8 if network == "unet" else 16) if corruption.is_linear else 32,
        "e_step.batch_size": 512,
        "e_step.draws": min(8, -(-FEW // count)) if few else 1,
        "m_step.steps": 400 if few else 1000,
        "m_step.batch_size": batch,
        "m_step.learning_rate": 1e-3,
        "m_step.loss_weight": "snr",
        "m_step.time_law_beta": ((3.0, 3.0),),
        "m_step.updates_per_dispatch": 10 if network == "unet" else 50,  # seconds on two cores
        "m_step.hidden_weight": 0.2 if together else 1.0,
    }
    if network == "mlp":
        found |= {"network.features": (256, 256, 256), "network.embedding": 64, "network.normalize": True}
    if network == "unet":
        # As many levels as leave seven pixels, at most three.
        levels = 1 + sum(min(shape[:-1]) > 6 * patch * 2**k for k in (1, 2))
        found |= {
            "network.channels": ((16, 32, 64) if patch == 1 else (32, 64, 64))[:levels],
            "network.patch": patch,
            "network.skips": "concat" if patch == 1 else "add",
            "network.blocks": 1,
            "network.heads": (),
            "network.embedding": 64,
            "network.dropout": 0.0,
            "start.iterations": 12,
            "e_step.batch_size": 2 ** int(math.log2(max(16, min(512, 8 * fit)))),
            "rounds": 1 if large else 2,
            "m_step.steps": 450 if large else 400,
            "m_step.learning_rate": 2e-3,
        }
        if corruption.is_linear:
            # The network corrects the start's posterior mean, or an interpolation in its place.
            found |= {"denoiser.base": "start_moments", "m_step.loss_weight": "base"}
            found["m_step.time_law_beta"] = ((4.0, 2.5),)
        if isinstance(corruption, Mask) and start in (AUTO, "stationary"):
            found |= {"start.name": "stationary", "start.iterations": 6}
        elif isinstance(corruption, Mask):
            found |= {"corruption.fill_iterations": 20, "corruption.fill_order": 2}
    return found


def fit_to_file(config: ConfigDict, arrays: Mapping[str, Shape]) -> ConfigDict:
    """The configuration with a corruption that makes what a file holds: the shape of x, and numbers of measurements or coils.

    Only what the config leaves open is set, and only where x has another shape than y. ``arrays`` are the shapes of the arrays
    of the file, 'y' [N, *Y] and the operators.
    """
    y, given = arrays["y"][1:], dict(config.corruption)
    shapes = [tuple(config.data.shape)] if len(config.data.shape) else list(_shapes(y, arrays))
    for shape in shapes:
        for more in _options(config, y, shape):
            if _makes({**given, **more}, shape, arrays):
                if not more and shape == y:
                    return config
                fields = {f"corruption.{key}": value for key, value in more.items()}
                return changed(config, {**fields, "data.shape": () if shape == y else shape})
    return config


def _shapes(y: Shape, arrays: Mapping[str, Shape]) -> Iterator[Shape]:
    """Shapes that x may have, the likeliest first."""
    if y[-1:] == (1,):
        yield (*y[:-1], 3)  # grey of colour
    yield y
    for name, shape in arrays.items():
        if name != "y":
            yield from (shape[1:], shape[2:])  # an operator of the size of x, or a matrix of its columns
    for factor in range(2, 9):
        yield (*(factor * side for side in y[:-1]), y[-1]) if len(y) > 1 else (factor * y[0],)
        yield (*(side // factor for side in y[:-1]), y[-1]) if len(y) > 1 else (y[0] // factor,)
    for channels in {y[-1] // 2, 2}:  # Fourier coefficients, real and imaginary part apart
        yield (*y[:-1], channels)
        yield (*y[:-2], channels)


def _options(config: ConfigDict, y: Shape, shape: Shape) -> Iterator[dict[str, Any]]:
    """Fields of the corruption that the shape of y may decide, where nobody set them."""
    yield {}
    known = class_fields("corruption", config.corruption.name)
    guesses = {"measurements": y[-1], "coils": y[-2] if len(y) > 1 else 0, "ratio": y[-1] / max(1, math.prod(shape))}
    for key, value in guesses.items():
        if f"corruption.{key}" in known and key not in config.corruption:
            yield {key: value}


def _makes(section: Mapping[str, Any], shape: Shape, arrays: Mapping[str, Shape]) -> bool:
    """Whether a corruption yields arrays of these shapes of x of a shape."""
    if not shape or min(shape) < 1:
        return False
    try:
        corruption = make_corruption("corruption", section, shape)
        made = jax.eval_shape(corruption.sample, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    except (UserError, ValueError, TypeError, IndexError, ZeroDivisionError):
        return False
    leaves = zip(corruption.operator_names(), jax.tree.leaves(made.operator), strict=True)
    fits = (leaf.shape in (arrays[name], arrays[name][1:]) for name, leaf in leaves if name in arrays)
    return made.y.shape == arrays["y"][1:] and all(fits)


def explain(given: ConfigDict, chosen: ConfigDict) -> list[str]:
    """Lines that say what a run chose by itself, and how to choose otherwise."""
    before, after = flatten(given), flatten(chosen)
    new = {name: value for name, value in after.items() if before.get(name) != value}
    if not new:
        return []
    linear = "linear" if after["denoiser.preconditioning"] == "posterior" else "not linear"
    reasons = {
        "data.shape": "by the shape of y",
        "network.name": "by the shape of x",
        "denoiser.preconditioning": f"as {after['corruption.name']} is {linear}",
    }
    said = [f"{name} {new[name]} ({reason})" for name, reason in reasons.items() if name in new]
    said += [f"{name} {frozen(value)}" for name, value in new.items() if name not in reasons]
    flag = f"each is a flag, as in --config.{said[0].partition(' ')[0]}=VALUE"
    return textwrap.wrap(f"{'chosen':<12}{', '.join(said)}; {flag}", 110, subsequent_indent=" " * 12)
