"""How much memory a GPU needs, from sizes alone.

An estimate: exact for weights, gradients, optimizer and averages; for activations it adds up what this project's layers
keep for the backward pass under bf16 autocast, which was read off their saved tensors (a test measures it again). What
kernels, collectives and the allocator take besides is not in it: `HEADROOM` stands for that.

With several GPUs all weights, gradients, optimizer states and averages are taken to be split among them (FSDP), and two
blocks at a time gathered in bf16.
"""

from __future__ import annotations

from dataclasses import dataclass

from diag_core import WanConfig
from diag_core.state_dict import expected_shapes

from ..recipes.wan import LoraRecipe, WanDistilRecipe, WanOdeInitRecipe, WanOdePairsRecipe
from .work import DistilWork, RolloutPlan, frame_tokens, init_runs

HEADROOM = 1.1
GIB = 1 << 30
_BF16, _FP32 = 2, 4
# Bytes that a block keeps of each token: per unit of width, per unit of the feed-forward's, per head, and the norms'.
_BLOCK = (64, 4, 8, 36)
_OUTSIDE = (10, 648)  # patch embedding and head: per unit of width, and the rest


def parameters(config: WanConfig) -> int:
    """Of a Wan DiT of these sizes: 1,418,996,800 for 1.3B."""
    total = 0
    for shape in expected_shapes(config).values():
        count = 1
        for size in shape:
            count *= size
        total += count
    return total


def lora_parameters(config: WanConfig, lora: LoraRecipe) -> int:
    """Of a LoRA for a DiT of these sizes."""
    shapes = expected_shapes(config)
    return sum(
        lora.rank * sum(shapes[f"blocks.{block}.{name}.weight"])
        for block in range(config.num_layers)
        for name in lora.targets
    )


@dataclass(frozen=True)
class Line:
    """One line of the table: bytes on each GPU."""

    name: str
    bytes: float


@dataclass(frozen=True, kw_only=True)
class Memory:
    """All lines. `checkpointed` and `kept` are the activations with and without checkpointing; one of them is used."""

    lines: tuple[Line, ...]
    kept: float
    checkpointed: float | None
    checkpointing: bool

    @property
    def activations(self) -> float:
        if self.checkpointing:
            assert self.checkpointed is not None
            return self.checkpointed
        return self.kept

    @property
    def total(self) -> float:
        """What a GPU must have."""
        return HEADROOM * (sum(line.bytes for line in self.lines) + self.activations)


def activations(config: WanConfig, tokens: int) -> float:
    """What a forward with gradient keeps of one sample, beside weights, past keys and text."""
    dim_bytes, ffn_bytes, head_bytes, rest = _BLOCK
    block = dim_bytes * config.dim + ffn_bytes * config.ffn_dim + head_bytes * config.num_heads + rest
    return tokens * (config.num_layers * block + _OUTSIDE[0] * config.dim + _OUTSIDE[1])


def checkpointed_activations(config: WanConfig, tokens: int, at_once: int) -> float:
    """The same with checkpointing: each block's input, and one block in full for `at_once` tokens."""
    inputs = tokens * (config.num_layers * _FP32 * config.dim + _OUTSIDE[0] * config.dim + _OUTSIDE[1])
    one = activations(config, at_once) / config.num_layers
    return inputs + one


def _past(config: WanConfig, tokens: int) -> float:
    """Keys and values of `tokens`, in all layers."""
    return 2 * _BF16 * config.dim * config.num_layers * tokens


def _passing(config: WanConfig, tokens: int) -> float:
    """Of a forward without gradient: a block's feed-forward and a few vectors of the width."""
    return tokens * (2 * _BF16 * config.ffn_dim + 6 * _FP32 * config.dim)


def _gathered(config: WanConfig, gpus: int) -> float:
    """Weights in bf16 that a forward uses: two blocks under FSDP (with a float32 gradient of one), else one block's
    copies under autocast."""
    block = parameters(config) / config.num_layers
    return block * (2 * _BF16 + _FP32 if gpus > 1 else _BF16)


