"""Key maps of Wan 2.1 DiT state dicts: wrappers, prefixes, diffusers' names, sizes, and what a foreign file lacks.

Pure functions. Anything with a `.shape` may stand for a tensor, so a file can be judged before it is read.
Legend: D width, C latent channels. An original key is one of the public Wan 2.1 release, without a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import torch

from .config import HEAD_DIM, PATCH, WanConfig
from .foreign_files import likely_cause
from .wan_dit import WanDiT

WRAPPERS = ("generator_ema", "generator", "model", "state_dict")  # the first one present is opened
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
_INFIXES = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_ANCHOR = "patch_embedding.weight"  # in every Wan DiT, original or diffusers, and in nothing else we know
_LISTED = 10

_TOP_MODULES = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_BLOCK_MODULES = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _ATTENTION.items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
_TOP_BACK = {theirs: ours for ours, theirs in _TOP_MODULES.items()}
_BLOCK_BACK = {theirs: ours for ours, theirs in _BLOCK_MODULES.items()}
_BLOCK_KEY = re.compile(r"(blocks\.\d+\.)(.+)", re.DOTALL)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the message names it, what is wrong, and what to do."""


class Shaped(Protocol):
    @property
    def shape(self) -> Any: ...


AnyShaped = TypeVar("AnyShaped", bound=Shaped)


