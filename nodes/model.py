"""Diagonal Model Loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..diag_core.checkpoint import load_tensors
from . import comfy_bridge
from .comfy_fast import leave_out
from .demo_files import DEMO_NAME, dit_path
from .files import choice_fault, chosen_file, file_fault, file_mark, first_fault

NO_LORA = "none"


def _models() -> list[str]:
    return [DEMO_NAME, *folder_paths.get_filename_list("diffusion_models")]


def _loras() -> list[str]:
    return [NO_LORA, *folder_paths.get_filename_list("loras")]


def _path(name: str) -> Path:
    return dit_path() if name == DEMO_NAME else chosen_file(("diffusion_models",), name)


class DiagDistillModelLoader(io.ComfyNode):
    """A checkpoint of any published layout as a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillModelLoader",
            display_name="Diagonal Model Loader",
            category="DiagDistill",
            description="Loads Wan 2.1 text-to-video weights of any published layout (Self-Forcing, LongLive, "
            "Causal-Forcing, CausVid, DiagDistill, Wan; .safetensors or .pt), with the settings they were made for "
            "where the file or its name tells them.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=_models(),
                    tooltip="From models/diffusion_models. The demo is part of the pack: it draws moving digits at "
                    "64x64, on a CPU too, and needs no download.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(comfy_bridge.DTYPES),
                    default="default",
                    tooltip="Precision of the weights. 'default' is ComfyUI's choice for your card. fp8 halves the "
                    "memory of bf16 and changes the result a little.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=_loras(),
                    default=NO_LORA,
                    tooltip="Merged into the weights while they load, as LongLive's lora.pt wants to be. For LoRAs to "
                    "switch on and off, use LoraLoaderModelOnly behind this node.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="1 is what the LoRA was trained for; 0 leaves it out.",
                ),
                io.Boolean.Input(
                    "fast",
                    default=True,
                    optional=True,
                    tooltip="The fast path on a GPU: fused kernels and CUDA graphs, the same result up to rounding. "
                    "Off: ComfyUI's own forward, should a run fail or a video look wrong.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model",
                    display_name="model",
                    tooltip="ComfyUI's own MODEL: LoRA, fp8 and offloading work as ever, and most patches of other "
                    "packs; the log names one that does not. It carries the checkpoint's "
                    "schedule, KV noise, window and sink to the Diagonal Sampler.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, model_name: str | None = None, lora_name: str | None = None, dtype: str | None = None
    ) -> bool | str:
        return first_fault(
            file_fault("model_name", model_name, _models()),
            file_fault("lora_name", lora_name, _loras()),
            choice_fault("dtype", dtype, comfy_bridge.DTYPES),
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, lora_name: str, **_: Any) -> Any:
        lora = None if lora_name == NO_LORA else file_mark(chosen_file(("loras",), lora_name))
        return [file_mark(_path(model_name)), lora]

    @classmethod
    def execute(
        cls, model_name: str, dtype: str, lora_name: str, lora_strength: float, fast: bool = True
    ) -> io.NodeOutput:
        lora = None if lora_name == NO_LORA else chosen_file(("loras",), lora_name)
        loaded = load_tensors(_path(model_name), lora=lora, lora_strength=lora_strength)
        model = comfy_bridge.load_stock_model(loaded.tensors, dtype)
        model = comfy_bridge.attach_settings(model, loaded.settings)
        return io.NodeOutput(model if fast else leave_out(model))


NODES = [DiagDistillModelLoader]
