"""The loop goes on after a kill as if there had been none, and leaves nothing half written."""

from __future__ import annotations

import errno
import importlib.util
import math
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from training import checkpoint, trainer
from training.ema import EMA
from training.logbook import Logbook, read_log
from training.metrics import Collapse, HealthLimits
from training.optimize import Optimizer, warming_up
from training.recipes.loop import LoopRecipe
from training.stopping import Stopped
from training.trainer import train

RECIPE = LoopRecipe(steps=7, save_every=3, log_every=2, sample_every=2, sample_prompts=2)


class Counter:
    """Adds up numbers that depend on the step; an update may be told to fail, or get signals."""

    def __init__(
        self, fail_at: int | None = None, nan_at: int | None = None, signals_at: Mapping[int, list[int]] | None = None
    ) -> None:
        self.total, self.fail_at, self.nan_at, self.signals_at = torch.zeros(3), fail_at, nan_at, signals_at or {}

    def update(self, step: int) -> dict[str, Tensor]:
        if step == self.fail_at:
            raise KeyboardInterrupt
        for number in self.signals_at.get(step, []):
            signal.raise_signal(number)
        self.total = self.total * 1.1 + torch.randn(3, generator=torch.Generator().manual_seed(step))
        return {"loss": self.total.sum() if step != self.nan_at else torch.tensor(math.nan)}

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total = state["total"]


class Still:
    """Samples that do or do not move."""

    def __init__(self, motion: float) -> None:
        self.motion, self.looked = motion, 0

    compared_with, fps = "the teacher's", 16.0

    def reference(self) -> dict[str, float]:
        return {"motion": 1.0, "saturation": 1.0, "contrast": 1.0}

    def sample(self) -> tuple[Tensor, dict[str, float]]:
        self.looked += 1
        pixels = torch.zeros(2, 3, 5, 16, 16)
        return pixels, {"motion": self.motion, "saturation": 1.0, "contrast": 1.0, "digit": 0.5}


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*"))


def steps_logged(folder: Path) -> list[int]:
    return [entry["step"] for entry in read_log(folder)]


@pytest.mark.parametrize("fail_at", range(1, 7))
def test_stopped_at_any_iteration_it_ends_the_same(tmp_path: Path, fail_at: int) -> None:
    whole, cut, resumed = Counter(), Counter(fail_at), Counter()
    train("x", whole, RECIPE, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train("x", cut, RECIPE, tmp_path / "cut")
    train("x", resumed, RECIPE, tmp_path / "cut")
    assert torch.equal(whole.total, resumed.total)
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "cut")
    assert steps_logged(tmp_path / "cut") == [2, 3, 4, 6, 7]


@pytest.mark.parametrize(("steps", "begins_at"), [(3, 3), (4, 3), (6, 6), (9, 6)])
def test_a_run_may_be_ended_early_or_made_longer(tmp_path: Path, steps: int, begins_at: int) -> None:
    """It goes on from the newest state that is not beyond its end, and ends as if it had been meant to."""
    whole, ended = Counter(), Counter(fail_at=begins_at - 1)  # which an update that is repeated would meet
    with pytest.raises(KeyboardInterrupt):
        train("x", Counter(fail_at=6), RECIPE, tmp_path / "cut")
    assert saved(tmp_path / "cut") == [3, 6]
    train("x", whole, replace(RECIPE, steps=steps), tmp_path / "whole")
    train("x", ended, replace(RECIPE, steps=steps), tmp_path / "cut")
    assert torch.equal(whole.total, ended.total)


def test_a_run_cannot_end_before_its_oldest_state(tmp_path: Path) -> None:
    train("x", Counter(), replace(RECIPE, steps=6), tmp_path)
    (tmp_path / "checkpoints" / "step_000001_kept").mkdir()  # someone's own copy is none of the run's states
    (tmp_path / "checkpoints" / "step_000001_kept" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"iterations 3 and 6, all beyond steps=2\. Set steps to 3 or more"):
        train("x", Counter(), replace(RECIPE, steps=2), tmp_path)


