"""Warm start: a run that begins from what an earlier run left, by any method.

The earlier reconstructions become round 0, and its parameters the network's first ones, as ``config.start.take`` says.
Both are copied into the new work directory, so the earlier one may be deleted afterwards.
"""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from diffem_jax.build.methods import make_setup
from diffem_jax.build.problem import Problem, stored_config
from diffem_jax.config import flatten
from diffem_jax.errors import UserError
from diffem_jax.parallel import agree, barrier, process_index
from diffem_jax.run.stopping import picked_round
from diffem_jax.run.termination import Say
from diffem_jax.storage import checkpoints
from diffem_jax.storage.reconstructions import ReconstructionStore, Round
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import PyTree

SAME = ("seed", "data.name", "data.path", "data.split", "data.num_examples", "data.shape", "data.crop")
FIELD = "config.start.checkpoint"
COPIED = "warm/final"  # where the earlier parameters go


def check(problem: Problem, workdir: Workdir, params: PyTree) -> None:
    """Looks before any compute for an earlier run that fits, unless it has been copied; ``params`` are shapes of parameters.

    UserError where there is no earlier run, or its observations or parameters are not this run's.
    """
    start = problem.setup.config.start
    if start.checkpoint and start.take != "parameters" and not _complete_rounds(workdir):
        _earlier_reconstructions(problem)
    if start.checkpoint and start.take != "reconstructions" and not (workdir.root / COPIED).exists():
        _earlier_parameters(problem, params)


def adopt(problem: Problem, workdir: Workdir, params: PyTree, say: Say) -> PyTree | None:
    """Copies what is to be taken and not there yet, all processes together; returns the parameters to begin with, or None."""
    start = problem.setup.config.start
    if not start.checkpoint:
        return None
    if start.take != "parameters" and process_index() == 0 and not _complete_rounds(workdir):
        stored = _earlier_reconstructions(problem)
        reader, store = stored.open(), ReconstructionStore(workdir.reconstructions)
        count = problem.num_examples * problem.setup.config.e_step.draws
        copy = store.create(0, count, stored.shape, stored.shard_size)
        for shard in range(copy.num_shards):
            # Of several draws per observation those that are there, in turn.
            copy.write_shard(shard, reader[np.asarray(copy.indices(shard)) % len(reader)])
        say(f"warm start: the reconstructions of {stored.folder}")
    barrier("warm start")
    if start.take == "reconstructions":
        return None
    path = workdir.root / COPIED
    if not agree(np.array(path.exists())):
        found, source = _earlier_parameters(problem, params)
        checkpoints.save(path, found, {"source": source})
        say(f"warm start: the parameters of {source}")
    return checkpoints.load(path, params)


def _complete_rounds(workdir: Workdir) -> list[Round]:
    store = ReconstructionStore(workdir.reconstructions)
    return [stored for stored in map(store.round, store.rounds()) if stored.is_complete()]


def _earlier(problem: Problem, network: bool) -> tuple[Workdir, ConfigDict, int | None]:
    """The earlier run, its config and the round that it picked; its reconstructions may come from any version of the networks."""
    workdir = Workdir(problem.setup.config.start.checkpoint)
    try:
        return workdir, stored_config(workdir, network), picked_round(workdir.records())
    except UserError as error:
        raise UserError(f"{FIELD}: {error}") from None


def _earlier_reconstructions(problem: Problem) -> Round:
    workdir, config, picked = _earlier(problem, network=False)
    rounds = {stored.round: stored for stored in _complete_rounds(workdir)}
    if not rounds:
        raise UserError(f"{FIELD}: {workdir.root} holds no complete round of reconstructions; let that run finish one")
    stored = rounds.get(picked, rounds[max(rounds)])
    here, there = flatten(problem.setup.config), flatten(config)
    for fields in (here, there):
        fields["data.path"] = fields["data.path"] and str(Path(fields["data.path"]).resolve())
    differing = [f"config.{n}: {there[n]!r} there, {here[n]!r} here" for n in SAME if here[n] != there[n]]
    count = stored.num_examples // config.e_step.draws
    if (count, stored.shape) != (problem.num_examples, problem.setup.shape):
        here_is = f"{problem.num_examples} observations of shape {problem.setup.shape} here"
        differing.append(f"{count} reconstructions of shape {stored.shape} there, {here_is}")
    elif make_setup(config, stored.shape).data_corruption != problem.setup.data_corruption:
        differing.append("another corruption made the observations there")
    if differing:
        expected = "expected the same seed, data and corruption, so that row i is of observation i"
        cure = f"{expected}; change these fields, or set config.start.take=parameters"
        raise UserError(f"{FIELD}: {workdir.root} has other observations ({'; '.join(differing)}); {cure}")
    return stored


def _earlier_parameters(problem: Problem, params: PyTree) -> tuple[PyTree, str]:
    workdir, _, picked = _earlier(problem, network=True)
    path = workdir.last_round() if picked is None else workdir.round_checkpoint(picked)
    found = checkpoints.load(path)["ema_params"]

    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        return {jax.tree_util.keystr(at): tuple(a.shape) for at, a in jax.tree_util.tree_leaves_with_path(tree)}

    there, here = shapes(found), shapes(params)
    if differing := sorted(name for name in there | here if there.get(name) != here.get(name)):
        name = differing[0]
        first = f"{len(differing)} differ, the first {name}: {there.get(name)} there, {here.get(name)} here"
        cure = "expected the same network, method and denoiser; set config.start.take=reconstructions"
        raise UserError(f"{FIELD}: the parameters of {path} do not fit the network here ({first}); {cure}")
    return found, str(path)
