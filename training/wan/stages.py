"""The stages at Wan's size: what each loads, and what it leaves in the output folder.

    ode-pairs  ode_pairs/pairs_*.safetensors
    ode-init   ode_init.safetensors
    stage1     stage1.safetensors, stage1.critic.safetensors
    stage2     stage2.safetensors

A result has the averaged weights in float32 and says how they are sampled; stage 1's critic, in bfloat16, is what stage
2 goes on with. What was interrupted goes on; what is there
is not made again. Beside each result is the folder of the stage's state, log and samples.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diag_core import WanConfig, WanDiT
from diag_core.attention import attention_backend
from diag_core.checkpoint import PRESETS, CheckpointSettings, LoadedCheckpoint, load_dit, save_dit
from diag_core.state_dict import strip_wrappers

from ..checkpoint import saved
from ..distributed import agreement, from_main, gathered, is_main, rank, world_size
from ..ema import EMA
from ..precision import precision_of
from ..recipes.wan import LoraRecipe, WanDistilRecipe, WanOdeInitRecipe, WanOdePairsRecipe
from ..roles import Roles
from ..stages.begin import begin
from ..stages.distil import Distil
from ..stages.ode_init import OdeInit
from ..stages.ode_pairs import make_pairs
from ..trainer import STATES, Task, train
from .gallery import WanGallery, sample_prompts
from .inputs import fingerprint
from .loading import load_model
from .lora import lora_path, lora_tensors, merged, require_peft, save_lora
from .setup import Inputs, Setup

log = logging.getLogger(__name__)

_TITLES = {"ode-init": "ODE initialisation", "stage1": "stage 1", "stage2": "stage 2"}
_LICENSE = "Apache-2.0"
"""of Wan 2.1, which ODE initialisation begins with"""


class Looks(NamedTuple):
    """What the sample videos show."""

    prompts: list[str]
    teacher: Callable[[], Tensor]
    """makes the teacher's latents for them, [N,C,F,H,W], on process 0"""


def run(setup: Setup, inputs: Inputs, *, device: torch.device, part: tuple[int, int] = (0, 1)) -> None:
    """Runs a stage whose inputs were examined and are right; all processes of a `session` together.

    Raises:
        ValueError: the folder holds the work of another recipe or other inputs; an embedding or a trajectory is
            damaged.
        Collapse: training has gone wrong.
        OSError: a full disk, say; nothing is left half written.
    """
    recipe, embeddings = setup.recipe, inputs.embeddings
    assert embeddings is not None
    finished = not isinstance(recipe, WanOdePairsRecipe) and from_main(setup.result.exists())
    with agreement():
        if isinstance(recipe, WanDistilRecipe) and recipe.lora.rank:
            require_peft()
        if not finished:
            log.info("%s: checking %.1f GB of embeddings", setup.stage, embeddings.bytes / 1e9)
            embeddings.check(rank(), world_size())
            if inputs.pairs is not None:
                log.info("%s: checking %.1f GB of pairs", setup.stage, inputs.pairs.bytes / 1e9)
                inputs.pairs.check(rank(), world_size())
        if is_main():
            # No shard and no iteration depends on how many there will be: a stage may be ended early, or made longer.
            # Nor does a trajectory on those beside it, but for last bits.
            if isinstance(recipe, WanOdePairsRecipe):
                begin(setup.pairs_folder, recipe, _identities(setup, inputs), free=("shards", "batch", "sharded"))
            else:
                # A saved state holds the critic: what it began as is needed no more.
                free = ("steps", "critic") if saved(setup.folder / STATES) else ("steps",)
                begin(setup.folder, recipe, _identities(setup, inputs), free=free, result=setup.result)
    if isinstance(recipe, WanOdePairsRecipe):
        _make_pairs(recipe, setup, inputs, device, part)
    elif finished:
        log.info("%s is there already", setup.result)
    elif isinstance(recipe, WanOdeInitRecipe):
        _init(recipe, setup, inputs, device)
    else:
        _distil(recipe, setup, inputs, device)


