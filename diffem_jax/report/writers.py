"""Optional writers of a run's numbers and pictures besides its work directory: TensorBoard and Weights & Biases.

``config.writers`` names them. Each needs a package that is an extra. A writer of your own is a class made with (workdir, config,
resumed) and named as 'module:name', with the methods of those below: ``scalars`` takes numbers by name, ``image`` a PNG file,
``close`` leaves everything on disk; ``step`` and ``resumed`` count updates over all rounds.
"""

import importlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffem_jax.config import flatten, lookup
from diffem_jax.errors import UserError
from diffem_jax.storage.files import write_json
from diffem_jax.storage.workdir import Workdir


class _TensorBoard:
    """Event files in WORKDIR/tensorboard, by tensorboardX."""

    def __init__(self, workdir: Workdir, config: ConfigDict, resumed: int):
        # What an interrupted run wrote beyond the step it goes on from is superseded.
        folder, purge = str(workdir.root / "tensorboard"), resumed or None
        self.events = _package("tensorboard").SummaryWriter(folder, purge_step=purge)
        if not resumed:
            self.events.add_text("config", f"```\n{json.dumps(flatten(config), indent=1)}\n```")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def image(self, step: int, name: str, path: Path) -> None:
        self.events.add_image(name, _pixels(path), step, dataformats="HWC")

    def close(self) -> None:
        self.events.close()


class _WeightsAndBiases:
    """A run of wandb in WORKDIR/wandb under the id in WORKDIR/wandb_run.json; WANDB_MODE and the like are its own."""

    def __init__(self, workdir: Workdir, config: ConfigDict, resumed: int):
        self.wandb, noted, folder = _package("wandb"), workdir.root / "wandb_run.json", workdir.root.absolute()
        name = json.loads(noted.read_text())["id"] if noted.exists() else secrets.token_hex(4)
        write_json(noted, {"id": name})
        self.run = self.wandb.init(dir=folder, id=name, resume="allow", name=folder.name, config=flatten(config))
        self.run.define_metric("update")
        self.run.define_metric("*", step_metric="update")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"update": step, **values})

    def image(self, step: int, name: str, path: Path) -> None:
        self.run.log({"update": step, name: self.wandb.Image(_pixels(path))})

    def close(self) -> None:
        self.run.finish()


WRITERS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}


def check(config: ConfigDict) -> None:
    """Looks before any compute for the config's writers; UserError for an unknown one, or a package that is not installed."""
    for name in config.writers:
        lookup("writers", name, WRITERS)
        if name in WRITERS:
            _package(name)


def _package(extra: str) -> Any:
    module = {"tensorboard": "tensorboardX"}.get(extra, extra)
    try:
        return importlib.import_module(module)
    except ImportError:
        cure = f"pip install 'diffem-jax[{extra}]', or leave it out"
        raise UserError(f"config.writers: {extra!r} needs the package {module}, which is missing; {cure}") from None


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


class Writers:
    """The config's writers together; of several processes only the lead writes."""

    def __init__(self, workdir: Workdir, config: ConfigDict, resumed: int = 0, lead: bool = True):
        names = config.writers if lead else ()
        self.writers = [lookup("writers", name, WRITERS)(workdir, config, resumed) for name in names]

    def losses(self, step: int, loss: float) -> None:
        """The mean loss of the updates that ended at ``step``."""
        for writer in self.writers:
            writer.scalars(step, {"training/loss": loss})

    def round(self, record: Mapping[str, Any], picture: Path) -> None:
        """A round's record and picture."""
        numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
        kept = {f"round/{k}": float(v) for k, v in numbers.items() if k != "step" and not k.endswith("_samples")}
        for writer in self.writers:
            writer.scalars(record["step"], kept)
            if picture.exists():
                writer.image(record["step"], "round/picture", picture)

    def close(self) -> None:
        """Closes them all."""
        for writer in self.writers:
            writer.close()
