"""What ComfyUI's machinery costs: a forward inside the Diagonal Sampler against the same forward of diag_core alone.

    python benchmarks/comfyui_overhead.py --comfyui PATH [--rounds 9] [--out FILE]

Runs on the CPU in ComfyUI's Python environment, with random weights of a Wan layout. Both ways sample the same video
with the same noise; rounds alternate between them, and the medians are compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def pack() -> None:
    """The pack under the name `pack`, as ComfyUI imports it."""
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["pack"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--rounds", type=int, default=9, help="runs each way (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the result there, as JSON")
    options = parser.parse_args()
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, str(options.comfyui))
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch
    from comfyui_version import __version__ as comfyui_version

    torch.set_num_threads(options.threads)
    pack()
    from pack.diag_core import CacheConfig, ContextPolicy, DiagonalSchedule, SeededNoise, WanConfig, WanDiT, generate
    from pack.nodes import comfy_bridge
    from pack.nodes.choice import CUSTOM, SamplingChoice
    from pack.nodes.comfy_sampler import sample_latent

    config = WanConfig(dim=512, ffn_dim=2048, num_heads=4, num_layers=8, text_len=512)
    torch.manual_seed(0)
    core = WanDiT(config).eval().requires_grad_(False)
    stock = comfy_bridge.load_stock_model({name: tensor.clone() for name, tensor in core.state_dict().items()})
    context = torch.randn(1, 512, 4096)
    frames, size, text = 12, 32, "4322"
    schedule, policy, cache = DiagonalSchedule.parse(text), ContextPolicy.kv_noise(100.0), CacheConfig(12, 3)
    values = {"shift": 5.0, "kv_noise": 100.0, "window_frames": 12, "sink_frames": 3, "cfg": 1.0}
    choice = SamplingChoice(CUSTOM, None, text, values)
    forwards = schedule.forwards(4)

    def alone() -> torch.Tensor:
        return generate(
            core, context, schedule, noise=SeededNoise(0), num_latent_frames=frames, height=size, width=size,
            cache=cache, policy=policy,
        )  # fmt: skip

    def inside() -> torch.Tensor:
        latent = {"samples": torch.zeros(1, 16, frames, size, size)}
        sampled, _ = sample_latent(stock, [[context, {}]], None, latent, seed=0, choice=choice)
        return comfy_bridge.normalise(sampled["samples"])

    with torch.inference_mode():
        difference = (alone() - inside()).abs().max().item()
        times: dict[str, list[float]] = {"diag_core": [], "comfyui": []}
        for _ in range(options.rounds):
            for name, run in (("diag_core", alone), ("comfyui", inside)):
                began = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - began) / forwards)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    result = {
        "command": f"python benchmarks/comfyui_overhead.py --comfyui PATH --rounds {options.rounds}",
        "seconds_a_forward": {name: round(value, 4) for name, value in median.items()},
        "overhead": round(median["comfyui"] / median["diag_core"] - 1, 4),
        "seconds_all": {name: [round(s, 4) for s in seconds] for name, seconds in times.items()},
        "largest_difference_of_latents": difference,
        "forwards": forwards,
        "model": config.to_dict(),
        "tokens_a_chunk": 3 * (size // 2) ** 2,
        "versions": {"torch": torch.__version__, "comfyui": comfyui_version, "python": platform.python_version()},
        "threads": options.threads,
        "processor": platform.processor() or platform.machine(),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