def sampled_as(setup: Setup, begun_as: CheckpointSettings | None) -> CheckpointSettings:
    """What the result's file says of its sampling and of its licence; `begun_as` is what that of the student says which
    it began as."""
    recipe = setup.recipe
    assert not isinstance(recipe, WanOdePairsRecipe)
    title, license = f"Wan 2.1, {_TITLES[setup.stage]}", _license(setup, begun_as)
    if isinstance(recipe, WanDistilRecipe):
        return recipe.settings(title=title, license=license)
    # As stage 1 will begin to sample it: the stored points are those of this list.
    return CheckpointSettings(
        schedule="4",
        window_frames=recipe.window_frames,
        sink_frames=recipe.sink_frames,
        chunk_frames=recipe.chunk_frames,
        title=title,
        license=license,
    )


def _license(setup: Setup, begun_as: CheckpointSettings | None) -> str:
    """That of the student which the result began as; none where nobody knows it, as of a published student, or with a
    LoRA in it. ODE initialisation begins as Wan."""
    if setup.generator_lora is not None:
        return ""
    if begun_as is not None and (begun_as.license or begun_as.causal):
        return begun_as.license
    return _LICENSE if setup.stage == "ode-init" else ""


def teacher_sampled_as(teacher: LoadedCheckpoint) -> CheckpointSettings:
    """What its file says, or else Wan's authors advise for its size."""
    return teacher.settings or PRESETS["wan-14b" if teacher.config == WanConfig.wan_14b() else "wan"]


def _make_pairs(
    recipe: WanOdePairsRecipe, setup: Setup, inputs: Inputs, device: torch.device, part: tuple[int, int]
) -> None:
    assert setup.teacher is not None and inputs.embeddings is not None
    dtype, precision = precision_of(recipe.weights_precision, device), precision_of(recipe.precision, device)
    if recipe.sharded:
        teacher = load_model(
            setup.teacher, dtype=dtype, device=device, precision=precision, attention=recipe.attention
        ).model
    else:
        with agreement():
            teacher = load_dit(setup.teacher, dtype=dtype, device=device).model
        teacher.attend = attention_backend(recipe.attention)
    make_pairs(
        recipe, teacher, setup.pairs_folder, draw_prompts=inputs.embeddings.draw, encode=inputs.embeddings.encode,
        shape=recipe.video.shape(teacher.config.in_dim), part=part,
    )  # fmt: skip


def _init(recipe: WanOdeInitRecipe, setup: Setup, inputs: Inputs, device: torch.device) -> None:
    embeddings = inputs.embeddings
    assert embeddings is not None and inputs.pairs is not None and setup.generator is not None
    student = load_model(
        setup.generator, dtype=torch.float32, device=device, precision=precision_of(recipe.precision, device),
        checkpointing=recipe.checkpointing, attention=recipe.attention, merge=setup.generator_lora,
    ).model  # fmt: skip
    # The task reads rows of the points, the levels and the prompts: those of a folder do as well as those in memory.
    task = OdeInit(recipe, student, inputs.pairs, embeddings.encode)  # type: ignore[arg-type]
    prompts, points = inputs.pairs.prompts[: recipe.sample_prompts], inputs.pairs.points

    def ends() -> Tensor:
        """What the teacher makes of them is at hand: the ends of its trajectories, which process 0 alone looks at."""
        with agreement():
            return points[torch.arange(len(prompts))][:, -1] if is_main() else torch.empty(0)

    looks = Looks(prompts, ends)
    _train(setup, inputs, task, student, task.ema, looks, device)


