"""The page of a run."""

from __future__ import annotations

from diffem_jax.workdir import Workdir


def write(workdir: Workdir) -> None:
    """Writes report.html."""
    del workdir
