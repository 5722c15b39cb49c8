"""Optional writers of a run's numbers and pictures besides its work directory: TensorBoard and Weights & Biases.

``config.writers`` names them; () is the default. Each needs a package that is an extra, imported only when asked for. A
writer of your own is a function ``(workdir, config, resumed) -> Writer``, named as 'module:name'.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from diffem_jax.build.parts import lookup
from diffem_jax.config import flatten
from diffem_jax.errors import UserError
from diffem_jax.storage.files import write_atomically
from diffem_jax.storage.workdir import Workdir


class Writer(Protocol):
    """Takes numbers and pictures as they come; ``step`` counts updates over all rounds."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""

    def image(self, step: int, name: str, path: Path) -> None:
        """A PNG file."""

    def close(self) -> None:
        """Everything is on disk afterwards."""


class TensorBoard:
    """Event files in WORKDIR/tensorboard, by tensorboardX."""

    def __init__(self, workdir: Workdir, config: ConfigDict, resumed: int):
        tensorboard = _package("tensorboardX", "tensorboard")
        # What an interrupted run wrote beyond the step it goes on from is superseded.
        self.events = tensorboard.SummaryWriter(str(workdir.root / "tensorboard"), purge_step=resumed or None)
        if not resumed:
            self.events.add_text("config", f"```\n{json.dumps(flatten(config), indent=1)}\n```")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One event a number."""
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def image(self, step: int, name: str, path: Path) -> None:
        """The picture's pixels."""
        self.events.add_image(name, _pixels(path), step, dataformats="HWC")

    def close(self) -> None:
        """Flushes the event file."""
        self.events.close()


class WeightsAndBiases:
    """A run of wandb in WORKDIR/wandb; WANDB_MODE, WANDB_PROJECT and the like are its own settings.

    A run that goes on keeps its id, in WORKDIR/wandb_run.json.
    """

    def __init__(self, workdir: Workdir, config: ConfigDict, resumed: int):
        del resumed
        self.wandb = _package("wandb", "wandb")
        noted = workdir.root / "wandb_run.json"
        name = json.loads(noted.read_text())["id"] if noted.exists() else secrets.token_hex(4)
        write_atomically(noted, json.dumps({"id": name}) + "\n")
        self.run = self.wandb.init(
            dir=str(workdir.root), id=name, resume="allow", name=workdir.root.absolute().name, config=flatten(config)
        )
        self.run.define_metric("update")
        self.run.define_metric("*", step_metric="update")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One row, over updates."""
        self.run.log({"update": step, **values})

    def image(self, step: int, name: str, path: Path) -> None:
        """The picture, over updates."""
        self.run.log({"update": step, name: self.wandb.Image(_pixels(path))})

    def close(self) -> None:
        """Ends the run."""
        self.run.finish()


WRITERS: dict[str, Callable[[Workdir, ConfigDict, int], Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def check(config: ConfigDict) -> None:
    """Looks before any compute whether the config's writers are there.

    Raises:
        UserError: an unknown writer, or a package that is not installed.
    """
    for name in config.writers:
        lookup("writers", name, WRITERS)
        if name in WRITERS:
            _package(*{"tensorboard": ("tensorboardX", "tensorboard"), "wandb": ("wandb", "wandb")}[name])


def _package(module: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"config.writers: {extra!r} needs the package {module}, which is not installed; pip install 'diffem-jax[{extra}]', or "
            "leave it out"
        ) from None


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


class Writers:
    """The config's writers together; of several processes only the first writes.

    Args:
        workdir: the run's folder.
        config: its configuration.
        resumed: updates done before.
        lead: whether this process writes.
    """

    def __init__(self, workdir: Workdir, config: ConfigDict, resumed: int = 0, lead: bool = True):
        names = config.writers if lead else ()
        self.writers = [lookup("writers", name, WRITERS)(workdir, config, resumed) for name in names]

    def losses(self, step: int, loss: float) -> None:
        """The mean loss of the updates that ended at ``step``."""
        for writer in self.writers:
            writer.scalars(step, {"training/loss": loss})

    def round(self, record: Mapping[str, Any], picture: Path) -> None:
        """A round's record and picture."""
        values = {
            f"round/{name}": float(value)
            for name, value in record.items()
            if name not in ("kind", "step") and isinstance(value, int | float) and not name.endswith("_samples")
        }
        for writer in self.writers:
            writer.scalars(record["step"], values)
            if picture.exists():
                writer.image(record["step"], "round/picture", picture)

    def close(self) -> None:
        """Closes them all."""
        for writer in self.writers:
            writer.close()
