"""Run as a script: the fast path over ComfyUI's own model, against the plain path. Prints what was found, as JSON.

    python fast_in_process.py COMFYUI

On the CPU, where the fast path is not taken unless it is told to, as here.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import sys
import weakref
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOUND: dict[str, Any] = {}


def load_pack(comfyui: str) -> None:
    """The pack under the name `pack`, as the ComfyUI of this folder imports it; on the CPU, in one thread."""
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, comfyui)
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["pack"])


class Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}: {record.getMessage()}")

    def taken(self) -> str:
        """What was said of the plain path since the last call."""
        found, self.lines = [line for line in self.lines if "plain path" in line], []
        return " ".join(found)


def main(comfyui: str) -> None:
    load_pack(comfyui)
    import comfy.ldm.modules.attention
    import comfy.model_management
    import torch
    from pack.diag_core import WanConfig, WanDiT
    from pack.diag_core.fast import FastDiT
    from pack.diag_core.settings import CheckpointSettings
    from pack.nodes import comfy_bridge, comfy_fast
    from pack.nodes.choice import CUSTOM, SamplingChoice
    from pack.nodes.comfy_model import check_model
    from pack.nodes.comfy_plan import Plan, check_room
    from pack.nodes.comfy_sampler import sample_latent

    logging.getLogger().setLevel(logging.INFO)
    said = Said()
    logging.getLogger().addHandler(said)
    forwards: list[int] = []
    run_forward = FastDiT._forward
    FastDiT._forward = lambda *args: (forwards.append(1), run_forward(*args))[1]

    torch.manual_seed(0)
    core = WanDiT(WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2)).requires_grad_(False)
    for parameter in core.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    weights = {name: tensor.clone() for name, tensor in core.state_dict().items()}
    positive, negative = (torch.randn(1, 512, 4096) for _ in range(2))

    def sample(model: Any, fast: bool, *, cfg: float = 1.0, positions: str = "absolute", batch: int = 1) -> Any:
        comfy_fast.DEVICES = {"cuda", "cpu"} if fast else {"cuda"}
        values = {"kv_noise": 100.0, "window_frames": 9, "sink_frames": 3, "cfg": cfg, "positions": positions}
        choice = SamplingChoice(CUSTOM, None, "3212", values)
        latent = {"samples": torch.zeros(batch, 16, 12, 8, 8)}
        forwards.clear()
        with torch.inference_mode():
            sampled, _ = sample_latent(model, [[positive, {}]], [[negative, {}]], latent, seed=1, choice=choice)
        return comfy_bridge.normalise(sampled["samples"])

    def compare(name: str, model: Any, **options: Any) -> None:
        plain = sample(model, False, **options)
        said.taken()
        ours = sample(model, True, **options)
        FOUND[name] = {
            "difference": float((ours - plain).abs().max()),
            "size": float(plain.abs().max()),
            "fast_forwards": len(forwards),
            "said": said.taken(),
        }

    def new(dtype: str = "default") -> Any:
        return comfy_bridge.load_stock_model({name: tensor.clone() for name, tensor in weights.items()}, dtype)

    def fast_of(model: Any) -> Any:
        return getattr(model.model.diffusion_model, comfy_fast._KEY, None)

    model = new()
    compare("plain model", model)
    first = fast_of(model)
    compare("guidance", model, cfg=3.0)
    compare("relative positions", model, positions="relative")
    compare("two samples", model, batch=2)
    FOUND["kept from run to run"] = fast_of(model) is first and first.idle_bytes > 0

    lora = model.clone()
    key = "diffusion_model.blocks.0.self_attn.v.weight"
    lora.add_patches({key: ("diff", (torch.randn(256, 256) * 0.5,))}, 1.0)
    before = sample(model, True)
    compare("LoRA", lora)
    FOUND["LoRA changes the video"] = float((sample(lora, True) - before).abs().max())
    FOUND["without it again"] = float((sample(model, True) - before).abs().max())

    def replaced(args: dict[str, Any], extra: dict[str, Any]) -> Any:
        return {"img": extra["original_block"](args)["img"] * 1.01}

    others = model.clone()
    others.set_model_patch_replace(replaced, "dit", "double_block", 1)
    compare("a replaced block", others)
    others = model.clone()
    others.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *a, **k: f(*a, **k) * 1.01
    compare("another attention", others)
    others = model.clone()
    block = model.model.diffusion_model.blocks[1]
    others.add_object_patch("diffusion_model.blocks.1.cross_attn.forward", lambda *a, **k: block.norm1(a[0]))
    compare("a patched module", others)
    others = model.clone()
    weight_function = model.model.diffusion_model.blocks[0].ffn[0].weight_function
    weight_function.append(lambda weight: weight * 1.01)  # as ComfyUI patches what it keeps off the device
    compare("partial offload", others)
    weight_function.clear()
    compare("fp8", new("fp8_e4m3fn"))
    compare("left out", comfy_fast.leave_out(model).clone())
    FOUND["left out, storage"] = fast_of(model) is None

    attention = comfy.ldm.modules.attention
    before = attention.optimized_attention
    for chosen in (
        attention.attention_pytorch,
        attention.attention_xformers,
        attention.attention_sub_quad,
    ):  # by ComfyUI's command line
        attention.optimized_attention = chosen
        taken = comfy_fast._attention(torch.device("cuda"))
        FOUND[chosen.__name__] = taken if isinstance(taken, str) else getattr(taken, "why", "captured")
    attention.optimized_attention = before

    others = model.clone()
    others.load_device = torch.device("cuda", 0)  # and all weights on the CPU, as with --novram
    FOUND["weights elsewhere"] = comfy_fast.fast_path(others, check_model(others), torch.float32) is None
    FOUND["said of weights elsewhere"] = said.taken()

    sample(model, True)
    FOUND["before unloading"] = fast_of(model) is not None
    fast = fast_of(model)
    del others, lora
    gc.collect()
    comfy.model_management.unload_all_models()
    FOUND["after unloading"] = fast_of(model) is None and fast.idle_bytes == 0
    compare("loaded again", model)

    gc.collect()
    gc.disable()  # ComfyUI counts on references alone when it makes room for the next model
    model = new()
    sample(model, True)
    gone = weakref.ref(model.model.diffusion_model)
    before = gone() is not None
    model = first = fast = block = weight_function = None
    comfy.model_management.cleanup_models()
    FOUND["gone with its model"] = before and gone() is None

    there = comfy.model_management.get_total_memory(torch.device("cpu"))
    for window in (None, 12):
        plan = Plan.of(CheckpointSettings(schedule="4", window_frames=window), 241)
        for size in (there, there + 1):
            try:
                check_room(size, plan, 241, torch.device("cpu"))
                told = ""
            except ValueError as error:
                told = str(error)
            FOUND[f"room, window {window}, {size - there} too many"] = told
    print(json.dumps(FOUND))


if __name__ == "__main__":
    main(sys.argv[1])
