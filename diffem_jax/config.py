"""The configuration: every field with its default and meaning, and the checks that run before any compute."""

from __future__ import annotations

import difflib
import json
import math
from typing import Any

from ml_collections import ConfigDict

from diffem_jax.denoisers.guidance import COVARIANCES, POSTERIORS
from diffem_jax.denoisers.losses import LOSS_WEIGHTS, TIME_LAWS
from diffem_jax.errors import UserError
from diffem_jax.gaussians.starts import STARTS
from diffem_jax.samplers.schedules import SCHEDULES, TIME_GRIDS


def default() -> ConfigDict:
    """Every field with its default; a config file changes what it needs.

    Comments give meaning and range. Fields ending in ``_steps`` or named ``steps`` count updates or sampler steps.
    """
    c = ConfigDict()
    c.seed = 0  # every stream of randomness derives from it
    c.rounds = 4  # EM rounds after the start
    c.method = "diffem"  # diffem | em_mmps | em_pigdm | em_dps | ambient (masks) | oracle (trains on the hidden truth, an upper bound) | 'module:function', a posterior transform
    c.parallel = "pmap"  # pmap | jit
    c.writers = ()  # besides the work directory: tensorboard, wandb (extras of the package), or 'module:name'

    c.data = ConfigDict()
    c.data.name = "digits"  # a source of diffem_jax.data, 'tfds:<name>', 'folder', 'arrays' or 'observations'
    c.data.path = ""  # file or folder of the last three
    c.data.split = "train"  # train, test (held out) or all; of a tfds set any of its splits, or several: a+b
    c.data.num_examples = 0  # 0 takes all
    c.data.shape = ()  # shape of x: of crops and resized images, or of own data whose y has another shape
    c.data.crop = 0  # side of the centre square cut before resizing; 0 is the largest
    c.data.cache_dir = ""  # prepared data; '' is $DIFFEM_DATA_DIR or ~/.cache/diffem_jax

    c.corruption = ConfigDict(convert_dict=True)
    c.corruption.name = "pixel_mask"  # a key of CORRUPTIONS or 'module:ClassName'; further fields are the class's own
    c.corruption.noise_std = 0.01  # standard deviation of the noise in y, in the units of y
    c.data_corruption = ConfigDict()  # empty: the same as corruption; else what made the simulated observations

    c.network = ConfigDict()
    c.network.name = "mlp"  # a key of NETWORKS or 'module:ClassName'; further fields are the class's own

    c.denoiser = ConfigDict()
    c.denoiser.preconditioning = "posterior"  # posterior | edm
    # Base of 'posterior': start (the fitted start, exact at every step), start_moments (its posterior mean and variance
    # given y, once a draw) or isotropic (its overall mean and average variance).
    c.denoiser.base = "start"
    # Standard deviation of x: 'edm' scales by it, samplers begin with it, the loss weight 'snr' uses it.
    c.denoiser.sigma_data = 1.0

    c.schedule = ConfigDict()
    c.schedule.name = "ve"  # ve | vp | rectified_flow | 'module:ClassName', whose further fields may be added
    c.schedule.sigma_min = 1e-3  # smallest noise, sigma / alpha at t = 0: below the least detail that matters
    c.schedule.sigma_max = 100.0  # largest noise, sigma / alpha at t = 1: far above the spread of x

    c.start = ConfigDict()
    c.start.name = "gaussian"  # gaussian | mixture | 'module:function', whose further fields may be added
    c.start.rank = 64  # rank of the covariance beyond its diagonal
    c.start.components = 1  # of the mixture
    c.start.iterations = 40  # EM iterations at most
    c.start.tolerance = 1e-4  # log-likelihood gain a coordinate below which a fit ends
    c.start.variance_floor = 1e-4  # least variance of a coordinate beyond the covariance of low rank
    c.start.minibatch = 0  # observations an M-step of the fit; 0 takes all, fewer is stepwise EM
    c.start.num_examples = 0  # observations used for fitting; 0 takes all
    c.start.checkpoint = ""  # an earlier run's work directory to begin from (a warm start)
    c.start.take = "reconstructions"  # reconstructions | parameters | both: what is taken from it

    c.e_step = ConfigDict()
    c.e_step.sampler = "ddpm"  # a key of SAMPLERS or 'module:function'
    c.e_step.steps = 32  # steps of the sampler a draw
    c.e_step.draws = 1  # draws an observation, all of which the next round trains on; more where observations are few
    c.e_step.time_grid = "log_uniform"  # log_uniform | karras
    c.e_step.batch_size = 1024  # examples at once over all devices
    c.e_step.shard_size = 0  # examples a shard file; 0 is 8 batches
    # Draws use free + guidance (conditional - free); other values than 1 need m_step.condition_dropout > 0.
    c.e_step.guidance = 1.0
    # Gradient steps of x-hat towards y at each evaluation; for corruptions that are not linear.
    c.e_step.consistency = 0

    c.m_step = ConfigDict()
    c.m_step.steps = 1000  # updates a round
    c.m_step.batch_size = 512  # over all devices
    c.m_step.learning_rate = 1e-3  # at the beginning of each round, after the warm-up
    c.m_step.learning_rate_schedule = "cosine"  # constant | linear | cosine, over a round, down to learning_rate_end
    c.m_step.learning_rate_end = 1e-6  # where linear and cosine end
    c.m_step.warmup_steps = 0  # updates at the beginning of a round over which the rate rises from 0
    c.m_step.optimizer = "adam"  # adam | adamw | sgd
    c.m_step.weight_decay = 0.0  # of adamw
    c.m_step.clip_norm = 1.0  # 0 does not clip
    c.m_step.ema_decay = 0.999  # of the moving average of the parameters that draws; 0 takes the last ones
    # Whether the average forgets its beginning: at update n its decay is min(ema_decay, (1 + n) / (10 + n)).
    c.m_step.ema_warmup = True
    c.m_step.carry = "params"  # what goes over to the next round: all | params | nothing
    c.m_step.time_law = "beta"  # uniform | beta | log_normal
    c.m_step.time_law_beta = ((3.0, 3.0),)  # of 'beta': pairs (a, b), an even mixture of Beta(a, b)
    c.m_step.time_law_log_normal = (-1.2, 1.2)  # of 'log_normal': mean and standard deviation of log(sigma / alpha)
    c.m_step.loss_weight = "snr"  # snr | min_snr | base (by what the base of the denoiser leaves open)
    c.m_step.noise_levels = 1  # noise levels an example in one update, of the same x and y'
    c.m_step.condition_dropout = 0.0  # > 0 trains the prior with the same network
    c.m_step.operators = "law"  # of the fresh y': law (as the corruption draws them) | data (those of the observations)
    c.m_step.augment = ()  # any of flip, shift, hue, saturation, by name
    c.m_step.accumulate = 1  # parts of a batch taken one after another, to save memory
    c.m_step.updates_per_dispatch = 50  # updates in one call of the device: more hides the host, fewer answer sooner

    c.prior = ConfigDict()
    c.prior.steps = 0  # updates of an unconditional denoiser on the last reconstructions; 0 trains none
    c.prior.base = "start"  # none: the published denoiser | start: one that begins as the fitted start
    c.prior.sampler = "ddim"  # of the prior's draws: a key of SAMPLERS or 'module:function'
    c.prior.sampler_steps = 64  # steps of that sampler

    c.mmps = ConfigDict()
    c.mmps.iterations = 1  # conjugate-gradient iterations
    c.mmps.covariance = "jacobian"  # jacobian | cov_x | cov_t | zeros

    c.dps = ConfigDict()
    c.dps.step = 1.0  # guidance strength of em_dps and of ambient's 'dps'

    c.ambient = ConfigDict()
    c.ambient.further = 0.1  # probability that a seen entry is hidden from the network in training
    c.ambient.reconstruction = "restoration"  # restoration (one call, E[x | y], not a draw) | dps (posterior draws)

    c.stop = ConfigDict()
    # The round to keep, chosen without clean data: none | held_out | observation_score | observation_distance.
    c.stop.rule = "none"
    c.stop.patience = 3  # rounds without a new best after which the run ends

    c.eval = ConfigDict()
    c.eval.metrics = ()  # keys of diffem_jax.run.measures.METRICS: psnr, sinkhorn, observation_score, ...
    # 'module:function', x [N, ...] -> features [N, D], for frechet, kid, features_precision; '' takes x itself
    c.eval.features = ""
    c.eval.weights = ""  # file or folder with the weights that fid, inception_score, fd_dinov2 and lpips need offline
    c.eval.posterior_draws = 8  # draws an observation of --mode=evaluate
    c.eval.posterior_examples = 256  # observations that --mode=evaluate draws for
    c.eval.num_examples = 0  # rows used; 0 takes all
    c.eval.every = 1  # rounds

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 2000  # rolling checkpoint inside an M-step
    c.checkpoint.keep_rounds = 0  # rounds kept; 0 keeps all
    return c.lock()


