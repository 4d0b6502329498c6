"""Run as a script: where models and previews are, and what happens where memory ends. Prints what was found, as JSON.

python devices_in_process.py COMFYUI
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

from fast_in_process import load_pack


def main(comfyui: str) -> None:
    load_pack(comfyui)
    import comfy.model_management
    import comfy.sd
    import torch
    from pack.diag_core import WanConfig, WanDiT
    from pack.diag_core.demo_text import DEMO_ENCODER
    from pack.diag_core.vae import WanVAE
    from pack.nodes import comfy_bridge
    from pack.nodes.preview import Previewer

    found: dict[str, Any] = {}

    # Later versions of ComfyUI
    load, asked = comfy.sd.load_diffusion_model_state_dict, {}

    def later(tensors: Any, model_options: Any = None, metadata: Any = None, disable_dynamic: bool = False) -> Any:
        asked["disable_dynamic"] = disable_dynamic
        return load(tensors, model_options=model_options)

    comfy.sd.load_diffusion_model_state_dict = later
    comfy_bridge.load_stock_model(WanDiT(WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=1)).state_dict())
    found["resident"] = asked["disable_dynamic"]

    # A VAE whose weights ComfyUI keeps elsewhere
    network = WanVAE(dim=8)
    vae = SimpleNamespace(first_stage_model=network, patcher=SimpleNamespace(load_device=torch.device("meta")))
    comfy.model_management.load_models_gpu = lambda *args, **options: None
    moved = comfy_bridge.wan_vae_of(vae)
    found["vae"] = sorted({p.device.type for p in moved.parameters()})
    found["left"] = sorted({p.device.type for p in network.parameters()})

    # A preview without memory
    previewer = Previewer(DEMO_ENCODER, torch.device("cpu"))
    assert previewer.vae is not None
    before = previewer.memory(8, 8)
    sizes = [previewer.picture(torch.randn(1, 16, 3, 8, 8))[1].size]

    def full(latents: Any) -> Any:
        raise torch.OutOfMemoryError

    previewer.vae.decode = full
    sizes += [previewer.picture(torch.randn(1, 16, 3, 8, 8))[1].size for _ in range(2)]
    found["previews"], found["memory"] = sizes, [before, previewer.memory(8, 8)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
