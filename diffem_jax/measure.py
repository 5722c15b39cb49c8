"""``--mode=evaluate``: measures of a finished run."""

from __future__ import annotations

import numpy as np

from diffem_jax.data import ReconstructionStore, npz
from diffem_jax.draw import stored_config
from diffem_jax.evaluate import METRICS, make_measures
from diffem_jax.problem import load_problem
from diffem_jax.types import UserError
from diffem_jax.workdir import Workdir


def evaluate_run(workdir: Workdir, reference: str | None = None) -> dict[str, float]:
    """Every measure that the data allow, of the last reconstructions; also appended to metrics.jsonl.

    Args:
        workdir: a trained run.
        reference: an .npz with clean ``x`` of the same rows, for measuring only; None for a source's hidden truth.

    Raises:
        UserError: no reconstructions, or a reference that does not fit.
    """
    config = stored_config(workdir)
    problem = load_problem(config)
    store = ReconstructionStore(workdir.reconstructions)
    complete = [r for r in store.rounds() if store.round(r).is_complete()]
    if not complete:
        raise UserError(f"{workdir.reconstructions}: no complete round; train first")
    if reference is not None:
        truth = npz.read_arrays(reference, ("x",))["x"]
        if truth.shape != (problem.num_examples, *problem.setup.shape):
            raise UserError(
                f"--reference: {reference} holds x of shape {truth.shape}; expected {(problem.num_examples, *problem.setup.shape)}"
            )
        problem = problem._replace(truth=truth)
    names = [name for name, (_, needs_truth) in METRICS.items() if problem.truth is not None or not needs_truth]
    if problem.labels is None:
        names.remove("accuracy") if "accuracy" in names else None
    if problem.num_examples < 4096 and "sinkhorn" in names:
        names.remove("sinkhorn")
    if len(problem.setup.shape) < 3 and "ssim" in names:
        names.remove("ssim")
    with config.unlocked():
        config.eval.metrics = tuple(names)
    problem = problem._replace(setup=problem.setup._replace(config=config))
    draws = store.round(complete[-1]).open().rows
    record = make_measures(problem)(complete[-1], draws)
    workdir.log({"kind": "evaluation", "round": complete[-1], **record})
    return {name: float(np.float64(value)) for name, value in record.items()}