OPEN_SECTIONS = ("corruption", "data_corruption", "network")
"""Sections whose further fields belong to the class that their ``name`` chooses."""

RETIRED: dict[str, Any] = {
    "recover": 0,
    "e_step.steps_added": 0,
    "e_step.parts": 1,
    "e_step.burn_in": 0,
    "e_step.picard": 0,
}
"""Fields of earlier versions, with the value under which they changed nothing: a stored run may still have that one."""

PLUGGABLE = ("method", "schedule.name", "start.name")
"""Fields with choices that also take 'module:name'; a section named so may have further fields."""

CHOICES: dict[str, tuple[str, ...]] = {
    "method": ("diffem", *(f"em_{name}" for name in POSTERIORS), "ambient", "oracle"),
    "parallel": ("pmap", "jit"),
    "denoiser.preconditioning": ("posterior", "edm"),
    "denoiser.base": ("start", "start_moments", "isotropic"),
    "schedule.name": tuple(SCHEDULES),
    "start.name": tuple(STARTS),
    "e_step.time_grid": tuple(TIME_GRIDS),
    "m_step.learning_rate_schedule": ("constant", "linear", "cosine"),
    "m_step.optimizer": ("adam", "adamw", "sgd"),
    "m_step.carry": ("all", "params", "nothing"),
    "m_step.time_law": tuple(TIME_LAWS),
    "m_step.loss_weight": (*LOSS_WEIGHTS, "base"),
    "m_step.operators": ("law", "data"),
    "mmps.covariance": tuple(COVARIANCES),
    "ambient.reconstruction": ("dps", "restoration"),
    "prior.base": ("none", "start"),
    "start.take": ("reconstructions", "parameters", "both"),
    "stop.rule": ("none", "held_out", "observation_score", "observation_distance"),
}

