"""Where a run's curves can be looked at, beside its log: TensorBoard, where that is installed, and Weights & Biases,
where a recipe asks for it. Neither is imported by a run that does not use it."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from .io import save_json

log = logging.getLogger(__name__)

_RUN = "wandb_run.json"


class Board(Protocol):
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Values of iteration `step`."""

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `folder/tensorboard`; what earlier ones have after iteration `step` is not shown any more.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, gone on with when the training in `folder` goes on. WANDB_MODE=offline keeps it there.

    After a kill a few iterations may be sent again; each comes with its number, `iteration`, as the axis.

    Args:
        project: "project" or "entity/project".
        settings: shown with the run.

    Raises:
        ValueError: it is not installed, or refuses to begin (nobody is logged in, say).
    """

    def __init__(self, folder: Path, project: str, settings: Mapping[str, Any]) -> None:
        require_wandb()
        import wandb

        entity, _, name = project.rpartition("/")
        path = folder / _RUN
        begun = json.loads(path.read_text(encoding="utf-8"))["id"] if path.exists() else None
        try:
            self._run: Any = wandb.init(
                project=name, entity=entity or None, id=begun, resume="allow", dir=str(folder), name=folder.name,
                config=dict(settings),
            )  # fmt: skip
        except Exception as error:  # of the library's own kinds
            raise ValueError(
                f"Weights & Biases does not begin a run in {project!r} ({error}). Log in with `wandb login`, set "
                "WANDB_MODE=offline, or leave out wandb="
            ) from error
        if begun is None:
            save_json(path, {"id": self._run.id})
        self._run.define_metric("*", step_metric="iteration")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"iteration": step, **values})

    def close(self) -> None:
        self._run.finish()


def require_wandb() -> None:
    """ValueError where it is not installed; found out without importing it."""
    if importlib.util.find_spec("wandb") is None:
        raise ValueError("the field wandb needs the library of that name: pip install wandb, or leave the field empty")


def boards(folder: Path, step: int, project: str, settings: Mapping[str, Any]) -> list[Board]:
    """Those that there are, and Weights & Biases where `project` names one. Raises ValueError as that does."""
    found: list[Board] = []
    if project:
        found.append(WeightsAndBiases(folder, project, settings))
    try:
        found.append(TensorBoard(folder, step))
    except ImportError:
        log.info("no TensorBoard curves: pip install tensorboard for them; %s has the numbers", folder)
    return found