def unwrap(
    checkpoint: Mapping[str, Any], which: str | None = None, wrappers: tuple[str, ...] = WRAPPERS
) -> tuple[dict[str, torch.Tensor], str | None]:
    """The tensors of a training checkpoint, out of whatever they are nested in.

    Args:
        checkpoint: what torch.load gave: tensors by name, or dicts of them under names such as `generator`.
        which: the entry to open; None takes the first of `wrappers`, so `generator_ema` before `generator`.

    Returns:
        the tensors by their stored names, and the outermost entry that was opened (None for a bare state dict).

    Raises:
        CheckpointError: no such entry, or no tensors anywhere.
    """
    opened = None
    while True:
        entries = [name for name, value in checkpoint.items() if isinstance(value, Mapping) and value]
        if which is not None and which not in entries:
            there = ", ".join(map(str, entries)) or "none: its tensors are at the top"
            raise CheckpointError(f"it has no entry {which!r}; entries it has: {there}")
        wrapper = which or next((name for name in wrappers if name in entries), None)
        if wrapper is None:
            break
        opened, which = opened or wrapper, None
        checkpoint = checkpoint[wrapper]
    tensors = {str(name): value for name, value in checkpoint.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        if any("lora" in name for name in entries):
            raise CheckpointError("this is a LoRA, not a model: load a base model and give this file as its LoRA")
        there = ", ".join(sorted(map(str, checkpoint))[:_LISTED]) or "nothing"
        raise CheckpointError(f"it holds no tensors where weights are expected; at its top: {there}")
    return tensors, opened


def strip_wrappers(name: str) -> str:
    """A key without what FSDP, activation checkpointing and torch.compile put into it."""
    for infix in _INFIXES:
        name = name.replace(infix, "")
    return name


def is_diffusers(names: Iterable[str]) -> bool:
    return any(name.startswith("condition_embedder.") for name in names)


def original_names(names: Collection[str]) -> dict[str, str]:
    """Original key -> stored key, with wrappers, prefixes and diffusers' naming undone.

    When the stored keys carry a prefix, only those under it are taken: a whole ComfyUI checkpoint holds other models
    beside the DiT, a training checkpoint other modules.

    Raises:
        CheckpointError: two stored keys mean the same tensor.
    """
    bare = {name: strip_wrappers(name) for name in names}
    prefix = next((p for p in ("", *_PREFIXES) if p + _ANCHOR in bare.values()), None)
    if prefix is None:  # no Wan DiT at all, or one cut short: key checks then speak of the names without prefixes
        bare = {name: _without_prefix(key) for name, key in bare.items()}
        prefix = ""
    plain = {name: key[len(prefix) :] for name, key in bare.items() if key.startswith(prefix)}
    if is_diffusers(plain.values()):
        plain = {name: from_diffusers_name(key) for name, key in plain.items()}
    found: dict[str, str] = {}
    for name, key in plain.items():
        if key in found:
            raise CheckpointError(f"both {found[key]!r} and {name!r} stand for {key!r}; keep one of them")
        found[key] = name
    return found


def to_diffusers_name(name: str) -> str:
    """Original key -> the key of diffusers' WanTransformer3DModel, whose tensors are the same; an unknown one stays."""
    return _rename(name, _TOP_MODULES, _BLOCK_MODULES)


def from_diffusers_name(name: str) -> str:
    """The inverse of `to_diffusers_name`."""
    return _rename(name, _TOP_BACK, _BLOCK_BACK)


def infer_config(tensors: Mapping[str, Shaped], known: Mapping[str, Any] | None = None) -> WanConfig:
    """Sizes of the DiT whose original keys these are.

    Args:
        known: fields that no tensor tells: `num_heads` (else D / 128, as ComfyUI does), `text_len`, `eps`.

    Raises:
        CheckpointError: keys that tell the sizes are missing or not of their shape, or no such model exists.
    """
    known = dict(known or {})

    def size(name: str, axis: int, rank: int) -> int:
        if name not in tensors:
            raise CheckpointError(f"it has no {name!r}, so it is no Wan 2.1 DiT. {likely_cause(tensors)}".rstrip())
        shape = tuple(tensors[name].shape)
        if len(shape) != rank or 0 in shape:
            raise CheckpointError(f"{name!r} has shape {list(shape)}, where {rank} axes are expected")
        return int(shape[axis])

    dim = size("head.modulation", 2, rank=3)
    heads = known.pop("num_heads", None)
    if heads is None:
        if dim % HEAD_DIM:
            raise CheckpointError(
                f"its width {dim} is no multiple of {HEAD_DIM}, so the number of heads cannot be told: it must come "
                "with the file (a config.json beside it, or this project's metadata in it)"
            )
        heads = dim // HEAD_DIM
    eps = known.get("eps", WanConfig.eps)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise CheckpointError(f"its eps must be a small positive number, got {eps!r}")
    blocks = {match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    try:
        config = WanConfig(
            dim=dim,
            ffn_dim=size("blocks.0.ffn.0.weight", 0, rank=2),
            num_heads=heads,
            num_layers=len(blocks),
            in_dim=size("patch_embedding.weight", 1, rank=5),
            out_dim=size("head.head.weight", 0, rank=2) // (PATCH[0] * PATCH[1] * PATCH[2]),
            freq_dim=size("time_embedding.0.weight", 1, rank=2),
            text_dim=size("text_embedding.0.weight", 1, rank=2),
            **known,
        )
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"its tensors describe no possible model: {error}") from error
    if config.in_dim != config.out_dim:
        raise CheckpointError(
            f"it takes {config.in_dim} channels and gives {config.out_dim}: a model that is conditioned on images or "
            "masks. Use a text-to-video one"
        )
    return config


@lru_cache(maxsize=8)
def expected_shapes(config: WanConfig) -> dict[str, tuple[int, ...]]:
    """Original key -> shape of every tensor of this DiT. No memory is allocated."""
    try:
        with torch.device("meta"):
            model = WanDiT(config)
    except (RuntimeError, OverflowError) as error:
        raise CheckpointError(f"its tensors describe a model too large to exist: {config}") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_keys(tensors: Mapping[str, Shaped], config: WanConfig) -> None:
    """Compare original keys and shapes with those of a DiT of this size.

    Raises:
        CheckpointError: lists missing, unexpected and misshapen keys, ten of each at most, with the likely cause.
    """
    what = f"a Wan DiT of width {config.dim} with {config.num_layers} blocks"
    check_shapes(tensors, expected_shapes(config), what, likely_cause(tensors, config))


def check_shapes(tensors: Mapping[str, Shaped], expected: Mapping[str, tuple[int, ...]], what: str, cause: str) -> None:
    """As `check_keys`, for any model: `what` names it, `cause` is told where something is wrong."""
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    misshapen = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    faults = [
        _listing(missing, "missing key", "missing keys"),
        _listing(extra, "unexpected key", "unexpected keys"),
        _listing(misshapen, "key of another shape", "keys of another shape"),
    ]
    if any(faults):
        raise CheckpointError("\n  ".join(filter(None, [f"it does not fit {what}:", *faults, cause])))


def _listing(items: list[str], one: str, many: str) -> str:
    if not items:
        return ""
    rest = "" if len(items) <= _LISTED else f", and {len(items) - _LISTED} more"
    return f"{len(items)} {one if len(items) == 1 else many}: {', '.join(items[:_LISTED])}{rest}"


def _without_prefix(name: str) -> str:
    return next((name[len(prefix) :] for prefix in _PREFIXES if name.startswith(prefix)), name)


def _rename(name: str, top: dict[str, str], block: dict[str, str]) -> str:
    match = _BLOCK_KEY.fullmatch(name)
    prefix, rest, table = (match[1], match[2], block) if match else ("", name, top)
    if rest in table:
        return prefix + table[rest]
    module, _, leaf = rest.rpartition(".")
    return f"{prefix}{table[module]}.{leaf}" if module in table else name
