"""TinyVAE: a small 2D video autoencoder in the TAEHV layout (madebyollin/taehv; `taew2_1` serves Wan 2.1 latents).

Its only view across time is a memory block, which sees the frame before the present one at its own depth, so everything
else runs over all frames at once. Inside, frames lie time-major in the batch: [T*B, C, H, W], frame t of sample b at
t*B + b. "The frame before" is then a shift by B along the batch, which keeps channels_last tensors channels_last.

Shapes: B batch, C channels, T frames (at whatever rate the depth has), H W sizes. See interface.py for the outside.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .interface import check_latents, check_pixels
from .streaming import Stream, StreamState

Three = tuple[bool, bool, bool]


@dataclass(frozen=True, kw_only=True)
class TinyVAEConfig:
    """Sizes of a TinyVAE. The defaults are those of `taew2_1`. Tuples run in the order the data meets the stages."""

    latent_channels: int = 16
    patch_size: int = 1
    """Side of the pixel squares folded into channels before the encoder and unfolded after the decoder."""
    encoder_width: int = 64
    decoder_widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    """Width of each of the three decoder stages, then of the output convolution."""
    encoder_space: Three = (True, True, True)
    encoder_time: Three = (True, True, False)
    """Which stages halve the size or the frame rate, and below, which double it."""
    decoder_space: Three = (True, True, True)
    decoder_time: Three = (False, True, True)
    encoder_lookahead: bool = False
    """Encode as the published TAEHV weights are used: see TinyVAE."""

    def __post_init__(self) -> None:
        sizes = (self.latent_channels, self.patch_size, self.encoder_width, *self.decoder_widths)
        if min(sizes) < 1:
            raise ValueError(f"every size of a TinyVAEConfig must be at least 1, got {self}")
        if len(self.decoder_widths) != 4:
            raise ValueError(f"decoder_widths needs four entries, got {self.decoder_widths}")
        for name in ("encoder_space", "encoder_time", "decoder_space", "decoder_time"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} needs three entries, one a stage, got {getattr(self, name)}")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TinyVAEConfig:
        """Raises ValueError for anything that `to_json` does not write."""
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
            return cls(**values)
        except (TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"this is no TinyVAE configuration: {error}") from error

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent, along height and width, on encode."""
        return int(self.patch_size * 2 ** sum(self.encoder_space))

    @property
    def time_stride(self) -> int:
        """Pixel frames per latent frame on encode."""
        return int(2 ** sum(self.encoder_time))

    @property
    def decoder_time_stride(self) -> int:
        """Pixel frames per latent frame on decode; less than time_stride makes a cheaper, coarser preview."""
        return int(2 ** sum(self.decoder_time))


def _conv3(channels_in: int, channels_out: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, **options)


class SoftClamp(nn.Module):
    """Bounds latents smoothly to -3..3, so that an outlier cannot saturate the decoder."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.tanh(x_NCHW / 3) * 3


class MemBlock(nn.Module):
    """Residual block over a frame and the frame before it (zeros before the first). Remembers its last input frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv3(2 * channels, channels),
            nn.ReLU(inplace=True),
            _conv3(channels, channels),
            nn.ReLU(inplace=True),
            _conv3(channels, channels),
        )

    def forward(self, x_NCHW: Tensor, batch: int, state: StreamState) -> Tensor:
        before = state.get(self)
        if before is None:
            before = torch.zeros_like(x_NCHW[:batch])
        past_NCHW = torch.cat([before, x_NCHW[:-batch]])
        state.keep(self, x_NCHW[-batch:])
        return F.relu(self.conv(torch.cat([x_NCHW, past_NCHW], dim=1)) + x_NCHW)


