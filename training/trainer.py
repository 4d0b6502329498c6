"""The loop of every stage that trains: update, log, sample, save; go on after a kill as if there had been none.

An update draws all it needs from the seed and its own number, and a state holds all that updates change, so a run that
was killed at any moment and resumed makes the same draws as one that was not. On a CPU, with as many processes as
before, it ends with the same weights too; on a GPU, whose backward passes may add up in another order each time, no two
runs have the same last bits. One that is told to stop (`stopping`) saves its state first, so that no iteration is lost.
All processes of a training run this loop alike; what they log is the mean of all, and process 0 writes it. The loop
knows nothing of losses and models: a `Task` has them.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from . import checkpoint
from .distributed import agreement, from_all, from_main, is_main, mean
from .io import remove_leftovers
from .logbook import Logbook
from .metrics import Collapse, HealthWatch, require_finite
from .recipes.loop import LoopRecipe
from .stopping import Stopped, status_of, stop_signals
from .videos import save_videos

log = logging.getLogger(__name__)

STATES = "checkpoints"


class Task(Protocol):
    """What is trained."""

    def update(self, step: int) -> dict[str, Tensor]:
        """Iteration `step` (0-based); returns what is logged of it, scalars."""

    def state_dict(self) -> dict[str, Any]:
        """All that updates change: live tensors, which a saved state is read into, and plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state of the same shape; its tensors may be the task's own."""


class Gallery(Protocol):
    """Makes and judges samples; all processes together, since each may hold but a part of the weights."""

    @property
    def compared_with(self) -> str:
        """Whose videos those of a run are compared with, in the genitive: "the teacher's"."""

    @property
    def fps(self) -> float:
        """Of all videos."""

    def reference(self) -> dict[str, float]:
        """Health of those videos."""

    def sample(self) -> tuple[Tensor, dict[str, float]]:
        """Pixels [N,3,T,H,W] of the present weights, and their health (`pixel_health` and more)."""


@dataclass(frozen=True)
class Progress:
    """How far a run is and how fast it goes."""

    began: float
    first: int
    done: int
    steps: int

    def text(self) -> str:
        pace = (time.monotonic() - self.began) / max(1, self.done - self.first)
        left = pace * (self.steps - self.done)
        return f"{pace:.2f} s/step, {left / 60:.0f} min left"


def train(
    name: str,
    task: Task,
    recipe: LoopRecipe,
    folder: Path,
    *,
    gallery: Gallery | None = None,
    stop_after: int | None = None,
) -> None:
    """Runs a task to the end of its recipe, from where `folder` left off.

    Args:
        name: of the stage, for the log.
        folder: holds `checkpoints/`, `log.jsonl`, `tensorboard/` and `samples/`.
        stop_after: end after this iteration, before the recipe does.

    Raises:
        Collapse: the run has gone wrong; the last saved state is from before.
        ValueError: the saved state is damaged, of another model, or beyond the recipe's end; Weights & Biases is asked
            for and cannot be used.
        OSError: a full disk, say; the last saved state stays whole.
        Stopped: it was told to stop, and has saved its state.
        SystemExit: one of these, on processes other than the first, which tells it.
    """
    with agreement():
        if is_main():
            remove_leftovers(folder)
    done, bad = _resume(name, task, recipe, folder)
    last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    if done >= last:
        return
    watch = None
    if gallery is not None and recipe.sample_every:
        watch = HealthWatch(gallery.reference(), recipe.limits, bad, of=gallery.compared_with)
    with agreement():
        book = Logbook(folder, done, wandb=recipe.wandb, settings=dataclasses.asdict(recipe))
    pending: dict[str, list[Tensor]] = {}
    progress = Progress(time.monotonic(), done, done, recipe.steps)
    with stop_signals() as signals, closing(book), _ways_told(folder, recipe):
        for step in range(done, last):
            for key, value in task.update(step).items():
                pending.setdefault(key, []).append(value.detach())
            progress = Progress(progress.began, progress.first, step + 1, recipe.steps)
            stop = max(from_all(signals.number))  # whichever process got it
            at_end = progress.done == last or stop > 0
            # Read back rarely, for it waits for the device; but before every save, so that no state holds a NaN.
            if progress.done % recipe.log_every == 0 or progress.done % recipe.save_every == 0 or at_end:
                values = mean({key: torch.stack(parts).mean() for key, parts in pending.items()})
                pending.clear()
                with agreement():
                    require_finite(progress.done, values)
                    book.write(progress.done, values)
                told = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
                log.info("%s: step %d of %d, %s, %s", name, progress.done, recipe.steps, told, progress.text())
            if watch is not None and (progress.done % recipe.sample_every == 0 or progress.done == recipe.steps):
                assert gallery is not None
                _look(name, gallery, watch, progress.done, book, folder)
            if progress.done % recipe.save_every == 0 or at_end:
                state = {"step": progress.done, "bad": 0 if watch is None else watch.bad, "task": task.state_dict()}
                checkpoint.save(folder / STATES, progress.done, state)
            if stop:
                told = f"{name}: stopped after iteration {progress.done}, of which the state is saved"
                raise Stopped(told, stop) if is_main() else SystemExit(status_of(stop))


def _resume(name: str, task: Task, recipe: LoopRecipe, folder: Path) -> tuple[int, int]:
    """Iterations done, and bad samples in a row so far."""
    state: dict[str, Any] = {"step": 0, "bad": 0, "task": task.state_dict()}
    if not checkpoint.load(folder / STATES, state, last=recipe.steps):
        return 0, 0
    task.load_state_dict(state["task"])
    log.info("%s: going on from step %d of %d", name, state["step"], recipe.steps)
    return int(state["step"]), int(state["bad"])


@contextmanager
def _ways_told(folder: Path, recipe: LoopRecipe) -> Iterator[None]:
    """Adds to a Collapse what can be done with the run."""
    try:
        yield
    except Collapse as collapse:
        way = ""
        if states := checkpoint.saved(folder / STATES) if recipe.ends_anywhere else []:
            way = (
                f"To have the weights from before, set steps to {' or '.join(map(str, states))}, of which there are "
                "saved states: the same command then ends the stage there. "
            )
        anew = f"Other settings need another output folder, or {folder} to be deleted"
        raise Collapse(f"{collapse}. {way}{anew}") from None


def _look(name: str, gallery: Gallery, watch: HealthWatch, step: int, book: Logbook, folder: Path) -> None:
    pixels, health = gallery.sample()
    health = from_main(health)  # what is decided by it must be decided alike
    with agreement():
        if is_main():
            save_videos(folder / "samples", f"step_{step:06d}", pixels, fps=gallery.fps)
        require_finite(step, health)
        book.write(step, {f"sample/{key}": value for key, value in health.items()})
    log.info("%s: samples at step %d, %s", name, step, ", ".join(f"{key} {value:.3g}" for key, value in health.items()))
    with agreement():
        signs = watch.judge(step, health)
    for sign in signs if is_main() else ():
        log.warning("%s: the samples are %s", name, sign)
