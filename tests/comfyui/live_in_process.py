"""Run as a script: what memory is asked for when live prompts are encoded. Prints what was found, as JSON.

python live_in_process.py COMFYUI
"""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

from fast_in_process import load_pack


def main(comfyui: str) -> None:
    load_pack(comfyui)
    import comfy.model_management
    import torch
    from pack.diag_core import WanConfig, WanDiT
    from pack.nodes import comfy_bridge, live
    from pack.nodes.choice import CUSTOM, SamplingChoice
    from pack.nodes.comfy_plan import Plan
    from pack.nodes.comfy_sampler import LiveInput, Streaming, sample_latent

    asked: dict[str, float] = {}
    encoding: list[str] = []
    load = comfy.model_management.load_models_gpu

    def recorded(models: Any, memory_required: float = 0, **options: Any) -> None:
        if encoding:
            asked[encoding.pop()] = memory_required
        load(models, memory_required=memory_required, **options)

    comfy.model_management.load_models_gpu = recorded
    server = sys.modules["server"] = ModuleType("server")
    server.PromptServer = object()  # no browser to tell anything

    class Clip:
        def tokenize(self, text: str) -> str:
            encoding.append(text)
            return text

        def encode_from_tokens_scheduled(self, text: str) -> list[Any]:
            return [[torch.randn(1, 512, 4096), {}]]

    config = WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2)
    model = comfy_bridge.load_stock_model(WanDiT(config).state_dict())
    frames, decoding = 15, 1e6

    def consume(chunks: Any, show: Any) -> None:
        live.say("", "", "before the first chunk")
        for chunk in chunks(lambda forward: None):
            live.say("", "", f"after chunk {chunk.index}")

    values = {"kv_noise": 100.0, "window_frames": 9, "sink_frames": 3}
    choice = SamplingChoice(CUSTOM, None, "1", values)
    with torch.inference_mode():
        sample_latent(
            model, [[torch.randn(1, 512, 4096), {}]], None, {"samples": torch.zeros(1, 16, 3, 8, 8)}, seed=1,
            choice=choice, streaming=Streaming(frames, decoding, consume), live=LiveInput(Clip(), ["a slot"], 16.0),
        )  # fmt: skip
    settings = choice.resolve(None)
    size = Plan.of(settings, frames).cache_bytes(settings, config, (1, 16, frames, 8, 8), torch.float32, 1)
    print(json.dumps({"asked": asked, "cache": size, "decoding": decoding}))


if __name__ == "__main__":
    main(sys.argv[1])