@pytest.fixture(autouse=True)
def ctrl_c_counts() -> Iterator[None]:
    """In the background, a shell starts even pytest with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("told_at", range(7))
def test_told_to_stop_it_saves_its_iteration_and_ends_the_same(tmp_path: Path, number: int, told_at: int) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    whole, resumed = Counter(), Counter()
    train("x", whole, RECIPE, tmp_path / "whole")
    with pytest.raises(Stopped, match=f"x: stopped after iteration {told_at + 1}, of which the state") as stopped:
        train("x", Counter(signals_at={told_at: [number]}), RECIPE, tmp_path / "cut")
    assert stopped.value.status == 128 + number
    assert saved(tmp_path / "cut")[-1] == told_at + 1
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    train("x", resumed, RECIPE, tmp_path / "cut")
    assert torch.equal(whole.total, resumed.total)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_ignored_stays_ignored(tmp_path: Path, number: int) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        train("x", Counter(signals_at={1: [number]}), RECIPE, tmp_path)
    finally:
        signal.signal(number, before)
    assert saved(tmp_path)[-1] == RECIPE.steps


def test_ctrl_c_twice_does_not_wait(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("x", Counter(signals_at={1: [signal.SIGINT, signal.SIGINT]}), RECIPE, tmp_path)
    assert saved(tmp_path) == []
    # Of SIGTERM some clusters send several.
    with pytest.raises(Stopped):
        train("x", Counter(signals_at={1: [signal.SIGTERM, signal.SIGTERM]}), RECIPE, tmp_path)
    assert saved(tmp_path) == [2]


def test_ctrl_c_in_the_last_save_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = checkpoint.save

    def interrupted(folder: Path, step: int, state: Mapping[str, Any]) -> None:
        save(folder, step, state)
        if step == RECIPE.steps:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("x", Counter(), RECIPE, tmp_path)
    assert saved(tmp_path) == [6, 7]


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    train("x", Counter(), RECIPE, tmp_path)
    before = read_log(tmp_path)
    again = Counter(fail_at=0)  # its first update would raise
    train("x", again, RECIPE, tmp_path)
    assert read_log(tmp_path) == before and len(before) > 0


def test_a_full_disk_while_saving_leaves_the_last_state_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.save

    def full(state: object, file: Any) -> None:
        if saved(tmp_path):
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, file)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(torch, "save", full)
        train("x", Counter(), RECIPE, tmp_path)
    assert saved(tmp_path) == [3]
    assert not list(tmp_path.rglob(".*.part"))
    whole, resumed = Counter(), Counter()
    train("x", whole, RECIPE, tmp_path / "whole")
    train("x", resumed, RECIPE, tmp_path)
    assert torch.equal(whole.total, resumed.total)


def test_what_the_disk_says_is_told_and_not_what_pytorchs_writer_makes_of_it(tmp_path: Path) -> None:
    """Real writes that fail half-way, by a limit on the size of files."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    state = {"numbers": torch.zeros(100_000)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            checkpoint.save(tmp_path / "many", 1, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_state_is_saved_from_after_a_nan(tmp_path: Path) -> None:
    with pytest.raises(Collapse, match=r"loss is nan.*set steps to 3, of which.*Other settings need another"):
        train("x", Counter(nan_at=4), replace(RECIPE, log_every=100), tmp_path)
    assert saved(tmp_path) == [3]
    with pytest.raises(Collapse, match=r"or use precision=fp32\. Other settings need another"):
        train("x", Counter(nan_at=0), RECIPE, tmp_path / "at once")


def test_samples_are_written_and_judged(tmp_path: Path) -> None:
    train("x", Counter(), RECIPE, tmp_path, gallery=Still(1.0))
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == sorted(f"step_00000{n}.{kind}" for n in (2, 4, 6, 7) for kind in ("mp4", "png"))
    judged = [entry for entry in read_log(tmp_path) if "sample/digit" in entry]
    assert [entry["step"] for entry in judged] == [2, 4, 6, 7]


def test_a_collapse_stops_the_run_also_when_it_was_interrupted_between_the_signs(tmp_path: Path) -> None:
    recipe = replace(RECIPE, save_every=1, limits=HealthLimits(patience=2))
    train("x", Counter(), recipe, tmp_path, gallery=Still(0.0), stop_after=3)
    with pytest.raises(Collapse, match="iteration 4, static"):
        train("x", Counter(), recipe, tmp_path, gallery=Still(0.0))


def test_what_the_log_had_beyond_the_state_is_dropped(tmp_path: Path) -> None:
    book = Logbook(tmp_path, 0)
    for step in (1, 2, 3):
        book.write(step, {"loss": float(step)})
    book.close()
    (tmp_path / "log.jsonl").write_text((tmp_path / "log.jsonl").read_text() + '{"step": 4, "lo')
    Logbook(tmp_path, 2).close()
    assert steps_logged(tmp_path) == [1, 2]


