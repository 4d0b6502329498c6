"""The model, the decoder and the prompt that a setting describes, with random weights.

Shapes: B batch, C latent channels, f latent frames of a piece, t its pixel frames, h w latent sizes, H W pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..attention import sdpa
from ..fast import FastDiT, accelerated, accelerated_decoder
from ..kv_cache import KVCache
from ..noise import SeededNoise
from ..sampler import Chunk, Forward, stream_chunks
from ..vae import Stream, TinyVAE, WanVAE
from ..wan_dit import WanDiT
from .meter import choose_device
from .setting import DTYPES, BenchSetting

_Module = TypeVar("_Module", bound=nn.Module)


class _OperatorNames(TorchDispatchMode):
    """Collects the names of all operators that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


class _Enough(Exception):
    """Ends a video after its first forward."""


class _BatchOfOne:
    """A decoder's stream as a pipeline wants it: pieces of any length, and one sample, with all frames of the batch."""

    def __init__(self, stream: Stream, decode_frames: int) -> None:
        self.stream, self.decode_frames = stream, decode_frames

    def push(self, latents: Tensor) -> Tensor:
        """[B,C,f,h,w] -> [1,3,B t,H,W]"""
        pieces = [self.stream.push(piece).unbind(0) for piece in latents.split(self.decode_frames, dim=2)]
        return torch.cat([sample for piece in pieces for sample in piece], dim=1).unsqueeze(0)


