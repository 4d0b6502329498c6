"""Small random models in the layouts that Wan's weights are published in, and a small text encoder."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from diag_core import WanConfig, WanDiT
from diag_core.checkpoint import convert, save_dit

# Wrappers of .pt files tell nothing beyond tensors: heads are 128 wide, and prompts are 512 tokens.
CONFIG = WanConfig(dim=128, ffn_dim=128, num_heads=1, num_layers=1, text_dim=32)
WIDTH = 32  # of the text encoder
PROMPTS = ("a red 3 moves left", "two blue digits move up and down", "the green 7 bounces")


def random_dit(seed: int = 0, config: WanConfig = CONFIG) -> WanDiT:
    torch.manual_seed(seed)
    return WanDiT(config)


def write_layouts(folder: Path) -> dict[str, Path]:
    """The same weights in each layout, by its name."""
    model = random_dit()
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    paths = {"original": folder / "wan_small.safetensors", "comfyui": folder / "settled.safetensors"}
    save_file(tensors, paths["original"])
    save_dit(paths["comfyui"], model, CONFIG)

    def wrapped(name: str, entry: str, prefix: str) -> None:
        paths[name] = folder / f"{name}.pt"
        torch.save({entry: {prefix + key: tensor for key, tensor in tensors.items()}}, paths[name])

    wrapped("self_forcing", "generator_ema", "model.")
    wrapped("causvid", "generator", "model._fsdp_wrapped_module.")
    wrapped("longlive", "generator", "model.")
    paths["diffusers"] = folder / "diffusers"
    convert(paths["comfyui"], paths["diffusers"], "diffusers")
    return paths


def write_text_encoder(folder: Path) -> Path:
    """A umT5 of one layer, as a diffusers folder with its tokenizer."""
    folder.mkdir()
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    UMT5EncoderModel(config).eval().save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(_spiece())
    return folder


def _spiece() -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*PROMPTS, "digits, 0 1 2 4 5 6 8 9"] * 3), model_writer=written, vocab_size=60,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=3,
    )  # fmt: skip
    return written.getvalue()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