# (least, greatest) of numeric fields; both ends allowed.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "rounds": (0, 100_000),
    "data.num_examples": (0, 2**40),
    "data.crop": (0, 65536),
    "denoiser.sigma_data": (1e-6, 1e6),
    "schedule.sigma_min": (1e-6, 1e3),
    "schedule.sigma_max": (1e-6, 1e6),
    "start.rank": (1, 100_000),
    "start.components": (1, 10_000),
    "start.iterations": (1, 100_000),
    "start.tolerance": (0, 1e6),
    "start.variance_floor": (1e-12, 1e3),
    "start.minibatch": (0, 2**32),
    "start.num_examples": (0, 2**40),
    "e_step.steps": (1, 100_000),
    "e_step.draws": (1, 10_000),
    "e_step.batch_size": (1, 2**24),
    "e_step.shard_size": (0, 2**32),
    "e_step.guidance": (0, 100),
    "e_step.consistency": (0, 1000),
    "m_step.steps": (1, 10**9),
    "m_step.batch_size": (1, 2**24),
    "m_step.learning_rate": (1e-12, 10),
    "m_step.learning_rate_end": (0, 10),
    "m_step.warmup_steps": (0, 10**9),
    "m_step.weight_decay": (0, 10),
    "m_step.clip_norm": (0, 1e9),
    "m_step.ema_decay": (0, 0.9999999),
    "m_step.noise_levels": (1, 10_000),
    "m_step.condition_dropout": (0, 0.99),
    "m_step.accumulate": (1, 2**16),
    "m_step.updates_per_dispatch": (1, 10**6),
    "prior.steps": (0, 10**9),
    "prior.sampler_steps": (1, 100_000),
    "mmps.iterations": (1, 1000),
    "dps.step": (0, 1e6),
    "ambient.further": (0.0, 0.99),
    "stop.patience": (1, 10**6),
    "eval.posterior_draws": (2, 10**6),
    "eval.posterior_examples": (1, 2**40),
    "eval.num_examples": (0, 2**40),
    "eval.every": (1, 10**6),
    "checkpoint.every_steps": (1, 10**9),
    "checkpoint.keep_rounds": (0, 10**6),
}


