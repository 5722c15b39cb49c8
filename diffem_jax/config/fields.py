"""The one table of fields of the configuration, the rules over several of them, and the fields that are gone."""

from collections.abc import Callable
from typing import Any, NamedTuple

from diffem_jax.corruptions import CORRUPTIONS
from diffem_jax.denoisers import LOSS_WEIGHTS, POSTERIORS, TIME_LAWS
from diffem_jax.gaussians.starts import STARTS
from diffem_jax.networks import NETWORKS
from diffem_jax.samplers.samplers import SAMPLERS
from diffem_jax.samplers.schedules import SCHEDULES, TIME_GRIDS


class Field(NamedTuple):
    """One field of the configuration: 'section.field' or, for those of the whole run, the field alone.

    ``allowed`` holds the names that it takes, its least and greatest number, or its type; None is the type of the default.
    ``OWN`` among the names stands for 'module:name', an object of the user's own.
    """

    name: str
    default: Any
    allowed: Any
    meaning: str

    @property
    def kind(self) -> Any:
        """The type of its value, as an annotation."""
        return type(self.default) if self.allowed is None or isinstance(self.allowed, tuple) else self.allowed

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that it takes, or () where it is no name of a list."""
        return self.allowed if isinstance(self.allowed, tuple) and isinstance(self.allowed[0], str) else ()

    @property
    def range(self) -> tuple[float, float] | None:
        """The least and the greatest number, both allowed."""
        return self.allowed if isinstance(self.allowed, tuple) and not self.choices else None


OWN = "module:name"
NAMES, INTEGERS, PAIRS = tuple[str, ...], tuple[int, ...], tuple[tuple[float, float], ...]
COUNT, STEPS, BATCH = (0, 2**40), (1, 10**9), (1, 2**24)

TABLE = (
    Field("seed", 0, (0, 2**31 - 1), "every stream of randomness derives from it"),
    Field("rounds", 4, (0, 100_000), "EM rounds after the start"),
    Field("method", "diffem", ("diffem", *(f"em_{name}" for name in POSTERIORS), "ambient", "oracle", OWN), "diffem; em_* or a posterior "
          "transform of your own, which condition an unconditional network; ambient, for masks; oracle, trained on the hidden truth"),
    Field("parallel", "pmap", ("pmap", "jit", "fsdp"), "how devices share the work; fsdp cuts the state over them"),
    Field("writers", (), NAMES, "besides the work directory: tensorboard, wandb (extras) or module:name"),
    Field("data.name", "digits", str, "a source of diffem_jax.data, tfds:NAME, folder, arrays, observations or module:name"),
    Field("data.path", "", str, "file or folder of folder, arrays and observations"),
    Field("data.split", "train", str, "train, test (held out) or all; for tfds any of the set's splits, or several: a+b"),
    Field("data.num_examples", 0, COUNT, "examples used; 0 takes all"),
    Field("data.shape", (), INTEGERS, "shape of x: of crops, of resized images, or where y has another one; () follows the data"),
    Field("data.scale", 1.0, (1e-30, 1e30), "of observations: multiplies y and is undone in draws; noise_std is after scaling"),
    Field("data.alpha", "refuse", ("refuse", "mask", "drop"), "of observations in a folder: what transparency is; mask: 0 hidden, 255 seen"),
    Field("data.categories", (), NAMES, "of a .csv: columns of numbers that are categories"),
    Field("data.window", 0, COUNT, "rows of the windows that the one long series of a .csv is cut into; 0: it is a table"),
    Field("data.crop", 0, (0, 65536), "side of the centre square that is cut before resizing; 0 is the largest"),
    Field("data.cache_dir", "", str, "prepared data; '' is $DIFFEM_DATA_DIR or ~/.cache/diffem_jax"),
    Field("corruption.name", "pixel_mask", (*CORRUPTIONS, OWN), "what made y; its class has further fields"),
    Field("network.name", "mlp", (*NETWORKS, OWN), "the network; its class has further fields"),
    Field("denoiser.preconditioning", "posterior", ("posterior", "edm"), "posterior (linear corruptions) or edm (any)"),
    Field("denoiser.base", "start", ("start", "start_moments", "isotropic"), "base of 'posterior': the fitted start, exact at every "
          "step; its posterior mean and variance given y, once per draw; or its overall mean and average variance"),
    Field("denoiser.sigma_data", 1.0, (1e-6, 1e6), "standard deviation of x, for 'edm', samplers and the loss weight 'snr'"),
    Field("schedule.name", "ve", (*SCHEDULES, OWN), "the noise schedule"),
    Field("schedule.sigma_min", 1e-3, (1e-6, 1e3), "smallest sigma / alpha, at t = 0: below the least detail that matters"),
    Field("schedule.sigma_max", 100.0, (1e-6, 1e6), "largest sigma / alpha, at t = 1: far above the spread of x"),
    Field("start.name", "gaussian", (*STARTS, OWN), "what is fitted before round 1; stationary is for images"),
    Field("start.rank", 64, (1, 100_000), "rank of the covariance beyond its diagonal"),
    Field("start.components", 1, (1, 10_000), "components of the mixture"),
    Field("start.iterations", 40, (1, 100_000), "EM iterations at most"),
    Field("start.tolerance", 1e-4, (0, 1e6), "gain of log-likelihood per coordinate below which a fit ends"),
    Field("start.variance_floor", 1e-4, (1e-12, 1e3), "least variance of a coordinate beyond the low-rank part"),
    Field("start.shrinkage", 0.0, (-1, 1e6), "examples without correlations added to the fit; below 0: by what it leaves out"),
    Field("start.num_examples", 0, COUNT, "observations used for the fit; 0 takes all"),
    Field("start.checkpoint", "", str, "an earlier run's work directory to begin from (a warm start)"),
    Field("start.take", "reconstructions", ("reconstructions", "parameters", "both"), "what is taken from that run"),
    Field("e_step.sampler", "analytic_2m", (*SAMPLERS, OWN), "the sampler of the draws"),
    Field("e_step.steps", 32, (1, 100_000), "sampler steps per draw"),
    Field("e_step.draws", 1, (1, 10_000), "draws per observation, all of which are trained on; more where there are few"),
    Field("e_step.time_grid", "tangent", (*TIME_GRIDS, OWN), "times of the sampler's steps"),
    Field("e_step.batch_size", 1024, BATCH, "draws made in one call, over all devices: memory and speed, not what is drawn"),
    Field("e_step.shard_size", 0, (0, 2**32), "examples per file of reconstructions; 0 is 8 batches"),
    Field("e_step.guidance", 1.0, (0, 100), "draws use free + guidance (conditional - free); but 1 needs m_step.condition_dropout"),
    Field("e_step.consistency", 0, (0, 1000), "gradient steps of x-hat towards y per evaluation, for nonlinear corruptions"),
    Field("m_step.steps", 1000, STEPS, "updates per round"),
    Field("m_step.batch_size", 512, BATCH, "examples per update over all devices"),
    Field("m_step.learning_rate", 1e-3, (1e-12, 10), "at the beginning of each round, after the warm-up"),
    Field("m_step.learning_rate_schedule", "cosine", ("constant", "linear", "cosine"), "its course over a round"),
    Field("m_step.learning_rate_end", 1e-6, (0, 10), "where linear and cosine end"),
    Field("m_step.warmup_steps", 0, (0, 10**9), "updates of a round over which the rate rises from 0"),
    Field("m_step.optimizer", "adam", ("adam", "adamw", "sgd", "muon"), "muon: for kernels, the rest by adam at a fifth of the rate"),
    Field("m_step.weight_decay", 0.0, (0, 10), "of adamw"),
    Field("m_step.clip_norm", 1.0, (0, 1e9), "0 does not clip"),
    Field("m_step.ema_decay", 0.999, (0, 0.9999999), "of the average of the parameters that draws; 0 takes the last ones"),
    Field("m_step.ema_warmup", True, bool, "the average forgets its beginning: decay min(ema_decay, (1 + n) / (10 + n)) at update n"),
    Field("m_step.carry", "params", ("all", "params", "ema", "nothing"), "what goes over to the next round"),
    Field("m_step.time_law", "beta", (*TIME_LAWS, OWN), "the distribution of t in the loss"),
    Field("m_step.time_law_beta", ((3.0, 3.0),), PAIRS, "of 'beta': pairs (a, b), an even mixture of Beta(a, b)"),
    Field("m_step.time_law_log_normal", (-1.2, 1.2), tuple[float, float], "mean and standard deviation of log(sigma / alpha)"),
    Field("m_step.loss_weight", "snr", (*LOSS_WEIGHTS, "base"), "weight of the loss at t; base: by what the denoiser's base leaves open"),
    Field("m_step.condition_dropout", 0.0, (0, 0.99), "share of examples trained without y'; above 0 the prior is trained too"),
    Field("m_step.operators", "law", ("law", "data"), "operators of the fresh y': as the corruption draws them, or the observations'"),
    Field("m_step.hidden_weight", 1.0, (0, 1), "weight in the loss of what x's own observation left open, for linear corruptions; 1 "
          "as published, less hands on less of a round's errors"),
    Field("m_step.augment", (), NAMES, "any of flip, shift, hue, saturation"),
    Field("m_step.augment_shift", 4, (1, 1024), "pixels by which 'shift' moves at most"),
    Field("m_step.augment_hue", 0.01, (0, 0.5), "turns of the colour circle by which 'hue' rotates at most"),
    Field("m_step.augment_saturation", (0.95, 1.05), tuple[float, float], "least and greatest factor of 'saturation'"),
    Field("m_step.accumulate", 1, (1, 2**16), "parts of a batch taken one after another, to save memory"),
    Field("m_step.updates_per_dispatch", 50, (1, 10**6), "updates per call of the device: more hide the host, fewer answer sooner"),
    Field("prior.steps", 0, (0, 10**9), "updates of an unconditional denoiser on the last draws; 0 trains none"),
    Field("prior.base", "start", ("none", "start"), "none: the published denoiser; start: one that begins as the fitted start"),
    Field("prior.sampler", "analytic_2m", (*SAMPLERS, OWN), "the sampler of the prior's draws"),
    Field("prior.sampler_steps", 64, (1, 100_000), "steps of that sampler"),
    Field("mmps.iterations", 1, (1, 1000), "conjugate-gradient iterations of em_mmps"),
    Field("mmps.covariance", "jacobian", ("jacobian", "cov_x"), "of x given x_t in em_mmps: by the network's Jacobian or the start's covariance"),
    Field("dps.step", 1.0, (0, 1e6), "strength of the guidance of em_dps and of ambient's 'dps'"),
    Field("ambient.further", 0.1, (0, 0.99), "probability that a seen entry is hidden from the network in training"),
    Field("ambient.reconstruction", "restoration", ("dps", "restoration"), "posterior draws, or one call: E[x | y], not a draw"),
    Field("stop.rule", "none", ("none", "held_out", "observation_score", "observation_distance"), "which round to keep"),
    Field("stop.patience", 3, (1, 10**6), "rounds without a new best after which the run ends"),
    Field("eval.metrics", (), NAMES, "measures of each round: psnr, sinkhorn, observation_score, ... or module:name"),
    Field("eval.features", "", str, "module:function, x [N, ...] -> features [N, D], for frechet, kid, features_precision; '' takes x"),
    Field("eval.weights", "", str, "file or folder of weights that fid, inception_score, fd_dinov2 and lpips need offline"),
    Field("eval.posterior_draws", 8, (2, 10**6), "draws per observation of --mode=evaluate"),
    Field("eval.posterior_examples", 256, (1, 2**40), "observations that --mode=evaluate draws for"),
    Field("eval.num_examples", 0, COUNT, "rows used; 0 takes all"),
    Field("eval.every", 1, (1, 10**6), "rounds from one evaluation to the next"),
    Field("checkpoint.every_steps", 2000, STEPS, "updates between rolling checkpoints inside an M-step"),
    Field("checkpoint.keep_rounds", 0, (0, 10**6), "rounds kept; 0 keeps all"),
)  # fmt: skip
AUTO = "auto"  # stands for what follows from the data and the corruption (``build.auto``)
AUTOMATIC = (
    "rounds", "network.name", "denoiser.preconditioning", "denoiser.base", "start.name", "start.rank", "start.iterations",
    "start.shrinkage", "e_step.sampler", "e_step.time_grid", "e_step.steps", "e_step.batch_size", "e_step.draws", "m_step.steps",
    "m_step.batch_size", "m_step.learning_rate", "m_step.loss_weight", "m_step.time_law_beta", "m_step.updates_per_dispatch",
    "m_step.hidden_weight",
)  # fmt: skip
"""Fields that take it."""
FIELDS = {field.name: field for field in TABLE}  # every field that no class brings, in the order of the help

CLASSES: dict[str, dict[str, Any]] = {
    "corruption": CORRUPTIONS, "data_corruption": CORRUPTIONS, "network": NETWORKS, "schedule": SCHEDULES, "start": STARTS,
}  # fmt: skip
"""Sections whose ``name`` chooses a class or function, which brings fields of its own; no data_corruption is that of ``corruption``."""
RETIRED: dict[str, Any] = {
    "recover": 0, "e_step.steps_added": 0, "e_step.parts": 1, "e_step.burn_in": 0, "e_step.picard": 0, "m_step.noise_levels": 1,
    "start.minibatch": 0, "network.fourier": 0, "network.residual": False,
}  # fmt: skip
"""Fields of earlier versions, with the value under which they changed nothing: a stored run may still have that one."""
FREE_FIELDS = (
    "rounds", "parallel", "writers", "data.cache_dir", "prior.", "eval.", "stop.", "checkpoint.", "e_step.shard_size",
    "e_step.batch_size",
)  # fmt: skip
"""Fields, and beginnings of fields, that may change in a run without making it another one."""

Rule = tuple[Callable[[Any], bool], str]
RULES: tuple[Rule, ...] = (
    (lambda c: c.schedule.sigma_min < c.schedule.sigma_max,
     "config.schedule.sigma_min: {c.schedule.sigma_min}; expected less than sigma_max = {c.schedule.sigma_max}; lower it"),
    (lambda c: c.m_step.batch_size % c.m_step.accumulate == 0,
     "config.m_step.accumulate: {c.m_step.accumulate}; expected a divisor of batch_size = {c.m_step.batch_size}; change one"),
    (lambda c: c.data.path != "" or c.data.name not in ("folder", "arrays", "observations"),
     "config.data.path: ''; expected a file or folder, since data.name is {c.data.name!r}; set it"),
    (lambda c: len(c.m_step.time_law_beta) > 0 and min(min(pair) for pair in c.m_step.time_law_beta) > 0,
     "config.m_step.time_law_beta: {c.m_step.time_law_beta!r}; expected pairs of two positive numbers; write ((3.0, 3.0),)"),
    (lambda c: c.m_step.time_law_log_normal[1] > 0,
     "config.m_step.time_law_log_normal: {c.m_step.time_law_log_normal!r}; expected (mean, std) with std > 0; raise it"),
    (lambda c: 0 < c.m_step.augment_saturation[0] <= c.m_step.augment_saturation[1],
     "config.m_step.augment_saturation: {c.m_step.augment_saturation!r}; expected two rising numbers > 0; write (0.95, 1.05)"),
    (lambda c: all(0 < side <= 2**24 for side in c.data.shape),
     "config.data.shape: {c.data.shape!r}; expected positive integers; write (32, 32, 3), or () for the data's own"),
)  # fmt: skip
"""(what must hold, the message where it does not), over several fields at once; ``c`` is the configuration."""
TRAINING_RULES: tuple[Rule, ...] = (
    (lambda c: c.e_step.guidance == 1 or c.method in ("diffem", "oracle"),
     "config.e_step.guidance: {c.e_step.guidance} with method {c.method!r}, which does not use it; expected 1; set it"),
    (lambda c: c.e_step.guidance == 1 or c.m_step.condition_dropout > 0,
     "config.e_step.guidance: {c.e_step.guidance} with m_step.condition_dropout 0, so that nothing trains the prior that it leads away "
     "from; expected 1; set it, or m_step.condition_dropout=0.1"),
    (lambda c: not len(c.data.categories) or c.data.path.endswith((".csv", ".parquet")),
     "config.data.categories: {c.data.categories!r} with data that are no table; expected (); set it, or give a .csv"),
)  # fmt: skip
"""Rules of training alone: a run that is there already may have been trained with a field that did nothing."""
