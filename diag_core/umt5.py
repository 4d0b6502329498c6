"""umT5 encoder weights in the three layouts people have, as a transformers model.

diffusers (a folder in transformers' own naming), ComfyUI (one safetensors file in that naming, with the tokenizer
inside, perhaps in float8 with a scale for each weight), and the original Wan release (a .pth with names of its own).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .safetensors_file import FormatError, TensorSpec
from .state_dict import CheckpointError, check_shapes
from .weights import Weights, open_weights, read_all

ORIGINAL_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER_KEY = "spiece_model"  # where ComfyUI's files keep the sentencepiece model, as bytes
_SCALE = ".scale_weight"  # of ComfyUI's scaled float8: weight = stored x scale
_BESIDE = re.compile(rf"{TOKENIZER_KEY}|scaled_fp8|.+\.scale_(weight|input)")

_ORIGINAL = (
    (re.compile(r"token_embedding\.weight"), "shared.weight"),
    (re.compile(r"norm\.weight"), "encoder.final_layer_norm.weight"),
    (re.compile(r"blocks\.(\d+)\.norm1\.weight"), r"encoder.block.\1.layer.0.layer_norm.weight"),
    (re.compile(r"blocks\.(\d+)\.attn\.([qkvo])\.weight"), r"encoder.block.\1.layer.0.SelfAttention.\2.weight"),
    (
        re.compile(r"blocks\.(\d+)\.pos_embedding\.embedding\.weight"),
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    (re.compile(r"blocks\.(\d+)\.norm2\.weight"), r"encoder.block.\1.layer.1.layer_norm.weight"),
    (re.compile(r"blocks\.(\d+)\.ffn\.gate\.0\.weight"), r"encoder.block.\1.layer.1.DenseReluDense.wi_0.weight"),
    (re.compile(r"blocks\.(\d+)\.ffn\.fc1\.weight"), r"encoder.block.\1.layer.1.DenseReluDense.wi_1.weight"),
    (re.compile(r"blocks\.(\d+)\.ffn\.fc2\.weight"), r"encoder.block.\1.layer.1.DenseReluDense.wo.weight"),
    (re.compile(r"encoder\.embed_tokens\.weight"), "shared.weight"),  # transformers' other name for the same tensor
)


def transformers_name(name: str) -> str:
    """Original Wan key -> transformers' key; one that is so already stays."""
    for pattern, theirs in _ORIGINAL:
        match = pattern.fullmatch(name)
        if match:
            return match.expand(theirs)
    return name


def find_weights(path: Path) -> Path:
    """The encoder's own file or folder in a pipeline folder, an original Wan folder, or `path` itself."""
    if (path / "text_encoder").is_dir():
        return path / "text_encoder"
    return path / ORIGINAL_FILE if (path / ORIGINAL_FILE).is_file() else path


def load_umt5(weights: Weights, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """transformers' UMT5EncoderModel with these weights, in eval mode.

    Raises:
        CheckpointError: they are no umT5 encoder's, or transformers is missing.
    """
    try:
        from transformers import UMT5Config, UMT5EncoderModel
    except ImportError as error:
        raise CheckpointError(
            "the umT5 text encoder needs transformers, which is not installed: pip install transformers, or this "
            "project with its extra `text`"
        ) from error
    names = {transformers_name(name): name for name in weights.specs if not _BESIDE.fullmatch(name)}
    specs = {name: weights.specs[stored] for name, stored in names.items()}
    sizes = _sizes(specs, weights.config)
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**sizes))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = [name for name in expected if transformers_name(name) == "shared.weight"]
    own = {name: shape for name, shape in expected.items() if name == "shared.weight" or name not in tied}
    check_shapes(specs, own, f"a umT5 encoder of width {sizes['d_model']}", "Give umT5-XXL's encoder weights.")

    def read(name: str) -> Tensor:
        tensor = weights.read(names[name])
        scale = names[name].removesuffix(".weight") + _SCALE
        return tensor.float() * weights.read(scale).float() if scale in weights.specs else tensor

    wanted = {name: TensorSpec(spec.shape, dtype) for name, spec in specs.items()}
    try:
        tensors = read_all(wanted, read, device)
    except (OSError, FormatError) as error:
        raise CheckpointError(f"{weights.path}: it cannot be read: {error}") from error
    model.load_state_dict({**tensors, **dict.fromkeys(tied, tensors["shared.weight"])}, assign=True)
    return model.requires_grad_(False).eval()


def embedded_tokenizer(weights: Weights) -> bytes | None:
    """The sentencepiece model inside ComfyUI's file, None for other layouts."""
    return weights.read(TOKENIZER_KEY).numpy().tobytes() if TOKENIZER_KEY in weights.specs else None


def _sizes(specs: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> dict[str, Any]:
    def shape(name: str) -> tuple[int, ...]:
        if name not in specs or len(specs[name].shape) != 2 or 0 in specs[name].shape:
            raise CheckpointError(f"it has no {name!r}, so it is no umT5 encoder. Give umT5-XXL's encoder weights")
        return specs[name].shape

    block = "encoder.block.0.layer."
    vocabulary, width = shape("shared.weight")
    buckets, heads = shape(f"{block}0.SelfAttention.relative_attention_bias.weight")
    inner = shape(f"{block}0.SelfAttention.q.weight")[0]
    layers = {match[1] for name in specs if (match := re.match(r"encoder\.block\.(\d+)\.", name))}
    known = ("relative_attention_max_distance", "layer_norm_epsilon", "feed_forward_proj")  # no tensor tells these
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": shape(f"{block}1.DenseReluDense.wi_0.weight")[0],
        "num_layers": len(layers),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        **{name: config[name] for name in known if name in config},
    }


def open_umt5(path: str | Path) -> Weights:
    """Open a umT5 encoder of any layout; raises CheckpointError as `open_weights` does."""
    return open_weights(find_weights(Path(path)))