def nearest(name: str, names: Any) -> str:
    """'; did you mean X?' for a mistyped name, or the list of names."""
    names = sorted(map(str, names))
    close = difflib.get_close_matches(str(name), names, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(names)}"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{'section.field': value} of a nested config, tuples as lists, as JSON would give it back."""
    out: dict[str, Any] = {}
    for key in sorted(config):
        value, name = config[key], f"{prefix}{key}"
        if hasattr(value, "keys"):
            out.update(flatten(value, name + "."))
        else:
            out[name] = json.loads(json.dumps(value))
    return out


def validate(config: ConfigDict) -> None:
    """Checks names, types and ranges.

    Raises:
        UserError: the first wrong field, its value, what was expected and the nearest name.
    """
    known, given = flatten(default()), flatten(config)
    for name, value in given.items():
        section = name.split(".")[0]
        if name not in known:
            if section in OPEN_SECTIONS or _is_plugged(f"{section}.name", given):
                _check_finite(name, value)
                continue
            raise UserError(f"config.{name}: unknown field; {nearest(name, known)}")
        _check_type(name, value, known[name])
        _check_finite(name, value)
        if name in CHOICES and value not in CHOICES[name] and not _is_plugged(name, given):
            raise UserError(f"config.{name}: {value!r} is not known; {nearest(value, CHOICES[name])}")
        if name in RANGES:
            low, high = RANGES[name]
            if not low <= value <= high:
                raise UserError(f"config.{name}: {value!r}; expected a number from {low:g} to {high:g}")
    for name in known:
        if name not in given and name.split(".")[0] not in OPEN_SECTIONS:
            raise UserError(f"config.{name}: missing; start a config file from diffem_jax.config.default()")
    _check_together(config)


def _is_plugged(name: str, given: dict[str, Any]) -> bool:
    return name in PLUGGABLE and ":" in str(given.get(name))


def _check_type(name: str, value: Any, default_value: Any) -> None:
    kinds: dict[type, tuple[type, ...]] = {float: (float, int), int: (int,), str: (str,), bool: (bool,), list: (list,)}
    expected = kinds[type(default_value)]
    wrong_bool = isinstance(value, bool) and bool not in expected
    if not isinstance(value, expected) or wrong_bool:
        raise UserError(f"config.{name}: {value!r} is a {type(value).__name__}; expected {expected[0].__name__}")


def _check_finite(name: str, value: Any) -> None:
    if isinstance(value, list):
        for entry in value:
            _check_finite(name, entry)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config.{name}: {value!r}; expected a finite number")


