"""Reads tests/goldens: outputs of the public reference models on small random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from diag_core import WanConfig, WanDiT

FOLDER = Path(__file__).parent / "goldens"


class RecordedNoise:
    """A noise source that replays the tensors a reference was given."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def initial(self, start_frame: int, shape: Sequence[int]) -> Tensor:
        return self.tensors["noise"][:, :, start_frame : start_frame + shape[2]]

    def renoise(self, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
        return self.tensors[f"renoise.{chunk}.{step}"]

    def context(self, chunk: int, shape: Sequence[int]) -> Tensor:
        return self.tensors[f"kv_noise.{chunk}"]


def read(name: str) -> tuple[WanDiT, dict[str, Tensor], dict]:
    """The golden's model, its other tensors, and the case it describes."""
    with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    sizes = json.loads(metadata["config"])
    config = WanConfig(
        sizes["dim"], sizes["ffn"], sizes["heads"], sizes["layers"],
        text_dim=sizes["text_dim"], freq_dim=sizes["freq"], text_len=sizes["text_len"],
    )  # fmt: skip
    model = WanDiT(config)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    others = {k: v for k, v in tensors.items() if not k.startswith("model.")}
    return model.eval(), others, json.loads(metadata.get("case", "{}"))


def small_model(seed: int = 0, **changes: int) -> WanDiT:
    """A random model of a few thousand parameters whose output is not near zero."""
    sizes = dict(dim=24, ffn_dim=48, num_heads=2, num_layers=2, text_dim=8, freq_dim=16, text_len=6) | changes
    torch.manual_seed(seed)
    return WanDiT(WanConfig(**sizes)).eval()
