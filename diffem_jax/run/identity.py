"""A run knows its data: a fingerprint of a user's observations beside config.json, so that a changed file is refused."""

import hashlib
import json
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffem_jax.build.auto import changed
from diffem_jax.build.problem import OWN, Problem
from diffem_jax.data.tables import Column
from diffem_jax.errors import UserError
from diffem_jax.storage.files import write_json
from diffem_jax.storage.rows import read_parts
from diffem_jax.storage.workdir import Workdir
from diffem_jax.types import Observation


def fingerprint(observations: Observation) -> str:
    """32 hexadecimal digits of the values of y and of the operators, read in chunks; the file's name and format do not count."""
    found = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(observations, is_leaf=lambda a: hasattr(a, "shape")):
        found.update(repr(tuple(leaf.shape)).encode())
        for _, rows in read_parts(leaf):
            found.update(np.ascontiguousarray(rows).tobytes())
    return found.hexdigest()


def check_data(workdir: Workdir, problem: Problem) -> str:
    """The fingerprint of a user's observations, '' for other data; UserError where they are not those that the run began with."""
    config = problem.setup.config
    if config.data.name != OWN:
        return ""
    now, stored = fingerprint(problem.observations), _stored_facts(workdir)
    if stored.get("fingerprint", now) != now:
        counts = f"{stored.get('examples')} then, {problem.num_examples} now"
        found = f"holds other observations than the run in {workdir.root} began with ({counts})"
        cure = "expected the same; restore the file or name it by --config.data.path, or give another --workdir"
        raise UserError(f"{config.data.path}: {found}; {cure}")
    return now


def keep_data(workdir: Workdir, problem: Problem, mark: str) -> None:
    """Writes the fingerprint, and of a table how its columns are written, beside config.json."""
    if mark:
        columns = {} if problem.table is None else {"columns": [column._asdict() for column in problem.table.columns]}
        write_json(workdir.data, {"fingerprint": mark, "examples": problem.num_examples, **columns}, indent=1)


def stored_columns(workdir: Workdir) -> tuple[Column, ...] | None:
    """How the table of a run was written; None where it was trained on other data."""
    found = _stored_facts(workdir).get("columns")
    return None if found is None else tuple(Column(**{**c, "categories": tuple(c["categories"])}) for c in found)


def with_stored_path(workdir: Workdir, config: ConfigDict, mark: str) -> ConfigDict:
    """The config with the run's own ``data.path`` where the observations are known to be the same: a file may move."""
    if not mark or _stored_facts(workdir).get("fingerprint") != mark or not workdir.config.exists():
        return config
    return changed(config, {"data.path": workdir.stored_config().get("data.path", config.data.path)})


def _stored_facts(workdir: Workdir) -> dict[str, Any]:
    """What ``keep_data`` wrote; {} for a run without it."""
    try:
        found = json.loads(workdir.data.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{workdir.data}: damaged ({error}); restore it, or remove it to go on unchecked") from None
    return found if isinstance(found, dict) else {}