def test_curves_are_for_tensorboard_too(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("x", Counter(), RECIPE, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 3, 4, 6, 7]


def test_without_tensorboard_the_log_is_there_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train("x", Counter(), RECIPE, tmp_path)
    assert steps_logged(tmp_path) == [2, 3, 4, 6, 7]
    assert not (tmp_path / "tensorboard").exists()


class FakeWandb(ModuleType):
    """The part of the library that is used; runs by their ids."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.runs: dict[str, list[dict[str, float]]] = {}
        self.begun: list[dict[str, Any]] = []
        self.refuses = False

    def init(self, **given: Any) -> FakeWandb:
        if self.refuses:
            raise RuntimeError("api_key not configured")
        self.id = given["id"] or f"run{len(self.runs)}"
        self.begun.append(given)
        self.runs.setdefault(self.id, [])
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "iteration")

    def log(self, values: dict[str, float]) -> None:
        self.runs[self.id].append(values)

    def finish(self) -> None:
        self.runs[self.id].append({})


def test_weights_and_biases_get_the_numbers_where_a_recipe_names_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train("x", Counter(), RECIPE, tmp_path / "without")
    assert not fake.begun
    recipe = replace(RECIPE, wandb="team/digits")
    with pytest.raises(KeyboardInterrupt):
        train("x", Counter(fail_at=5), recipe, tmp_path / "with")
    train("x", Counter(), recipe, tmp_path / "with")  # goes on in the same run
    assert [(given["entity"], given["project"], given["id"]) for given in fake.begun] == [
        ("team", "digits", None), ("team", "digits", "run0")
    ]  # fmt: skip
    assert fake.begun[0]["config"]["steps"] == 7
    assert [values.get("iteration") for values in fake.runs["run0"]] == [2, 3, 4, None, 4, 6, 7, None]
    assert fake.runs["run0"][-2]["loss"] == read_log(tmp_path / "with")[-1]["loss"]


def test_weights_and_biases_that_cannot_be_used_stop_a_run_before_its_first_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    fake.refuses = True
    task, recipe = Counter(fail_at=0), replace(RECIPE, wandb="digits")
    with pytest.raises(ValueError, match=r"'digits' \(api_key not configured\). Log in with `wandb login`"):
        train("x", task, recipe, tmp_path)
    monkeypatch.delitem(sys.modules, "wandb")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else find(name, *more))
    with pytest.raises(ValueError, match="pip install wandb, or leave the field empty"):
        train("x", task, recipe, tmp_path)


def test_the_learning_rate_goes_by_the_steps_done_also_after_a_kill() -> None:
    def rates(optimizer: Optimizer, steps: int) -> list[float]:
        used = []
        for _ in range(steps):
            loss = model(torch.ones(1, 2)).sum()
            optimizer.step([(loss, {})])
            used.append(optimizer.adam.param_groups[0]["lr"])
        return used

    def new() -> Optimizer:
        rate = warming_up(0.8, 4)
        return Optimizer(model, learning_rate=rate, betas=(0.9, 0.99), weight_decay=0.0, clip=1.0)

    model = torch.nn.Linear(2, 1)
    whole, resumed = new(), new()
    assert rates(whole, 3) == pytest.approx([0.2, 0.4, 0.6])
    resumed.load_state_dict(whole.state_dict())
    assert rates(resumed, 3) == pytest.approx([0.8, 0.8, 0.8])


def test_the_average_is_lent_to_the_model_and_taken_back() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    ema = EMA(model, 0.9)
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    after = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(KeyboardInterrupt), ema.applied_to(model):
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        raise KeyboardInterrupt
    assert all(torch.equal(p, a) for p, a in zip(model.parameters(), after, strict=True))


@pytest.mark.parametrize(
    ("start", "average"),
    [
        (0, 6 * (1 - 2 / 11) * 3 / 12 + 3 * 9 / 12),  # decays of 2/11, then 3/12
        (1, 6 * 0.9 + 3 * 0.1),  # a copy of the first update, then 0.9 as asked for
        (2, 3.0),
    ],
)
def test_the_average_rises_from_its_first_update_or_begins_later(start: int, average: float) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = EMA(model, 0.9, start)
    for value in (6.0, 3.0):
        torch.nn.init.constant_(model.weight, value)
        ema.update(model)
    assert torch.allclose(ema.state_dict()["weight"], torch.tensor([[average]]))


def test_the_pace_is_told() -> None:
    progress = trainer.Progress(began=trainer.time.monotonic() - 10, first=5, done=10, steps=70)
    assert progress.text() == "2.00 s/step, 2 min left"
