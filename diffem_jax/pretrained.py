"""Trained models in one line: ``model = dx.load("digits")``, or ``dx.load(workdir)`` for any run.

``export`` makes a folder of a work directory: model.npz (arrays alone), config.json, checksums.json and a card, README.md.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from diffem_jax import em
from diffem_jax.build.engine import make_engine
from diffem_jax.build.methods import Setup, make_model, make_setup, prior_model
from diffem_jax.build.problem import check_operators, simulate, stored_config
from diffem_jax.config import nearest
from diffem_jax.data import load_observations
from diffem_jax.data.npz import read_arrays
from diffem_jax.errors import UserError
from diffem_jax.gaussians.gaussians import overall_moments
from diffem_jax.gaussians.starts import start_arrays, start_of_arrays
from diffem_jax.parallel import Parallel, make_parallel
from diffem_jax.run.e_step import attempt_keys, draw_samples, make_drawing
from diffem_jax.run.sample import chosen_round, draws_of_prior
from diffem_jax.run.start import load_start, start_draw
from diffem_jax.samplers.samplers import ddim
from diffem_jax.storage import checkpoints
from diffem_jax.storage.files import Place, digest, read_json, write_arrays, write_atomically, write_json
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import Observation, PyTree

SHIPPED = Path(__file__).parent / "artefacts"  # the models that come with the package, one per folder
SUMMED = ("model.npz", "config.json")


class Pretrained:
    """A trained model: draws of p(x | y) and of p(x), for arrays in memory.

    ``shape`` is that of x, ``corruption`` the p(y | x) of the training; ``parts`` are arrays of 'start', 'posterior'
    and perhaps 'prior'. Observations are an ``Observation`` with a leading axis N or an .npz; UserError for misfits.
    """

    def __init__(self, config: ConfigDict, parts: dict[str, PyTree], card: str = ""):
        self.config, self.card, self._parts = config, card, parts
        self._start = start_of_arrays(parts["start"])
        self.setup: Setup = make_setup(config, tuple(overall_moments(self._start)[0].shape))
        self.shape, self.corruption = self.setup.shape, self.setup.corruption

    def __reduce__(self) -> tuple[Any, ...]:  # its functions are made again where it is unpickled
        return Pretrained, (self.config, jax.tree.map(np.asarray, self._parts), self.card)

    def observe(self, x: Any, seed: int = 0) -> Observation:
        """Fresh observations of clean examples, [N, *X] -> y and operators with a leading axis N."""
        return simulate(self.setup, np.asarray(x, np.float32), seed)

    def posterior_draws(self, observations: Any, num_samples: int = 1, seed: int = 0) -> np.ndarray:
        """Draws of p(x | y), the same as those of the command's --mode=sample; [num_samples, N, *X]."""
        return self._draws(self._posterior_step, self._parts["posterior"], observations, num_samples, seed)

    def posterior_means(self, observations: Any, num_samples: int = 1, seed: int = 0) -> np.ndarray:
        """E[x | y] = E[x | x_t, y] at the largest noise, as the mean of ``num_samples`` network evaluations, [N, *X]."""
        return self._draws(self._mean_step, self._parts["posterior"], observations, num_samples, seed).mean(axis=0)

    def start_draws(self, observations: Any, num_samples: int = 1, seed: int = 0) -> np.ndarray:
        """Draws of the fitted start given the observations: what the network improved on; [num_samples, N, *X]."""
        return self._draws(self._start_step, self._start, observations, num_samples, seed)

    def prior_draws(self, num_samples: int = 1, seed: int = 0) -> np.ndarray:
        """Draws of p(x), [num_samples, *X]; UserError for a model that has no prior."""
        own = "prior" in self._parts
        prior = (prior_model if own else make_model)(self.setup, self._start).prior
        if prior is None:
            expected = "one trained with config.prior.steps > 0 or config.m_step.condition_dropout > 0"
            raise UserError(f"this model has no prior; expected {expected}; give observations for draws of p(x | y)")
        params = self._parts["prior" if own else "posterior"]
        x = draws_of_prior(self.setup, self._parallel, prior, params, num_samples, seed, quiet=True)
        return x / np.float32(self.config.data.scale)

    def _draws(self, step: Callable, params: Any, observations: Any, num_samples: int, seed: int) -> np.ndarray:
        d, where, scale = self.config.data, "observations", np.float32(self.config.data.scale)
        if isinstance(observations, str | os.PathLike):
            where = str(observations)
            observations = load_observations(where, self.corruption, d.cache_dir or None, d.scale, d.alpha)
        elif scale != 1:
            observations = observations._replace(y=np.asarray(observations.y) * scale)
        check_operators(self.setup, observations, where)
        batch = self.config.e_step.batch_size
        drawing, keys = make_drawing(step, self._parallel, params, batch), attempt_keys(seed, "sample")
        return draw_samples(drawing, observations, keys, num_samples, quiet=True) / scale

    @functools.cached_property
    def _parallel(self) -> Parallel:
        return make_parallel("jit", jax.local_devices()[:1])

    @functools.cached_property
    def _posterior_step(self) -> Callable[..., Any]:
        return make_engine(self.setup, self._parallel, self._start).e_step

    @functools.cached_property
    def _mean_step(self) -> Callable[..., Any]:
        # One step of DDIM down from the largest noise returns the denoiser's answer there.
        bind, times = make_model(self.setup, self._start).bind, jnp.array([1.0, 0.0])
        return self._parallel.map_e_step(em.make_e_step(bind, ddim(self.setup.schedule), times, self.shape))

    @functools.cached_property
    def _start_step(self) -> Callable[..., Any]:
        return self._parallel.map_e_step(em.map_examples(start_draw(self.setup)))