def _distil(recipe: WanDistilRecipe, setup: Setup, inputs: Inputs, device: torch.device) -> None:
    embeddings, generator, teacher = inputs.embeddings, setup.generator, setup.teacher
    assert embeddings is not None and generator is not None and teacher is not None
    precision = precision_of(recipe.precision, device)
    lora = recipe.lora if recipe.lora.rank else None

    def frozen(path: Path, merge: Path | None = None) -> LoadedCheckpoint:
        dtype = precision_of(recipe.weights_precision, device)
        return load_model(
            path, dtype=dtype, device=device, precision=precision, attention=recipe.attention, merge=merge
        )

    def trained(path: Path, lora: LoraRecipe | None, seed: int, merge: Path | None = None) -> WanDiT:
        dtype = torch.float32 if lora is None else precision_of(recipe.weights_precision, device)
        return load_model(
            path, dtype=dtype, device=device, precision=precision, checkpointing=recipe.checkpointing,
            attention=recipe.attention, merge=merge, lora=lora, seed=seed,
        ).model  # fmt: skip

    real_score = frozen(teacher)
    roles = Roles(
        generator=trained(generator, lora, recipe.seed, setup.generator_lora),
        real_score=real_score.model,
        fake_score=trained(setup.critic_begins_as or teacher, lora if recipe.lora.critic else None, recipe.seed + 1),
        regression=frozen(generator, setup.generator_lora) if recipe.weights.needs_teacher_rollout else None,
    )
    task = Distil(
        recipe,
        roles,
        draw_prompts=embeddings.draw,
        encode=embeddings.encode,
        shape=recipe.video.shape(roles.generator.config.in_dim),
    )
    prompts = embeddings.prompts[: recipe.sample_prompts]

    def teachers() -> Tensor:
        log.info("%s: sampling %d videos of the teacher, to compare with", setup.stage, len(prompts))
        return sample_prompts(real_score.model, teacher_sampled_as(real_score), prompts, embeddings, recipe.video)

    _train(setup, inputs, task, roles.generator, task.ema, Looks(prompts, teachers), device, lora, roles.fake_score)


def _train(
    setup: Setup,
    inputs: Inputs,
    task: Task,
    model: WanDiT,
    ema: EMA,
    looks: Looks,
    device: torch.device,
    lora: LoraRecipe | None = None,
    critic: WanDiT | None = None,
) -> None:
    recipe, settings = setup.recipe, sampled_as(setup, inputs.headers["generator"].settings)
    assert not isinstance(recipe, WanOdePairsRecipe) and inputs.embeddings is not None
    gallery = None
    if setup.vae is not None and recipe.sample_every:
        gallery = WanGallery(
            model, ema, settings, prompts=looks.prompts, teacher=looks.teacher, vae=setup.vae,
            embeddings=inputs.embeddings, video=recipe.video, folder=setup.folder, device=device,
        )  # fmt: skip
    train(setup.stage, task, recipe, setup.folder, gallery=gallery)
    if critic is not None and setup.critic_result is not None:
        _save_critic(setup.critic_result, critic, lora)
    # The average may be of what is trained alone; what is not is the model's own.
    weights = {} if lora is None else gathered(_plain(model.state_dict()))
    weights |= gathered(_plain(ema.state_dict()))
    with agreement():
        if is_main():
            if lora is not None:
                metadata = {"kind": "lora", "settings": json.dumps(settings.to_dict(), ensure_ascii=False)}
                save_lora(lora_path(setup.result), lora_tensors(weights, lora), metadata, dtype=torch.float32)
                weights = merged(weights, lora)
            save_dit(setup.result, weights, model.config, settings, dtype=torch.float32)
            log.info("%s: %s is written", setup.stage, setup.result)


def _save_critic(path: Path, critic: WanDiT, lora: LoraRecipe | None) -> None:
    """Before the result, for with that the stage is finished. All processes call it."""
    weights = gathered(_plain(critic.state_dict()))
    with agreement():
        if is_main():
            whole = merged(weights, lora) if lora is not None and lora.critic else weights
            save_dit(path, whole, critic.config, None, dtype=torch.bfloat16)


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {strip_wrappers(name): tensor for name, tensor in weights.items()}


def _identities(setup: Setup, inputs: Inputs) -> dict[str, str]:
    """What the stage is made from, whatever its path."""
    files = {
        "generator": setup.generator, "generator-lora": setup.generator_lora, "teacher": setup.teacher,
        "critic": setup.critic_begins_as,
    }  # fmt: skip
    used = {name: fingerprint(path) for name, path in files.items() if path is not None}
    if setup.embeddings is not None:
        used["embeddings"] = fingerprint(setup.embeddings / "index.json")
    if inputs.pairs is not None:
        used["pairs"] = inputs.pairs.digest
    return used
