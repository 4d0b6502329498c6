"""A stage at Wan's size as it was asked for, and what was found of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from diag_core.checkpoint import CheckpointHeader

from ..recipes.wan import WanDistilRecipe, WanOdePairsRecipe, WanRecipe
from .embeddings import Embeddings
from .memory import Memory
from .pairs import PairsOnDisk
from .work import DistilWork


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A stage as asked for."""

    stage: str
    recipe: WanRecipe
    out: Path
    embeddings: Path | None
    generator: Path | None = None
    """the student to begin with"""
    generator_lora: Path | None = None
    """merged into it"""
    teacher: Path | None = None
    critic: Path | None = None
    """what the critic begins as; where None, `critic_begins_as` tells"""
    pairs: Path | None = None
    """of ODE pairs; in `out` where None"""
    vae: Path | None = None
    """for sample videos"""
    gpus: int = 1
    gpu_memory: float | None = None
    """bytes of each GPU; None: not known, not checked"""

    @property
    def pairs_folder(self) -> Path:
        return self.pairs or self.out / "ode_pairs"

    @property
    def folder(self) -> Path:
        """Of the stage's own state, log and samples."""
        return self.out / self.stage.replace("-", "_")

    @property
    def result(self) -> Path:
        return self.folder.with_suffix(".safetensors")

    @property
    def critic_result(self) -> Path | None:
        """Where stage 1 leaves its critic, for stage 2 to go on with."""
        return critic_path(self.result) if self.stage == "stage1" else None

    @property
    def critic_begins_as(self) -> Path | None:
        """The file asked for, or in stage 2 the one that stage 1 left beside its student; None: the teacher."""
        if self.critic is not None or self.stage != "stage2" or self.generator is None:
            return self.critic
        beside = critic_path(self.generator)
        return beside if beside.exists() else None

    @property
    def videos(self) -> int:
        """On a GPU at a time."""
        if isinstance(self.recipe, WanOdePairsRecipe):
            return self.recipe.batch
        return self.recipe.micro_batch or -(-self.recipe.batch // self.gpus)


def critic_path(student: Path) -> Path:
    """Where the critic that a student was trained against lies: beside it."""
    return student.with_suffix(".critic.safetensors")


@dataclass
class Inputs:
    """What was found; `wrong` has what stops the stage, each with what to do."""

    headers: dict[str, CheckpointHeader] = field(default_factory=dict)
    """by role: generator, teacher, critic"""
    embeddings: Embeddings | None = None
    pairs: PairsOnDisk | None = None
    found: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    memory: Memory | None = None
    needed: dict[str, int] = field(default_factory=dict)
    """bytes on disk"""


def distil_work(setup: Setup, inputs: Inputs) -> DistilWork:
    assert isinstance(setup.recipe, WanDistilRecipe)
    generator, critic, teacher = (inputs.headers[role].config for role in ("generator", "critic", "teacher"))
    return DistilWork(
        recipe=setup.recipe, generator=generator, critic=critic, real_score=teacher,
        regression=inputs.headers["generator"].settings,
    )  # fmt: skip