class TimePool(nn.Module):
    """Joins `stride` neighbouring frames into one (stride 1: a plain pointwise convolution)."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels * stride, channels, 1, bias=False)

    def forward(self, x_NCHW: Tensor, batch: int) -> Tensor:
        if self.stride > 1:
            n, channels, height, width = x_NCHW.shape
            groups = n // (batch * self.stride)
            x = x_NCHW.permute(0, 2, 3, 1).reshape(groups, self.stride, batch, height, width, channels)
            x = x.permute(0, 2, 3, 4, 1, 5).reshape(groups * batch, height, width, self.stride * channels)
            x_NCHW = x.permute(0, 3, 1, 2)
        return self.conv(x_NCHW)


class TimeGrow(nn.Module):
    """Makes `stride` frames out of each one, then doubles their size if `upsample`.

    The published layout enlarges first. A pointwise convolution commutes with nearest-neighbour enlargement, so the
    result is the same and the convolution works on a quarter of the pixels.
    """

    def __init__(self, channels: int, stride: int, upsample: bool) -> None:
        super().__init__()
        self.stride = stride
        self.upsample = upsample
        self.conv = nn.Conv2d(channels, channels * stride, 1, bias=False)

    def forward(self, x_NCHW: Tensor, batch: int) -> Tensor:
        n, channels, height, width = x_NCHW.shape
        x_NCHW = self.conv(x_NCHW)
        if self.stride > 1:
            x = x_NCHW.permute(0, 2, 3, 1).reshape(n // batch, batch, height, width, self.stride, channels)
            x = x.permute(0, 4, 1, 2, 3, 5).reshape(n * self.stride, height, width, channels)
            x_NCHW = x.permute(0, 3, 1, 2)
        return F.interpolate(x_NCHW, scale_factor=2.0, mode="nearest") if self.upsample else x_NCHW

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A file made for more frames per latent holds one group of output channels for each frame. A smaller stride
        # keeps the last groups: the frame at the end of a latent's span is the one to show.
        key = prefix + "conv.weight"
        weight = state_dict.get(key)
        if weight is not None and weight.ndim == 4 and weight.shape[0] > self.conv.out_channels:
            state_dict[key] = weight[-self.conv.out_channels :]
        super()._load_from_state_dict(state_dict, prefix, *args)


def _run(blocks: Iterable[nn.Module], x_NCHW: Tensor, batch: int, state: StreamState) -> Tensor:
    for block in blocks:
        if isinstance(block, MemBlock):
            x_NCHW = block(x_NCHW, batch, state)
        elif isinstance(block, (TimePool, TimeGrow)):
            x_NCHW = block(x_NCHW, batch)
        else:
            x_NCHW = block(x_NCHW)
    return x_NCHW


def _to_time_major(x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW.permute(2, 0, 1, 3, 4).flatten(0, 1)


def _from_time_major(x_NCHW: Tensor, batch: int) -> Tensor:
    return x_NCHW.unflatten(0, (-1, batch)).permute(1, 2, 0, 3, 4)


class TinyVAE(nn.Module):
    """A video autoencoder small enough to train and run on a CPU; keys are those of TAEHV files.

    Frames and latents line up as in Wan 2.1: latent frame 0 stands for pixel frame 0 alone, latent frame i for pixel
    frames 4i-3..4i. The decoder makes four frames of every latent frame and drops the first three, as TAEHV does.

    The encoder mirrors it: pixel frame 0 is repeated three times in front, so that the four frames joined in latent
    frame i are 4i-3..4i, the ones it stands for, and a stream can be encoded as it comes. TAEHV itself repeats the
    last frame at the end instead: its latent frame i joins frames 4i..4i+3, up to three ahead of those it stands for.
    Weights trained that way put everything three frames late when encoded in the other way (a single image is the
    same in both). `encoder_lookahead` pads at the end: for published weights, not for those trained here.

    Works inside in 0..1, outside in -1..1. Training on a CPU is fastest under bf16 autocast, with the module in
    `memory_format=torch.channels_last` (frames are put into that format here).

    Source: madebyollin/taehv.
    """

    def __init__(self, config: TinyVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TinyVAEConfig()
        folded = 3 * config.patch_size**2

        width = config.encoder_width
        encoder: list[nn.Module] = [_conv3(folded, width), nn.ReLU(inplace=True)]
        for halve_space, halve_time in zip(config.encoder_space, config.encoder_time, strict=True):
            encoder.append(TimePool(width, 2 if halve_time else 1))
            encoder.append(_conv3(width, width, stride=2 if halve_space else 1, bias=False))
            encoder += [MemBlock(width) for _ in range(3)]
        self.encoder = nn.Sequential(*encoder, _conv3(width, config.latent_channels))

        widths = config.decoder_widths
        decoder: list[nn.Module] = [SoftClamp(), _conv3(config.latent_channels, widths[0]), nn.ReLU(inplace=True)]
        for i in range(3):
            decoder += [MemBlock(widths[i]) for _ in range(3)]
            # The Identity holds the place of the enlargement that TimeGrow does, so that keys keep their numbers.
            decoder += [nn.Identity(), TimeGrow(widths[i], 2 if config.decoder_time[i] else 1, config.decoder_space[i])]
            decoder.append(_conv3(widths[i], widths[i + 1], bias=False))
        self.decoder = nn.Sequential(*decoder, nn.ReLU(inplace=True), _conv3(widths[3], folded))

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def spatial_stride(self) -> int:
        return self.config.spatial_stride

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B,3,4F-3,H,W] in -1..1 -> normalised latents [B,C,F,H/8,W/8], in the dtype of the pixels.

        Takes memory in proportion to the number of frames; `streaming_encoder` does not. Raises ValueError for other
        shapes. (The strides 4 and 8 follow from the configuration.)
        """
        return self._encode(pixels, StreamState())

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B,C,F,h,w] -> pixels [B,3,4F-3,8h,8w], in the dtype of the latents.

        Nominally -1..1 but never clamped, in training or evaluation: a clamp would stop the gradient where a training
        loss needs it, so whoever writes pictures clamps. Takes memory in proportion to the number of frames;
        `streaming_decoder` does not. Raises ValueError for other shapes.
        """
        return self._decode(latents, StreamState())

    def streaming_decoder(self) -> Stream:
        return Stream(self._decode)

    def streaming_encoder(self) -> Stream:
        """Raises ValueError with `encoder_lookahead`: a latent would have to wait for frames not pushed yet."""
        if self.config.encoder_lookahead:
            raise ValueError("an encoder that looks ahead cannot stream; use encode, or a config without it")
        return Stream(self._encode)

    def _encode(self, pixels: Tensor, state: StreamState) -> Tensor:
        stride = self.config.time_stride
        check_pixels(pixels, spatial_stride=self.config.spatial_stride, time_stride=stride, first=state.first)
        batch = pixels.shape[0]
        x_NCHW = _to_time_major(pixels.to(self._dtype)).add(1).mul(0.5)
        if self.config.patch_size > 1:
            x_NCHW = F.pixel_unshuffle(x_NCHW, self.config.patch_size)
        if self.config.encoder_lookahead:
            x_NCHW = torch.cat([x_NCHW] + [x_NCHW[-batch:]] * (stride - 1))
        elif state.first:
            x_NCHW = torch.cat([x_NCHW[:batch]] * (stride - 1) + [x_NCHW])
        x_NCHW = _run(self.encoder, x_NCHW.contiguous(memory_format=torch.channels_last), batch, state)
        return _from_time_major(x_NCHW, batch).to(pixels.dtype)

    def _decode(self, latents: Tensor, state: StreamState) -> Tensor:
        check_latents(latents, self.config.latent_channels)
        batch = latents.shape[0]
        x_NCHW = _to_time_major(latents.to(self._dtype)).contiguous(memory_format=torch.channels_last)
        x_NCHW = _run(self.decoder, x_NCHW, batch, state)
        if state.first:
            x_NCHW = x_NCHW[batch * (self.config.decoder_time_stride - 1) :]
        if self.config.patch_size > 1:
            x_NCHW = F.pixel_shuffle(x_NCHW, self.config.patch_size)
        return _from_time_major(x_NCHW, batch).to(latents.dtype).mul(2).sub(1)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype
