"""The public implementation of the method beside this one, on the same device in the same run:

    python -m benchmarks.public_baseline CHECKOUT --json FILE

CHECKOUT is a clone of Sphere-AI-Lab/diagdistill with its own requirements installed. Its pipeline, model, tiny decoder
and settings for inference (steps, window, torch.compile) run as they are. What it would download is given to it: this
project's random weights, a random prompt in place of a text encoder's, and a tiny decoder without trained weights. Two
things are in its favour: its LoRA is left out, which it would compute beside every layer, and so is the detour of its
latents over the host. It decodes when all is sampled, so its first frame comes with its last.

It needs the package flash-attn. `--attention sdpa` runs both on PyTorch's attention instead: the same kernel on either
side, and nothing to build.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diag_core import SeededNoise, WanConfig
from diag_core.bench import PRESETS
from diag_core.bench.measure import Spread, measure_video
from diag_core.bench.meter import Meter, describe_machine
from diag_core.bench.report import save_report, spread_values
from diag_core.bench.rig import Rig
from diag_core.bench.setting import BenchSetting

CONFIG = Path("configs") / "diadistill_inference.yaml"
_NEEDED = (Path("pipeline") / "causal_inference.py", Path("utils") / "wan_wrapper.py", Path("taehv.py"), CONFIG)
_FIRST = 1000.0  # timestep of the forward whose result is compared


class _Prompt(nn.Module):
    """In place of the text encoder: one context [1,L,text_dim] for every prompt."""

    def __init__(self, context: Tensor) -> None:
        super().__init__()
        self.context = context

    def forward(self, text_prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"prompt_embeds": self.context}


class _TinyDecoder(nn.Module):
    """Its tiny decoder, called as its own script calls it: latents [1,F,C,h,w] -> [1,T,3,H,W] in -1..1."""

    def __init__(self, taehv: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.taehv, self.dtype = taehv.to(dtype), dtype

    def decode_to_pixel(self, latent: Tensor, use_cache: bool = False) -> Tensor:
        pixels: Tensor = self.taehv.decode_video(latent.to(self.dtype), parallel=False)  # type: ignore[operator]
        return pixels.mul_(2).sub_(1)


class PublicPipeline:
    """Theirs, built from a checkout.

    Args:
        weights: of a `WanDiT` with `config`, whose layout it shares.
        context: [1,L,text_dim].
        attention: "own", or "sdpa" for PyTorch's in its place.

    Raises:
        ValueError: it is no such checkout, its requirements are not installed, or the weights do not fit it.
    """

    def __init__(
        self,
        checkout: Path,
        setting: BenchSetting,
        weights: dict[str, Tensor],
        context: Tensor,
        device: torch.device,
        dtype: torch.dtype,
        *,
        attention: str,
    ) -> None:
        for file in _NEEDED:
            if not (checkout / file).exists():
                raise ValueError(f"{checkout} has no {file}: give a clone of Sphere-AI-Lab/diagdistill")
        self.checkout, self.device, self.dtype = checkout.resolve(), device, dtype
        with _modules_of(self.checkout) as load:
            self.config: Any = load("omegaconf").OmegaConf.load(self.checkout / CONFIG)
            with _weights_where_it_looks(str(self.config.model_name), setting.model, weights):
                self.pipeline: Any = load("pipeline").CausalInferencePipeline(
                    self.config, device=device, text_encoder=_Prompt(context.to(dtype)), vae=nn.Identity()
                )
            taehv = load("taehv").TAEHV(checkpoint_path=None)
            self.attention = _take_attention(attention, load("wan.modules.attention"), load("wan.modules.model"))
        self.pipeline.generator.model.load_state_dict(weights)  # from_pretrained only warns of what is missing
        rows, columns = (size // 2 for size in setting.latent_size)
        self.pipeline.num_transformer_blocks = setting.model.num_layers
        self.pipeline.frame_seq_length = rows * columns
        self.pipeline.to(dtype=dtype).to(device)
        half = torch.float16 if device.type == "cuda" else torch.float32
        self.pipeline.vae = _TinyDecoder(taehv.eval().requires_grad_(False), half).to(device)
        self.shape = (1, setting.latent_frames, setting.model.in_dim, *setting.latent_size)

    def first_flow(self, latents: Tensor) -> Tensor:
        """Its flow [1,C,f,h,w] of a first chunk of pure noise, before anything is compiled."""
        pipeline, frames = self.pipeline, latents.shape[2]
        kept = {"batch_size": 1, "dtype": self.dtype, "device": self.device}
        size = int(self.config.model_kwargs.local_attn_size)
        pipeline._initialize_kv_cache(**kept, kv_cache_size_override=size * pipeline.frame_seq_length)
        pipeline._initialize_crossattn_cache(**kept)
        pipeline._set_all_modules_max_attention_size(size)
        flow, _ = pipeline.generator(
            noisy_image_or_video=latents.transpose(1, 2).to(self.dtype),
            conditional_dict=pipeline.text_encoder([""]),
            timestep=torch.full((1, frames), _FIRST, device=self.device),
            kv_cache=pipeline.kv_cache1,
            crossattn_cache=pipeline.crossattn_cache,
            current_start=0,
        )
        return flow.transpose(1, 2)

    def compile(self) -> str | None:
        """As its script does; the mode, or None where its settings do not."""
        if not self.config.get("enable_torch_compile"):
            return None
        mode = str(self.config.torch_compile_mode)
        self.pipeline.generator = torch.compile(self.pipeline.generator, mode=mode)
        self.pipeline.vae = torch.compile(self.pipeline.vae, mode=mode)
        return mode

    def video(self, noise: Tensor) -> tuple[float, Tensor]:
        """(seconds in its DiT by its own clock, 8-bit frames [T,3,H,W] on the host)"""
        pixels = self.pipeline.inference(noise=noise, text_prompts=[""])
        seconds = sum(block["time_ms"] for block in self.pipeline.last_block_timing) / 1000
        return seconds, pixels[0].mul(255).to(torch.uint8).cpu()

    def commit(self) -> str | None:
        done = subprocess.run(
            ["git", "-C", str(self.checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() or None


@torch.no_grad()
def compare(checkout: Path, setting: BenchSetting, *, runs: int, attention: str = "own") -> dict[str, Any]:
    """Both, one after the other; a report of plain values.

    Args:
        attention: "own": each its own; "sdpa": PyTorch's for both.

    Raises:
        ValueError: the checkout is of something else, or it cannot be run here.
    """
    if attention == "sdpa":
        setting = replace(setting, attention="sdpa")
    ours = Rig(replace(setting, fast="off", decoder="none"))
    theirs = PublicPipeline(
        checkout, setting, ours.model.state_dict(), ours.context, ours.device, ours.model.dtype, attention=attention
    )
    first = SeededNoise(0).initial(0, (1, setting.model.in_dim, setting.chunk_frames, *setting.latent_size))
    first = first.to(ours.device)
    right = ours.model(first, torch.full((1,), _FIRST, device=ours.device), ours.context).float()
    error = float((theirs.first_flow(first).float() - right).norm() / right.norm())
    del ours, right
    public = _public_report(theirs, setting.pixel_frames, runs=runs)
    commit, kernel = theirs.commit(), theirs.attention
    del theirs
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    rig = Rig(setting)
    result = measure_video(rig, runs=runs)
    assert result.together is not None and result.first_frame is not None
    own = {
        "path": rig.path(),
        "seconds": {
            "dit": spread_values(result.dit),
            "together": spread_values(result.together),
            "first_frame": spread_values(result.first_frame),
        },
        "frames_per_second": round(setting.pixel_frames / result.together.median, 3),
        "warm_up_seconds": round(result.warm_up_seconds, 3),
        "peak_bytes": result.memory.peak,
    }
    return {
        "machine": describe_machine(rig.device),
        "setting": {"size": f"{setting.width}x{setting.height}", "pixel_frames": setting.pixel_frames, "runs": runs},
        "error_of_a_forward_to_theirs": round(error, 6),
        "public": {"commit": commit, "attention": kernel, **public},
        "ours": own,
        "times_as_fast": {
            "dit": round(public["seconds"]["dit"]["median"] / own["seconds"]["dit"]["median"], 3),
            "to_rgb_frames": round(public["seconds"]["together"]["median"] / own["seconds"]["together"]["median"], 3),
            "first_frame": round(
                public["seconds"]["together"]["median"] / own["seconds"]["first_frame"]["median"], 3
            ),
        },
    }  # fmt: skip


def _public_report(theirs: PublicPipeline, pixel_frames: int, *, runs: int) -> dict[str, Any]:
    meter, mode = Meter(theirs.device), theirs.compile()
    noise = torch.randn(theirs.shape, device=theirs.device, dtype=theirs.dtype)
    began = meter.now()
    for _ in range(2):  # the second still compiles: lengths of the cache have come that the first began with
        theirs.video(noise)
    warm_up = meter.now() - began
    meter.reset_peak()
    dit, together = [], []
    for _ in range(runs):
        began = meter.now()
        seconds, frames = theirs.video(noise)
        together.append(meter.now() - began)
        dit.append(seconds)
    whole = Spread(tuple(together))
    return {
        "torch_compile": mode,
        "seconds": {"dit": spread_values(Spread(tuple(dit))), "together": spread_values(whole)},
        "frames_decoded": len(frames),  # its tiny decoder also hands out those before the first
        "frames_per_second": round(pixel_frames / whole.median, 3),
        "warm_up_seconds": round(warm_up, 3),
        "peak_bytes": meter.memory().peak,
    }


@contextlib.contextmanager
def _modules_of(checkout: Path) -> Iterator[Callable[[str], Any]]:
    """Imports modules of a checkout, whose names are everyday ones."""

    def load(name: str) -> Any:
        try:
            __import__(name)
        except ImportError as error:
            raise ValueError(
                f"{checkout} cannot be run: {error}. Install its own requirements beside this project's"
            ) from error
        return sys.modules[name]

    sys.path.insert(0, str(checkout))
    try:
        yield load
    finally:
        sys.path.remove(str(checkout))


@contextlib.contextmanager
def _weights_where_it_looks(name: str, config: WanConfig, weights: dict[str, Tensor]) -> Iterator[None]:
    """It loads Wan's weights from `wan_models` in the current folder, in diffusers' manner."""
    sizes = {key: value for key, value in asdict(config).items() if isinstance(value, (int, float))}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "wan_models" / name
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps({"_class_name": "CausalWanModel", "model_type": "t2v", **sizes}))
        tensors = {key: tensor.contiguous().cpu() for key, tensor in weights.items()}
        save_file(tensors, place / "diffusion_pytorch_model.safetensors")
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _take_attention(which: str, functions: Any, model: Any) -> str:
    """The name of the kernel that its attention takes from now on.

    Args:
        functions: its module of attention functions, which also says what is installed.
        model: its module that calls FlashAttention by name.
    """
    if which == "sdpa":
        functions.FLASH_ATTN_3_AVAILABLE = functions.FLASH_ATTN_2_AVAILABLE = False
        model.flash_attention = functions.attention  # which falls back to PyTorch's
        return "PyTorch's scaled_dot_product_attention"
    for flag, name in (("FLASH_ATTN_3_AVAILABLE", "FlashAttention 3"), ("FLASH_ATTN_2_AVAILABLE", "FlashAttention 2")):
        if getattr(functions, flag):
            return name
    raise ValueError("it needs the package flash-attn: install it, or give --attention sdpa")


def sentence(report: dict[str, Any]) -> str:
    """What came of it, in words."""
    public, ours, times = report["public"], report["ours"], report["times_as_fast"]
    compiled = f"torch.compile {public['torch_compile']}" if public["torch_compile"] else "not compiled"
    return (
        f"The public implementation ({compiled}, {public['attention']}) makes {public['frames_per_second']:.1f} frames "
        f"a second to RGB, this one {ours['frames_per_second']:.1f}: {times['to_rgb_frames']:.2f} times as fast "
        f"({times['dit']:.2f} times in the DiT, {times['first_frame']:.1f} times to the first frame)."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a clone of the public implementation")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to save all figures")
    parser.add_argument("--runs", type=int, default=5, help="measured videos of each (default: %(default)s)")
    parser.add_argument("--attention", choices=("own", "sdpa"), default="own", help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        report = compare(options.checkout, PRESETS["wan-1.3b"], runs=options.runs, attention=options.attention)
        save_report(report, options.json)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(sentence(report), f"saved: {options.json}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