class Rig:
    """Everything a measurement runs.

    Raises:
        ValueError: a device or an attention back end that is not here.
    """

    def __init__(self, setting: BenchSetting) -> None:
        self.setting = setting
        self.device = choose_device(setting.device)
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)
        dtype = DTYPES[setting.dtype]
        self.generator = torch.Generator(self.device).manual_seed(0)
        # From the meta device: a 14B model is never held in float32, nor on the host.
        with torch.device("meta"):
            model = WanDiT(setting.model, attention=setting.attention)
        plain = self._filled(model, dtype)
        options = {"kernels": setting.kernels, "graphs": setting.graphs}
        attention = "auto" if setting.attention == "auto" else plain.attend
        self.model: Any = accelerated(
            plain, setting.fast, attention=attention, fp8=setting.fp8, compiled=setting.compiled, **options
        )
        """on the path that the setting asks for"""
        decoder = self._decoder(dtype)
        self.decoder = None if decoder is None else accelerated_decoder(decoder, setting.fast, **options)
        text = (setting.batch, setting.model.text_len, setting.model.text_dim)
        self.context = torch.randn(text, generator=self.generator, device=self.device)
        self.negative = (
            torch.randn(text, generator=self.generator, device=self.device) if setting.branches == 2 else None
        )

    @property
    def parameters(self) -> int:
        """Of the DiT."""
        return sum(parameter.numel() for parameter in self._plain.parameters())

    @property
    def _plain(self) -> WanDiT:
        model: WanDiT = self.model.model if isinstance(self.model, FastDiT) else self.model
        return model

    def path(self) -> dict[str, Any]:
        """What the forwards ran on, after the first video; plain values for JSON."""
        if not isinstance(self.model, FastDiT):
            return {"taken": "plain", "kernels": "PyTorch's", "cuda_graphs": False}
        choice = self.model.choice
        timed = {} if choice is None else {
            "attention": choice.name,
            "attention_seconds": {name: round(seconds, 6) for name, seconds in choice.seconds.items()},
            "attention_refused": choice.refused,
        }  # fmt: skip
        kernels = "Triton" if self.model.ops.__name__.endswith(".kernels") else "PyTorch's"
        return {
            "taken": "fast",
            "kernels": kernels,
            "cuda_graphs": self.model.captured,
            "linear_layers": "FP8" if self.model.fp8 else self.setting.dtype,
            "compiled": self.model.compiled,
            "error_of_a_forward": round(self.forward_error(), 6),
            **timed,
        }

    @torch.no_grad()
    def forward_error(self) -> float:
        """Of the first forward on the fast path: its distance from the plain path's with PyTorch's own attention,
        relative to the latter's size, both root mean squares."""
        setting, plain = self.setting, self._plain
        rows, columns = (size // 2 for size in setting.latent_size)
        latents = SeededNoise(0).initial(
            0, (setting.batch, setting.model.in_dim, setting.chunk_frames, *setting.latent_size)
        )
        latents, timestep = latents.to(self.device), torch.full((setting.batch,), 1000.0, device=self.device)

        def flow(model: Any) -> Tensor:
            cache = KVCache(
                setting.model, setting.cache, batch=setting.batch, rows=rows, columns=columns,
                total_frames=setting.chunks * setting.chunk_frames, dtype=plain.dtype, device=plain.device,
            )  # fmt: skip
            out: Tensor = model(latents, timestep, self.context, cache=cache)
            return out.float()

        own, plain.attend = plain.attend, sdpa
        try:
            right = flow(plain)
        finally:
            plain.attend = own
        return float((flow(self.model) - right).norm() / right.norm())

    def chunks(self, on_forward: Callable[[Forward], None] | None = None) -> Iterator[Chunk]:
        """Samples the setting's video from its beginning; a chunk is the caller's to drop."""
        setting = self.setting
        height, width = setting.latent_size
        return stream_chunks(
            self.model,
            self.context,
            setting.schedule,
            noise=SeededNoise(0),
            num_latent_frames=setting.latent_frames,
            height=height,
            width=width,
            cache=setting.cache,
            policy=setting.policy,
            chunk_frames=setting.chunk_frames,
            step=setting.step,
            cfg=setting.cfg,
            negative=self.negative,
            on_forward=on_forward,
        )

    def attention_kernels(self) -> list[str]:
        """Names of the attention operators that the first forward runs, as PyTorch records them.

        A back end may choose between kernels by device, precision and size, so its name alone does not say. Empty where
        the kernel is no operator of PyTorch's, or attention falls apart into plain products.
        """

        def stop(forward: Forward) -> None:
            raise _Enough

        graphs = isinstance(self.model, FastDiT) and self.model.graphs
        if graphs:
            self.model.graphs = False  # a replay runs no operators
        try:
            with _OperatorNames() as operators, contextlib.suppress(_Enough):
                next(self.chunks(stop))
        finally:
            if graphs:
                self.model.graphs = True
        return sorted(name for name in operators.names if "attention" in name or "attn" in name)

    def latents(self) -> Tensor:
        """Random latents of a piece [B,C,f,h,w] of `decode_frames`: decoding takes them as well as sampled ones."""
        setting = self.setting
        shape = (setting.batch, setting.model.in_dim, setting.decode_frames, *setting.latent_size)
        return torch.randn(shape, generator=self.generator, device=self.device)

    def decoding(self) -> Stream | None:
        """A fresh stream of the decoder; None without one."""
        return None if self.decoder is None else self.decoder.streaming_decoder()

    def streaming_decoder(self) -> _BatchOfOne:
        """As a pipeline's decoder: a fresh stream."""
        stream = self.decoding()
        assert stream is not None, "the setting has a decoder"
        return _BatchOfOne(stream, self.setting.decode_frames)

    def _decoder(self, dtype: torch.dtype) -> TinyVAE | WanVAE | None:
        name = self.setting.decoder
        if name == "none":
            return None
        if name == "wan":
            with torch.device("meta"):
                wan = WanVAE(self.setting.wan_vae_dim)
            return self._filled(wan, dtype)
        with torch.device("meta"):
            tiny = TinyVAE(self.setting.tiny_vae)
        return self._filled(tiny, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _filled(self, module: _Module, dtype: torch.dtype) -> _Module:
        """Allocates a module's weights and draws them so that activations neither vanish nor overflow.

        Values do matter to speed at the edges: denormals are slow on a CPU, and a GPU full of zeros draws less power.
        """
        module = module.to(dtype).to_empty(device=self.device).requires_grad_(False).eval()
        for name, parameter in module.named_parameters():
            if name.endswith("gamma") or (parameter.ndim == 1 and name.endswith("weight")):
                parameter.fill_(1.0)  # of norms
            elif parameter.ndim == 1:
                parameter.zero_()
            else:
                fan_in = parameter[0].numel()
                parameter.normal_(std=fan_in**-0.5, generator=self.generator)
        return module


def to_rgb(pixels: Tensor) -> Tensor:
    """Pixels [B,3,t,H,W] about -1..1 -> frames [B,t,H,W,3], 8 bits, on the host."""
    return pixels.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous().cpu()