def check_training(config: ConfigDict) -> None:
    """Refuses fields that the training would pass over, given the method; a run that is there already may have them.

    Raises:
        UserError: names the field, its value and the method.
    """
    e, m = config.e_step, config.m_step
    ignored: dict[str, tuple[Any, Any]] = {}
    if config.method not in ("diffem", "oracle"):
        ignored = {"e_step.guidance": (e.guidance, 1)}
    if config.method == "ambient":
        ignored |= {"m_step.noise_levels": (m.noise_levels, 1)}
    for name, (value, without) in ignored.items():
        if value != without:
            raise UserError(
                f"config.{name}: {value} with method {config.method!r}, which does not use it; expected {without}; set it"
            )
    if e.guidance != 1 and not m.condition_dropout > 0:
        raise UserError(
            f"config.e_step.guidance: {e.guidance} with m_step.condition_dropout 0, so that nothing trains the prior that it "
            "leads away from; expected 1; set it, or m_step.condition_dropout=0.1"
        )


def _check_together(config: ConfigDict) -> None:
    if not config.schedule.sigma_min < config.schedule.sigma_max:
        raise UserError(
            f"config.schedule.sigma_min: {config.schedule.sigma_min}; expected less than sigma_max = {config.schedule.sigma_max}"
        )
    if config.m_step.batch_size % config.m_step.accumulate:
        raise UserError(
            f"config.m_step.accumulate: {config.m_step.accumulate}; expected a divisor of batch_size = {config.m_step.batch_size}"
        )
    if config.data.name in ("folder", "arrays", "observations") and not config.data.path:
        raise UserError(f"config.data.path: ''; expected a file or folder, since data.name is {config.data.name!r}")
    if config.e_step.draws > 1 and config.method in ("ambient", "oracle"):
        raise UserError(
            f"config.e_step.draws: {config.e_step.draws} with method {config.method!r}, which does not train on its draws; "
            "expected 1; set it"
        )
    _check_lists(config)


def _numbers(value: Any, kinds: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(v, kinds) and not isinstance(v, bool) for v in value)


def _check_lists(config: ConfigDict) -> None:
    pairs, law, shape = config.m_step.time_law_beta, config.m_step.time_law_log_normal, config.data.shape
    if not len(pairs) or not all(_numbers(pair) and len(pair) == 2 and min(pair) > 0 for pair in pairs):
        raise UserError(
            f"config.m_step.time_law_beta: {pairs!r}; expected pairs of two positive numbers, ((3.0, 3.0),)"
        )
    if not (_numbers(law) and len(law) == 2 and law[1] > 0):
        raise UserError(f"config.m_step.time_law_log_normal: {law!r}; expected (mean, std) with std > 0")
    if not _numbers(shape, int) or any(not 0 < side <= 2**24 for side in shape):
        raise UserError(
            f"config.data.shape: {shape!r}; expected positive integers, (32, 32, 3), or () for the data's own"
        )
    lists = (
        ("m_step.augment", config.m_step.augment),
        ("eval.metrics", config.eval.metrics),
        ("writers", config.writers),
    )
    for name, given in lists:
        if not all(isinstance(entry, str) for entry in given):
            raise UserError(f"config.{name}: {given!r}; expected names, ('psnr',) or ('flip',) for instance")


# A run may be prolonged or watched differently without being another run.
FREE_FIELDS = (
    "rounds",
    "parallel",
    "writers",
    "data.cache_dir",
    "prior.",
    "eval.",
    "stop.",
    "checkpoint.",
    "e_step.shard_size",
)


def differences(config: ConfigDict, stored: dict[str, Any]) -> list[str]:
    """Fields in which a config differs from a stored one, as 'field: stored -> now', but for the free ones.

    A field that the stored one does not have, because it is newer, counts as its default.
    """
    usual = {name: value for name, value in flatten(default()).items() if name.split(".")[0] not in OPEN_SECTIONS}
    now, before = usual | flatten(config), usual | stored
    return [
        f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
        for name in sorted(set(now) | set(before))
        if now.get(name) != before.get(name)
        and not name.startswith(FREE_FIELDS)
        and not (name in RETIRED and before.get(name) == RETIRED[name])
    ]