def load(name: Place) -> Pretrained:
    """A model that ships with the package ('digits'), or a folder: an exported model, or a work directory.

    Of a work directory it is the round that the stopping rule picked, else the last. UserError for no such model, or a damaged one.
    """
    folder = SHIPPED / name if isinstance(name, str) and name in shipped() else Path(name).expanduser()
    if not (folder / "config.json").is_file():
        hint = nearest(str(name), shipped())
        raise UserError(f"{name}: neither a run's or exported model's folder nor a model of the package; {hint}")
    if not (folder / "model.npz").is_file():
        return _of_run(Workdir(folder))
    summed, card = read_json(folder / "checksums.json"), folder / "README.md"
    for file in SUMMED:
        if not isinstance(summed, dict) or digest(folder / file) != summed.get(file):
            raise UserError(f"{folder / file}: differs from checksums.json; expected it as exported; copy it again")
    flat = read_arrays(folder / "model.npz")
    parts = unflatten_dict({key: np.asarray(leaf, np.float32) for key, leaf in flat.items()}, sep=".")
    return Pretrained(stored_config(Workdir(folder)), parts, card.read_text(encoding="utf-8") if card.is_file() else "")


def shipped() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/model.npz"))


def _of_run(workdir: Workdir) -> Pretrained:
    start, number = load_start(workdir), chosen_round(workdir)
    if number == 0:
        raise UserError(f"{workdir.root}: the chosen round is the start, which has no network; train more rounds")
    posterior = checkpoints.load(workdir.round_checkpoint(number))["ema_params"]
    parts = {"start": start_arrays(start), "posterior": posterior}
    if (workdir.prior / "final").exists():
        parts["prior"] = checkpoints.load(workdir.prior / "final")["ema_params"]
    return Pretrained(stored_config(workdir), parts)


def export(workdir: Place, folder: Place, card: str = "") -> Path:
    """Writes the chosen round of a work directory as a small model in ``folder``: no optimiser, 16-bit parameters, checksums.

    ``card`` is its README.md. UserError where the run has no finished round, or a parameter does not fit 16 bits.
    """
    model, target = _of_run(Workdir(workdir)), Path(folder)
    arrays = flatten_dict(jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), model._parts), sep=".")
    for key, leaf in arrays.items():
        if not key.startswith("start."):  # the start's covariances span more than 16 bits hold
            arrays[key] = leaf.astype(np.float16)
        if not np.isfinite(arrays[key]).all():
            raise UserError(f"{workdir}: {key} does not fit 16 bits; expected parameters below 65504")
    target.mkdir(parents=True, exist_ok=True)
    write_arrays(target / "model.npz", arrays)
    write_atomically(target / "config.json", Workdir(workdir).config.read_bytes())
    write_atomically(target / "README.md", card)
    write_json(target / "checksums.json", {name: digest(target / name) for name in SUMMED}, indent=1)
    return target
