"""Layers of the Wan 2.1 VAE, causal in time. What a layer remembers lies in a StreamState, never in the layer.

A video of any length runs through them in one call or in several, with the same result. The very first pixel frame is
a case of its own: the temporal layers pass it on as it is, so that one pixel frame makes one latent frame.

Shapes: B batch, C channels, T frames at the rate of the layer's depth, H W sizes at its depth.
Source: Wan-Video/Wan2.1; the names of parameters are those of its checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .streaming import StreamState


class RMSNorm(nn.Module):
    """Scales each position's channel vector to root mean square 1, then by gamma. `dims` axes follow the channels."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.scale = channels**0.5
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * (self.gamma * self.scale)


class CausalConv3d(nn.Conv3d):
    """Cubic convolution that looks at the present and the two frames before (zeros before the first); same size out.

    Remembers its last two input frames.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=(0, 1, 1))

    def forward(self, x_BCTHW: Tensor, state: StreamState) -> Tensor:  # type: ignore[override]
        return super().forward(_with_two_past(self, x_BCTHW, state))


class CausalTimeConv3d(nn.Conv3d):
    """The same along time alone."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, (3, 1, 1))

    def forward(self, x_BCTHW: Tensor, state: StreamState) -> Tensor:  # type: ignore[override]
        return super().forward(_with_two_past(self, x_BCTHW, state))


def _with_two_past(layer: nn.Module, x_BCTHW: Tensor, state: StreamState) -> Tensor:
    past = state.get(layer)
    joined = _laid_out(F.pad(x_BCTHW, (0, 0, 0, 0, 2, 0)) if past is None else torch.cat([past, x_BCTHW], dim=2))
    state.keep(layer, joined[:, :, -2:])
    return joined


def _laid_out(x_BCTHW: Tensor) -> Tensor:
    """In half precision on a GPU a video lies channels-last, as cuDNN's kernels want it.

    Where neither video nor weights do, PyTorch from 2.9 on leaves cuDNN 9.8 to 9.14 aside and unfolds the video for a
    matrix product, in many times the memory (pytorch/pytorch#166643).
    """
    if x_BCTHW.is_cuda and x_BCTHW.element_size() == 2:
        return x_BCTHW.contiguous(memory_format=torch.channels_last_3d)
    return x_BCTHW


def _per_frame(layer: Callable[[Tensor], Tensor], x_BCTHW: Tensor) -> Tensor:
    """Apply a layer of single images to every frame."""
    batch = x_BCTHW.shape[0]
    x = layer(x_BCTHW.transpose(1, 2).flatten(0, 1))
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.residual = nn.ModuleList(
            [
                RMSNorm(channels_in, dims=3),
                nn.SiLU(),
                CausalConv3d(channels_in, channels_out),
                RMSNorm(channels_out, dims=3),
                nn.SiLU(),
                nn.Identity(),  # dropout in the original; it holds the place, so that keys keep their numbers
                CausalConv3d(channels_out, channels_out),
            ]
        )
        same = channels_in == channels_out
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv3d(channels_in, channels_out, 1)

    def forward(self, x_BCTHW: Tensor, state: StreamState) -> Tensor:
        return run(self.residual, x_BCTHW, state) + self.shortcut(x_BCTHW)


class AttentionBlock(nn.Module):
    """Self-attention with one head inside each frame; frames do not see each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, dims=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return x_BCTHW + _per_frame(self._attend, x_BCTHW)

    def _attend(self, x_NCHW: Tensor) -> Tensor:
        height, width = x_NCHW.shape[2:]
        qkv_NCL = self.to_qkv(self.norm(x_NCHW)).flatten(2)
        q, k, v = (part.transpose(1, 2).unsqueeze(1) for part in qkv_NCL.chunk(3, dim=1))
        out_NLC = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return self.proj(out_NLC.transpose(1, 2).unflatten(2, (height, width)))


class Downsample(nn.Module):
    """Halves height and width and, if `time`, the frame rate: frames 0 | 1 2 | 3 4 ... become one each.

    Remembers the last frame (after the halving of its size), which the next pair's convolution also sees.
    """

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if time else None

    def forward(self, x_BCTHW: Tensor, state: StreamState) -> Tensor:
        x_BCTHW = _per_frame(self.resample, x_BCTHW)
        if self.time_conv is None:
            return x_BCTHW
        past = state.get(self)
        state.keep(self, x_BCTHW[:, :, -1:])
        if past is not None:
            return self.time_conv(_laid_out(torch.cat([past, x_BCTHW], dim=2)))
        if x_BCTHW.shape[2] == 1:
            return x_BCTHW
        return torch.cat([x_BCTHW[:, :, :1], self.time_conv(_laid_out(x_BCTHW))], dim=2)


class Upsample(nn.Module):
    """Doubles height and width, halves the channels and, if `time`, doubles the frame rate of all but the first frame.

    The convolution that makes two frames out of one begins with the second frame and never sees the first.
    """

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(channels, channels // 2, 3, padding=1)
        )
        self.time_conv = CausalTimeConv3d(channels, 2 * channels) if time else None

    def forward(self, x_BCTHW: Tensor, state: StreamState) -> Tensor:
        if self.time_conv is not None:
            passed = int(state.first)
            first, rest = x_BCTHW[:, :, :passed], x_BCTHW[:, :, passed:]
            if rest.shape[2] > 0:
                # Channels of the output: all of the earlier frame's, then all of the later one's.
                pair = self.time_conv(rest, state).unflatten(1, (2, -1))
                rest = pair.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
            x_BCTHW = torch.cat([first, rest], dim=2)
        return _per_frame(self.resample, x_BCTHW)


def run(layers: nn.ModuleList, x_BCTHW: Tensor, state: StreamState) -> Tensor:
    """Apply layers in order, handing the state to those that remember."""
    for layer in layers:
        if isinstance(layer, (CausalConv3d, ResidualBlock, Downsample, Upsample)):
            x_BCTHW = layer(x_BCTHW, state)
        else:
            x_BCTHW = layer(x_BCTHW)
    return x_BCTHW
