"""What a stage is given, and whether it is there and fits: found out from headers, before anything large is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from diag_core.attention import attention_backend
from diag_core.checkpoint import read_header
from diag_core.state_dict import CheckpointError
from diag_core.vae import vae_from_state_dict
from diag_core.weights import open_weights

from ..boards import require_wandb
from ..compilation import require_compiler
from ..recipes.loop import LoopRecipe
from ..recipes.wan import WanDistilRecipe, WanOdeInitRecipe, WanOdePairsRecipe
from ..stages.ode_pairs import missing_shards, shard_name
from .embeddings import EmbeddingError, Embeddings
from .pairs import PairError, PairsOnDisk
from .room import check_disk, check_memory
from .setup import Inputs, Setup, critic_path

_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


def examine(setup: Setup) -> Inputs:
    """All that can be known from headers."""
    inputs = Inputs()
    distils = isinstance(setup.recipe, WanDistilRecipe)
    if not isinstance(setup.recipe, WanOdePairsRecipe):
        _open_model(inputs, "generator", setup.generator, lora=setup.generator_lora)
    if distils or isinstance(setup.recipe, WanOdePairsRecipe):
        _open_model(inputs, "teacher", setup.teacher)
    if distils:
        _open_critic(inputs, setup)
        _compare(inputs)
        _check_regression(inputs, setup)
    _open_embeddings(inputs, setup)
    if isinstance(setup.recipe, WanOdeInitRecipe):
        _open_pairs(inputs, setup)
    if setup.vae is not None:
        _open_vae(inputs, setup.vae, isinstance(setup.recipe, LoopRecipe))
    if not isinstance(setup.recipe, WanOdePairsRecipe):
        _check_batch(inputs, setup.recipe, setup.gpus)
    try:
        attention_backend(setup.recipe.attention)
    except ValueError as error:
        inputs.wrong.append(str(error))
    if setup.recipe.compiled:
        try:
            require_compiler()
        except ValueError as error:
            inputs.wrong.append(str(error))
    if isinstance(setup.recipe, LoopRecipe) and setup.recipe.wandb:
        try:
            require_wandb()
        except ValueError as error:
            inputs.wrong.append(str(error))
    check_memory(inputs, setup)
    check_disk(inputs, setup)
    return inputs


def _open_vae(inputs: Inputs, path: Path, trains: bool) -> None:
    if not trains:
        inputs.wrong.append("--vae is for stages that train: only they make sample videos. Leave it out")
        return
    try:
        weights = open_weights(path)
        shapes = {name: torch.empty(s.shape, dtype=s.dtype, device="meta") for name, s in weights.specs.items()}
        vae = vae_from_state_dict(shapes, metadata=weights.metadata)
    except CheckpointError as error:
        inputs.wrong.append(f"--vae {error}")
    except ValueError as error:
        inputs.wrong.append(f"--vae {path}: {error}")
    else:
        inputs.found.append(f"vae: {path}, a {type(vae).__name__}")


def _check_batch(inputs: Inputs, recipe: WanOdeInitRecipe | WanDistilRecipe, gpus: int) -> None:
    share, left = divmod(recipe.batch, gpus)
    if left:
        inputs.wrong.append(f"batch={recipe.batch} does not divide over {gpus} GPUs: give a multiple of their number")
    elif recipe.micro_batch and share % recipe.micro_batch:
        inputs.wrong.append(
            f"micro_batch={recipe.micro_batch} does not divide the {share} videos of each GPU (batch={recipe.batch} "
            f"over {gpus}): give a divisor, such as 1"
        )


def _check_regression(inputs: Inputs, setup: Setup) -> None:
    """What the student is compared with is sampled as it was distilled, which few files say."""
    assert isinstance(setup.recipe, WanDistilRecipe)
    header = inputs.headers.get("generator")
    if header is None or not setup.recipe.weights.needs_teacher_rollout:
        return
    if header.settings is None:
        inputs.wrong.append(
            f"--generator {setup.generator}: it does not say how it is sampled, and losses compare with its samples. "
            f"`python -m diag_core convert {setup.generator} NEW.safetensors --preset longlive` (or another "
            "preset) writes a file that does; weights.gamma=0 weights.regression=0 leave those losses out"
        )
    elif not header.settings.causal:
        inputs.wrong.append(
            f"--generator {setup.generator}: this is a bidirectional model, and losses compare with a causal student's "
            "samples. Give the result of stage 1, or a published student"
        )
    elif setup.recipe.video.latent_frames % header.settings.chunk_frames:
        inputs.wrong.append(
            f"--generator {setup.generator} makes chunks of {header.settings.chunk_frames} latent frames: give "
            "video.latent_frames a multiple of that"
        )


def fingerprint(path: Path) -> str:
    """Tells files apart without reading all of them: names, sizes and samples of their content."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''} {size}\n".encode())
        with open(file, "rb") as stream:
            for sample in range(_SAMPLES):
                stream.seek(sample * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _open_model(inputs: Inputs, role: str, path: Path | None, lora: Path | None = None) -> None:
    if path is None:
        inputs.wrong.append(
            f"--{role} is missing: give a Wan 2.1 checkpoint (`python -m diag_core download` lists some)"
        )
        return
    try:
        header = read_header(path, lora=lora)
    except CheckpointError as error:
        inputs.wrong.append(f"--{role} {error}")
        return
    inputs.headers[role] = header
    inputs.found.append(
        f"{role}: {path}, {header.parameters:,} parameters, width {header.config.dim}, {header.config.num_layers} "
        f"blocks, {str(header.dtype).removeprefix('torch.')}"
    )
    if role != "generator" and header.settings is not None and header.settings.causal:
        inputs.wrong.append(
            f"--{role} {path}: this is a causal student; the {role} must be a bidirectional Wan 2.1 model"
        )


def _open_critic(inputs: Inputs, setup: Setup) -> None:
    if (critic := setup.critic_begins_as) is not None:
        _open_model(inputs, "critic", critic)
        if setup.generator is not None and critic != (left := critic_path(setup.generator)) and left.exists():
            inputs.found.append(f"critic: not the one that stage 1 left, {left}, for --critic gives another")
        return
    teacher, generator = inputs.headers.get("teacher"), inputs.headers.get("generator")
    if teacher is None or generator is None:
        return
    if teacher.config != generator.config:
        inputs.wrong.append(
            "--critic is missing: the teacher is of another size than the generator, and the critic begins as the "
            "bidirectional model of the generator's size. Give that one (Wan 2.1 1.3B), or the teacher itself"
        )
        return
    inputs.headers["critic"] = teacher
    inputs.found.append("critic: begins as the teacher")


def _compare(inputs: Inputs) -> None:
    """Latents and prompts must mean the same to all; sizes may differ."""
    generator = inputs.headers.get("generator")
    for role, other in inputs.headers.items():
        if generator is None or role == "generator":
            continue
        for name in ("in_dim", "text_dim", "text_len"):
            own, theirs = getattr(generator.config, name), getattr(other.config, name)
            if own != theirs:
                inputs.wrong.append(
                    f"--{role} does not fit --generator: its {name} is {theirs}, the generator's is {own}. Both "
                    "must be made for the same latents and the same text encoder"
                )


def _open_embeddings(inputs: Inputs, setup: Setup) -> None:
    if setup.embeddings is None:
        inputs.wrong.append("--embeddings is missing: give the folder that `python -m training embed` wrote")
        return
    config = next((header.config for header in inputs.headers.values()), None)
    try:
        found = Embeddings(setup.embeddings, config.text_len if config else None)
    except EmbeddingError as error:
        inputs.wrong.append(str(error))
        return
    inputs.embeddings = found
    inputs.found.append(f"embeddings: {found.folder}, {len(found.prompts):,} prompts, {found.bytes / 1e9:.2f} GB")
    if config is not None and found.text_dim != config.text_dim:
        inputs.wrong.append(
            f"{found.folder}: embeddings have width {found.text_dim}, the models take {config.text_dim}: they are of "
            "another text encoder"
        )
    if config is not None and found.longest > config.text_len:
        inputs.wrong.append(
            f"{found.folder}: embeddings have up to {found.longest} tokens, the models take {config.text_len}. Embed "
            f"with --text-len {config.text_len}"
        )
    negative = getattr(setup.recipe, "negative_prompt", None)
    if negative is not None and negative not in found:
        inputs.wrong.append(
            f"{found.folder} has no embedding of the recipe's negative_prompt. Embed into a new folder with --negative "
            f"and that text, or set negative_prompt to the one that is there: {found.negative!r}"
        )


def _open_pairs(inputs: Inputs, setup: Setup) -> None:
    try:
        pairs = PairsOnDisk(setup.pairs_folder)
    except PairError as error:
        inputs.wrong.append(str(error))
        return
    inputs.pairs = pairs
    if missing := missing_shards(setup.pairs_folder):
        way = f", or with shards={missing[0]} to train on those that are there" if missing[0] else ""
        inputs.wrong.append(
            f"{setup.pairs_folder}: {len(missing)} of its shards are not made yet, such as {shard_name(missing[0])}. "
            f"Run ode-pairs again, which goes on{way}"
        )
    inputs.found.append(f"pairs: {setup.pairs_folder}, {len(pairs.prompts):,} trajectories")
    header, own = inputs.headers.get("generator"), tuple(pairs.points.shape[2:])
    if header is not None:
        wanted = setup.recipe.video.shape(header.config.in_dim)
        if own != wanted:
            inputs.wrong.append(
                f"{setup.pairs_folder}: the trajectories are of latents {list(own)}, the recipe's video is "
                f"{list(wanted)}. Set video.width, video.height and video.latent_frames as they were made"
            )
    if inputs.embeddings is not None:
        unknown = [prompt for prompt in pairs.prompts if prompt not in inputs.embeddings]
        if unknown:
            inputs.wrong.append(
                f"{inputs.embeddings.folder} has no embedding of {len(set(unknown))} prompts of the pairs, such as "
                f"{unknown[0][:60]!r}. Give the embeddings that the pairs were made with"
            )
