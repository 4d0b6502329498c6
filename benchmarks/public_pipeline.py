"""The public implementation's own pipeline for inference, taken from a checkout, as something that a benchmark can run.

Its pipeline, model, tiny decoder and settings (steps, window, torch.compile) run as they are. What it would download is
given to it: weights, a prompt in place of a text encoder's, and a tiny decoder without trained weights. Two things are
in its favour: its LoRA is left out, which some of its versions compute beside every layer, and so is the detour of its
latents over the host.

Legend: B = 1 video, F latent frames of a video, f of a chunk, T pixel frames, C latent channels.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diag_core.bench.setting import BenchSetting

NAME = "Sphere-AI-Lab/diagdistill"
CONFIG = Path("configs") / "diadistill_inference.yaml"
_NEEDED = (Path("pipeline") / "causal_inference.py", Path("utils") / "wan_wrapper.py", Path("taehv.py"), CONFIG)
_KERNELS = {"FLASH_ATTN_3_AVAILABLE": "flash3", "FLASH_ATTN_2_AVAILABLE": "flash2"}  # in the order it prefers them


@dataclass(frozen=True)
class PublicForward:
    """What its generator was given and what came out: latents and flow [1,C,f,h,w], timestep [1,f]."""

    latents: Tensor
    timestep: Tensor
    start_frame: int
    flow: Tensor


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


class _NoDecoder(nn.Module):
    def decode_to_pixel(self, latent: Tensor, use_cache: bool = False) -> Tensor:
        return latent


class PublicPipeline:
    """Theirs, built from a checkout.

    Args:
        weights: of a `WanDiT` with the setting's sizes, whose layout it shares.
        context: [1,L,text_dim].
        attention: "own", or "sdpa" for PyTorch's in its place.

    Attributes:
        attention: the kernel that it takes, by the name it has in `diag_core.attention`.

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
        attention: str = "own",
    ) -> None:
        check_checkout(checkout)
        self.checkout, self.device, self.dtype = checkout.resolve(), device, dtype
        sys.path.insert(0, str(self.checkout))
        try:
            self.config = self._settings()
            self.attention = _take_attention(
                attention, self._of("wan.modules.attention"), self._of("wan.modules.model")
            )
            _make_from_sizes(self._of("utils.wan_wrapper", "CausalWanModel"), setting, device)
            self.pipeline: Any = self._of("pipeline", "CausalInferencePipeline")(
                self.config, device=device, text_encoder=_Prompt(context.to(dtype)), vae=_NoDecoder()
            )
            taehv = self._of("taehv", "TAEHV")(checkpoint_path=None)
        finally:
            sys.path.remove(str(self.checkout))
        _load(self.pipeline.generator.model, weights)
        rows, columns = (size // 2 for size in setting.latent_size)
        self.pipeline.num_transformer_blocks = setting.model.num_layers
        self.pipeline.frame_seq_length = rows * columns
        self.pipeline.to(dtype=dtype).to(device)
        half = torch.float16 if device.type == "cuda" else torch.float32
        self.decoder: Any = _TinyDecoder(taehv.eval().requires_grad_(False), half).to(device)
        self.shape = (1, setting.latent_frames, setting.model.in_dim, *setting.latent_size)

    def _of(self, module: str, name: str | None = None) -> Any:
        """A module of its, which has an everyday name, or something in it."""
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"{self.checkout} cannot be run: {error}. Install its own requirements beside this project's"
            ) from error
        if name is not None and not hasattr(found, name):
            raise ValueError(f"{self.checkout}: its module {module} has no {name}: give a clone of {NAME}")
        return found if name is None else getattr(found, name)

    def _settings(self) -> Any:
        """As its script reads them: some versions keep the steps in a second file."""
        files = self._of("omegaconf", "OmegaConf")
        config = files.load(self.checkout / CONFIG)
        steps = config.get("schedule_config_path")
        return files.merge(config, files.load(self.checkout / steps)) if steps else config

    def forwards(self, noise: Tensor) -> list[PublicForward]:
        """All forwards of one video, in order; before anything is compiled."""
        seen: list[PublicForward] = []

        def remember(_: nn.Module, args: tuple[()], given: dict[str, Any], out: tuple[Tensor, ...]) -> None:
            start = given["current_start"] // self.pipeline.frame_seq_length
            latents, flow = given["noisy_image_or_video"].transpose(1, 2), out[0].transpose(1, 2)
            seen.append(PublicForward(latents, given["timestep"], start, flow))

        hook = self.pipeline.generator.register_forward_hook(remember, with_kwargs=True)
        self.latents(noise)
        hook.remove()
        return seen

    def compile(self) -> str | None:
        """As its script does; the mode, or None where its settings do not."""
        if not self.config.get("enable_torch_compile"):
            return None
        mode = str(self.config.torch_compile_mode)
        self.pipeline.generator = torch.compile(self.pipeline.generator, mode=mode)
        self.decoder = torch.compile(self.decoder, mode=mode)
        return mode

    def latents(self, noise: Tensor) -> Tensor:
        """[1,F,C,h,w] of both"""
        self.pipeline.vae = _NoDecoder()
        sampled: Tensor = self.pipeline.inference(noise=noise, text_prompts=[""], return_latents=True)[1]
        return sampled

    def video(self, noise: Tensor) -> Tensor:
        """Noise [1,F,C,h,w] -> 8-bit frames [T,3,H,W] on the host."""
        self.pipeline.vae = self.decoder
        pixels = self.pipeline.inference(noise=noise, text_prompts=[""])
        frames: Tensor = pixels[0].mul(255).to(torch.uint8).cpu()
        return frames

    def commit(self) -> str | None:
        if not (self.checkout / ".git").exists():  # git would answer with that of a repository around it
            return None
        done = subprocess.run(
            ["git", "-C", str(self.checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() or None


def check_checkout(checkout: Path) -> None:
    """Raises ValueError for a folder that is no such checkout."""
    for file in _NEEDED:
        if not (checkout / file).exists():
            raise ValueError(f"{checkout} has no {file}: give a clone of {NAME}")


def _make_from_sizes(model: Any, setting: BenchSetting, device: torch.device) -> None:
    """Has its model made with the setting's sizes where it would be read from a folder of Wan's weights."""

    def made(place: str, **options: Any) -> Any:
        with device:
            return model(model_type="t2v", **asdict(setting.model), **options)

    model.from_pretrained = made


def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raises ValueError, with their names, for keys or shapes that do not match."""
    own = model.state_dict()
    faults = [f"{key} is missing" for key in own.keys() - weights.keys()]
    faults += [f"{key} has no place" for key in weights.keys() - own.keys()]
    faults += [
        f"{key} is {list(weights[key].shape)} here and {list(own[key].shape)} there"
        for key in own.keys() & weights.keys()
        if own[key].shape != weights[key].shape
    ]
    if faults:
        raise ValueError(f"the weights do not fit its model, {len(faults)} keys: {', '.join(sorted(faults)[:8])}")
    model.load_state_dict(weights)


def _take_attention(which: str, functions: Any, model: Any) -> str:
    """The name of the kernel that its attention takes from now on.

    Args:
        functions: its module of attention functions, which also says what is installed.
        model: its module that calls FlashAttention by name.
    """
    if which == "sdpa":
        for flag in _KERNELS:
            setattr(functions, flag, False)
        model.flash_attention = functions.attention  # which falls back to PyTorch's
        return "sdpa"
    for flag, name in _KERNELS.items():
        if getattr(functions, flag):
            return name
    raise ValueError(
        "it needs the package flash-attn: install it, or have both run on PyTorch's attention with --attention sdpa "
        "(--baseline-attention sdpa of benchmarks.gpu)"
    )