def distil_memory(work: DistilWork, *, gpus: int, videos: int) -> Memory:
    """Of stage 1 or 2, with `videos` on each GPU at a time."""
    recipe, plan = work.recipe, work.plan()
    generator, critic, teacher = work.generator, work.critic, work.real_score
    frozen = _BF16 if recipe.weights_precision == "bf16" else _FP32
    lines = _trained("generator", generator, recipe, adapted=recipe.lora.rank > 0, gpus=gpus, averaged=True)
    lines += _trained(
        "critic", critic, recipe, adapted=recipe.lora.rank > 0 and recipe.lora.critic, gpus=gpus, averaged=False
    )
    lines.append(Line("teacher: weights", frozen * parameters(teacher) / gpus))
    if recipe.weights.needs_teacher_rollout:
        lines.append(Line("frozen student: weights", frozen * parameters(generator) / gpus))
    # One after the other: the frozen student may attend to more.
    rolled = [plan, work.regression_plan()] if recipe.weights.needs_teacher_rollout else [plan]
    lines.append(Line("KV cache", max(_cache(own, videos) for own in rolled)))
    lines.append(Line("weights in use", max(_gathered(config, gpus) for config in (generator, critic, teacher))))
    chunks = plan.held()
    past, tokens = sum(seen for seen, _ in chunks), sum(own for _, own in chunks)
    own = max(own for _, own in chunks)
    scores = _passing(teacher, tokens * (1 if recipe.cfg == 1 else 2))
    # Autocast's bf16 copies of the weights stay for each chunk's backward pass; FSDP and checkpointing drop them.
    copies = len(chunks) * _BF16 * parameters(generator) if gpus == 1 else 0
    kept = max(
        videos * (activations(generator, tokens) + _past(generator, past) + scores) + copies,
        videos * activations(critic, tokens) + (_BF16 * parameters(critic) if gpus == 1 else 0),
    )
    less = videos * max(
        checkpointed_activations(generator, tokens, own) + _past(generator, past) + scores,
        checkpointed_activations(critic, tokens, tokens),
    )
    return Memory(lines=tuple(lines), kept=kept, checkpointed=less, checkpointing=recipe.checkpointing)


def _cache(plan: RolloutPlan, videos: int) -> int:
    return plan.cache.bytes(
        plan.config, tokens_per_frame=plan.frame_tokens, total_frames=plan.latent_frames, batch=videos
    )


def _trained(
    name: str, config: WanConfig, recipe: WanDistilRecipe, *, adapted: bool, gpus: int, averaged: bool
) -> list[Line]:
    count = parameters(config)
    frozen = _BF16 if recipe.weights_precision == "bf16" else _FP32
    trained = lora_parameters(config, recipe.lora) if adapted else count
    lines = [
        Line(f"{name}: weights", ((frozen * count if adapted else 0) + _FP32 * trained) / gpus),
        Line(f"{name}: gradients", _FP32 * trained / gpus),
        Line(f"{name}: optimizer", 2 * _FP32 * trained / gpus),
    ]
    if averaged:
        lines.append(Line(f"{name}: average (EMA)", _FP32 * trained / gpus))
    return lines


def init_memory(recipe: WanOdeInitRecipe, student: WanConfig, *, gpus: int, videos: int) -> Memory:
    """Of ODE initialisation."""
    count, tokens = parameters(student), frame_tokens(recipe.video) * recipe.video.latent_frames
    lines = (
        Line("student: weights", _FP32 * count / gpus),
        Line("student: gradients", _FP32 * count / gpus),
        Line("student: optimizer", 2 * _FP32 * count / gpus),
        Line("student: average (EMA)", _FP32 * count / gpus),
        Line("weights in use", _gathered(student, gpus)),
    )
    copies = _BF16 * count if gpus == 1 else 0
    # Attention keeps the result of each chunk, and keys and values of those whose past is in two parts are joined.
    joined = sum(sum(seen) for _, seen in init_runs(recipe) if len(seen) > 1)
    added = videos * _BF16 * student.dim * (tokens + 2 * joined)
    return Memory(
        lines=lines,
        kept=videos * activations(student, tokens) + copies + student.num_layers * added,
        checkpointed=videos * checkpointed_activations(student, tokens, tokens) + added,
        checkpointing=recipe.checkpointing,
    )


def pairs_memory(recipe: WanOdePairsRecipe, teacher: WanConfig, *, gpus: int) -> Memory:
    """Of ODE pairs: each GPU holds the whole teacher, unless it is split among them."""
    tokens = frame_tokens(recipe.video) * recipe.video.latent_frames * recipe.batch * (1 if recipe.cfg == 1 else 2)
    frozen = _BF16 if recipe.weights_precision == "bf16" else _FP32
    among = gpus if recipe.sharded else 1
    lines = (
        Line("teacher: weights", frozen * parameters(teacher) / among),
        Line("weights in use", _gathered(teacher, among)),
    )
    return Memory(lines=lines, kept=_passing(teacher, tokens), checkpointed=None, checkpointing=False)
