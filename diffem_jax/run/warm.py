"""Warm start: a run that begins from what an earlier run left, by any method.

The earlier reconstructions become round 0, and its parameters the network's first ones, as ``config.start.take`` says.
Both are copied into the new work directory, so the earlier one may be deleted afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffem_jax.build.methods import make_setup
from diffem_jax.build.problem import Problem, stored_config
from diffem_jax.config import flatten
from diffem_jax.errors import UserError
from diffem_jax.parallel import agree, barrier, process_index
from diffem_jax.run.stopping import picked_round
from diffem_jax.storage import checkpoints
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import PyTree

SAME = ("seed", "data.name", "data.path", "data.split", "data.num_examples", "data.shape", "data.crop")
"""Fields that decide which observation has which index."""

FIELD = "config.start.checkpoint"


def _parts(problem: Problem) -> tuple[bool, bool]:
    """Whether reconstructions and parameters are taken."""
    start = problem.setup.config.start
    if not start.checkpoint:
        return False, False
    return start.take != "parameters", start.take != "reconstructions"


def _parameters(workdir: Workdir) -> Any:
    return workdir.root / "warm" / "final"


def _has_reconstructions(workdir: Workdir) -> bool:
    store = ReconstructionStore(workdir.reconstructions)
    return any(store.round(number).is_complete() for number in store.rounds())


def check(problem: Problem, workdir: Workdir, params: PyTree) -> None:
    """Looks before any compute whether the earlier run fits; reads only.

    Args:
        problem: the new run's.
        workdir: the new run's; what it has copied already is not looked for again.
        params: the shapes of the new network's parameters.

    Raises:
        UserError: there is no earlier run, or its observations or parameters are not this run's.
    """
    reconstructions, parameters = _parts(problem)
    if reconstructions and not _has_reconstructions(workdir):
        _earlier_reconstructions(problem)
    if parameters and not _parameters(workdir).exists():
        _earlier_parameters(problem, params)


def adopt(problem: Problem, workdir: Workdir, params: PyTree, say: Callable[[str], None]) -> PyTree | None:
    """Copies what is to be taken and not there yet; returns the parameters to begin with, or None.

    Every process calls it: the first one copies the reconstructions, all write the checkpoint together.

    Raises:
        UserError: as for ``check``.
    """
    reconstructions, parameters = _parts(problem)
    if reconstructions and process_index() == 0 and not _has_reconstructions(workdir):
        stored = _earlier_reconstructions(problem)
        reader, store = stored.open(), ReconstructionStore(workdir.reconstructions)
        count = problem.num_examples * problem.setup.config.e_step.draws
        copy = store.create(0, count, stored.shape, stored.shard_size)
        for shard in range(copy.num_shards):
            # Of several draws an observation those that are there, in turn.
            copy.write_shard(shard, reader.rows(np.asarray(copy.indices(shard)) % len(reader)))
        copy.finalise()
        say(f"warm start: the reconstructions of {stored.folder}")
    barrier("warm start")
    if not parameters:
        return None
    path = _parameters(workdir)
    if not agree(np.array(path.exists())):
        found, source = _earlier_parameters(problem, params)
        checkpoints.save(path, found, {"source": source})
        say(f"warm start: the parameters of {source}")
    return checkpoints.load(path, params)


def _earlier(problem: Problem, network: bool) -> tuple[Workdir, Any]:
    """The earlier run and its config; its reconstructions may come from any version of the networks."""
    workdir = Workdir(problem.setup.config.start.checkpoint)
    try:
        return workdir, stored_config(workdir, network)
    except UserError as error:
        raise UserError(f"{FIELD}: {error}") from None


def _earlier_reconstructions(problem: Problem) -> Any:
    workdir, config = _earlier(problem, network=False)
    mine, theirs = flatten(problem.setup.config), flatten(config)
    for fields in (mine, theirs):
        fields["data.path"] = fields["data.path"] and str(Path(fields["data.path"]).resolve())
    told = [
        f"config.{name}: {theirs[name]!r} there, {mine[name]!r} here" for name in SAME if mine[name] != theirs[name]
    ]
    store = ReconstructionStore(workdir.reconstructions)
    complete = [number for number in store.rounds() if store.round(number).is_complete()]
    if not complete:
        raise UserError(f"{FIELD}: {workdir.root} holds no complete round of reconstructions; let that run finish one")
    picked = picked_round(workdir.records())
    stored = store.round(picked if picked in complete else complete[-1])
    there = stored.num_examples // config.e_step.draws
    if (there, stored.shape) != (problem.num_examples, problem.setup.shape):
        told.append(
            f"{there} reconstructions of shape {stored.shape} there, {problem.num_examples} observations of "
            f"shape {problem.setup.shape} here"
        )
    elif make_setup(config, stored.shape).data_corruption != problem.setup.data_corruption:
        told.append("another corruption made the observations there")
    if told:
        raise UserError(
            f"{FIELD}: {workdir.root} has other observations ({'; '.join(told)}); expected the same seed, data and corruption, "
            "so that row i is of observation i; change these fields, or set config.start.take=parameters"
        )
    return stored


def _earlier_parameters(problem: Problem, params: PyTree) -> tuple[PyTree, str]:
    workdir, _ = _earlier(problem, network=True)
    picked = picked_round(workdir.records())
    path = workdir.last_round() if picked is None else workdir.round_checkpoint(picked)
    found = checkpoints.load(path)["ema_params"]

    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        return {jax.tree_util.keystr(at): tuple(a.shape) for at, a in jax.tree_util.tree_leaves_with_path(tree)}

    theirs, mine = shapes(found), shapes(params)
    differing = sorted(name for name in set(theirs) | set(mine) if theirs.get(name) != mine.get(name))
    if differing:
        name = differing[0]
        raise UserError(
            f"{FIELD}: the parameters of {path} do not fit the network here ({len(differing)} differ, the first {name}: "
            f"{theirs.get(name)} there, {mine.get(name)} here); expected the same network, method and denoiser; set "
            "config.start.take=reconstructions"
        )
    return found, str(path)
