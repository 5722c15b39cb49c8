"""From a config to observations: simulated from a source of clean examples, or a user's own."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffem_jax import data
from diffem_jax.build import auto
from diffem_jax.build.methods import Setup, make_setup
from diffem_jax.config.values import restore
from diffem_jax.errors import UserError
from diffem_jax.storage.files import check_memory
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import Observation, PyTree, example_keys, stream_key

OWN = "observations"
CHUNK = 4096


class Problem(NamedTuple):
    """What a run works on: what follows from the config, and arrays (possibly memory-mapped) with a leading axis N."""

    setup: Setup
    observations: Observation
    truth: Any  # the hidden x, for measuring only; own observations have none
    labels: Any  # its labels, likewise
    notes: tuple[str, ...] = ()  # what was assumed about a file
    table: data.Table | data.Series | None = None  # how the columns of a .csv are written

    @property
    def num_examples(self) -> int:
        """N."""
        return len(self.observations.y)


def rows(tree: PyTree, indices: np.ndarray) -> PyTree:
    """The rows of every array of a tree, as arrays in memory."""
    return jax.tree.map(lambda a: np.asarray(a[indices]), tree)


def stored_config(workdir: Workdir, network: bool = True) -> ConfigDict:
    """The configuration of a run, as it was trained; errors and ``network`` as for ``Workdir.stored_config``."""
    stored = workdir.stored_config(network)
    try:
        return restore(stored)
    except UserError as error:
        raise UserError(f"{workdir.config}: {error}") from error


def simulate(setup: Setup, x: Any, seed: int) -> Observation:
    """One observation an example: y_i ~ p(y | x_i) with the key of (seed, i), as numpy arrays; UserError for more than memory holds."""
    made = jax.eval_shape(setup.data_corruption.sample, jax.random.key(0), jnp.zeros(setup.shape))
    size = len(x) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made))
    check_memory("config.corruption", f"{len(x)} observations of {setup.config.corruption.name}", size)
    sample = jax.jit(lambda key, x, indices: jax.vmap(setup.data_corruption.sample)(example_keys(key, indices), x))
    key, count, parts = stream_key(seed, "data"), len(x), []
    chunk = min(CHUNK, count)
    for first in range(0, count, chunk):
        indices = np.arange(first, first + chunk) % count
        part = jax.tree.map(np.asarray, sample(key, np.asarray(x[indices], np.float32), indices.astype(np.int32)))
        parts.append(jax.tree.map(lambda a, first=first: a[: count - first], part))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def load_problem(config: ConfigDict) -> Problem:
    """Reads the data a config names and makes or checks its observations; UserError if they are missing or do not fit."""
    d = config.data
    if d.name == OWN:
        return load_own(config, d.path, d.num_examples)
    named = {name: d[name] or None for name in ("path", "num_examples", "crop", "cache_dir")}
    dataset = data.load(d.name, split=d.split, seed=config.seed, shape=tuple(d.shape) or None, **named)
    setup = make_setup(config, dataset.shape, len(dataset.x))
    return Problem(setup, simulate(setup, dataset.x, config.seed), dataset.x, dataset.labels)


def load_own(config: ConfigDict, path: str, count: int = 0, columns: Sequence[data.Column] | None = None) -> Problem:
    """The first ``count`` of a user's observations, 0 for all, under the config's corruption; there is no truth.

    What the file decides is in the config of the returned setup; ``columns`` is how the .csv that a run was trained on was written.
    """
    d = config.data
    if data.is_spreadsheet(path):
        return _load_spreadsheet(config, path, count, columns)
    if d.window:
        found = f"{d.window} for {path}; expected a .csv, a row a time"
        raise UserError(f"config.data.window: {found}; write one, or set 0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arrays = data.array_shapes(path, d.cache_dir or None, tuple(d.shape) or None, d.alpha)
        config, notes = _mask_per_channel(config, arrays, path)
        config = auto.fit_to_file(config, arrays)
        count = _count(count, arrays["y"][0], path)
        setup = make_setup(config, tuple(config.data.shape) or arrays["y"][1:], count)
        observations = data.load_observations(path, setup.corruption, d.cache_dir or None, d.scale, d.alpha)
    notes += [str(w.message) for w in caught if w.category is UserWarning]
    data.check_units(observations, setup.corruption, path)
    if count < len(observations.y):
        observations = jax.tree.map(lambda a: data.first(a, count), observations)
    return Problem(setup, observations, None, None, tuple(notes))


def _count(wanted: int, held: int, path: str) -> int:
    if wanted > held:
        raise UserError(f"config.data.num_examples: {wanted}; {path} holds {held}; lower it")
    return wanted or held


def _load_spreadsheet(config: ConfigDict, path: str, count: int, columns: Sequence[data.Column] | None) -> Problem:
    """The rows of a .csv, whose columns are groups, or windows of its one series, each column with gaps of its own."""
    table: data.Table | data.Series
    if config.data.window:
        table, note = data.load_series(path, config.data.window, columns)
        wanted, kind, cure = "pixel_mask", "series", "set it"
        decided: dict[str, Any] = {"corruption.per_channel": len(table.columns) > 1}
    else:
        table, note = data.load_spreadsheet(path, tuple(config.data.categories), columns)
        wanted, kind, cure = "group_mask", "table", "use --config=own_data:table, or of a series set config.data.window"
        decided = {"corruption.groups": table.groups}
    if (name := config.corruption.name) != wanted:
        raise UserError(f"config.corruption.name: {name!r} for {path}; expected {wanted!r} for a {kind}; {cure}")
    config = auto.changed(config, {**decided, "data.shape": ()})
    count = _count(count, len(table.y), path)
    observations = Observation(table.y[:count], table.mask[:count])  # type: ignore[arg-type]
    return Problem(make_setup(config, table.y.shape[1:], count), observations, None, None, (note,), table)


def _mask_per_channel(config: ConfigDict, arrays: dict[str, Any], path: str) -> tuple[ConfigDict, list[str]]:
    """The config with ``corruption.per_channel`` where the file's mask has the channels of x, and a sentence on it."""
    channels, y = arrays.get("mask", ())[-1:], arrays["y"]
    undecided = config.corruption.name == "pixel_mask" and not config.corruption.get("per_channel")
    if not undecided or channels in ((), (1,)) or len(y) < 3 or channels != y[-1:]:
        return config, []
    note = f"{path}: a mask per channel; config.corruption.per_channel=True"
    return auto.changed(config, {"corruption.per_channel": True}), [note]


def check_operators(setup: Setup, observations: Observation, path: str) -> None:
    """Compares the shapes of y and of the operators with what the corruption makes."""
    expected = jax.eval_shape(lambda key: setup.corruption.sample(key, jnp.zeros(setup.shape)), jax.random.key(0))
    found = jax.tree.map(lambda a: tuple(a.shape[1:]), observations, is_leaf=lambda a: hasattr(a, "shape"))
    wanted = jax.tree.map(lambda a: tuple(a.shape), expected)
    if str(jax.tree.structure(observations)) != str(jax.tree.structure(expected)) or found != wanted:
        corruption = f"corruption {setup.config.corruption.name!r} on x of shape {setup.shape}"
        makes = f"{corruption} makes y of {wanted.y} with operators {wanted.operator}"
        cure = "set config.data.shape and config.corruption to what made the file"
        raise UserError(f"{path}: y has shape {observations.y.shape[1:]} an example; {makes}; {cure}")
