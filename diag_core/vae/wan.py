"""WanVAE: the video autoencoder of Wan 2.1, with the keys of its checkpoints and any base width.

`encode` and `decode` go through a video in short pieces, as the original does, so that activations do not grow with its
length; a stream takes pieces as long as the caller likes, and runs each in parallel over its frames.

Shapes: B batch, T pixel frames, F latent frames (T = 4F - 3), H W pixels, h w latent sizes (an eighth).
Source: Wan-Video/Wan2.1 (statistics of the latents included).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from .interface import check_latents, check_pixels
from .streaming import Stream, StreamState
from .wan_layers import AttentionBlock, CausalConv3d, Downsample, ResidualBlock, RMSNorm, Upsample, run

LATENT_CHANNELS = 16
SPATIAL_STRIDE = 8
TIME_STRIDE = 4
LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
# Widths of the four levels, from the pixels inwards, in base widths; which of the three steps inwards halve the frame
# rate; residual blocks per level of the encoder (the decoder has one more).
_MULTIPLIERS = (1, 2, 4, 4)
_TIME_STEPS = (False, True, True)
_BLOCKS = 2
# Memory of decoding, in full-size pixel frames at the base width for each that comes out: four for what is computed,
# the rest for what is remembered, and to spare.
_DECODING = 6


@lru_cache
def latent_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [16,1,1,1], float32.

    Not buffers of the module: those would be rounded with it to bf16, and left behind on the meta device. Made once a
    device, as a copy from the host would stall a GPU at every chunk.
    """
    with torch.inference_mode(False):
        mean, std = torch.tensor([LATENT_MEAN, LATENT_STD], device=device).view(2, LATENT_CHANNELS, 1, 1, 1)
    return mean, std


def _free_bytes(device: torch.device) -> float:
    """What can still be allocated on a GPU, PyTorch's own reserves included; without end elsewhere."""
    if device.type != "cuda":
        return math.inf
    reserves = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserves


class Encoder(nn.Module):
    """Pixels [B,3,T,H,W] -> mean and log-variance before the last pointwise layer [B,32,F,h,w]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = [dim * multiplier for multiplier in _MULTIPLIERS]
        self.conv1 = CausalConv3d(3, widths[0])
        layers: list[nn.Module] = []
        width = widths[0]
        for level, next_width in enumerate(widths):
            for _ in range(_BLOCKS):
                layers.append(ResidualBlock(width, next_width))
                width = next_width
            if level < len(_TIME_STEPS):
                layers.append(Downsample(width, time=_TIME_STEPS[level]))
        self.downsamples = nn.ModuleList(layers)
        self.middle = _middle(width)
        self.head = _head(width, 2 * LATENT_CHANNELS)

    def forward(self, x_BCTHW: Tensor, state: StreamState) -> Tensor:
        x_BCTHW = run(self.downsamples, self.conv1(x_BCTHW, state), state)
        return run(self.head, run(self.middle, x_BCTHW, state), state)


class Decoder(nn.Module):
    """Latents [B,16,F,h,w] -> pixels [B,3,T,H,W]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = [dim * multiplier for multiplier in reversed(_MULTIPLIERS)]
        width = widths[0]
        self.conv1 = CausalConv3d(LATENT_CHANNELS, width)
        self.middle = _middle(width)
        layers: list[nn.Module] = []
        for level, next_width in enumerate(widths):
            for _ in range(_BLOCKS + 1):
                layers.append(ResidualBlock(width, next_width))
                width = next_width
            if level < len(_TIME_STEPS):
                layers.append(Upsample(width, time=_TIME_STEPS[-1 - level]))
                width //= 2
        self.upsamples = nn.ModuleList(layers)
        self.head = _head(width, 3)

    def forward(self, x_BCTHW: Tensor, state: StreamState) -> Tensor:
        x_BCTHW = run(self.middle, self.conv1(x_BCTHW, state), state)
        return run(self.head, run(self.upsamples, x_BCTHW, state), state)


def _middle(width: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(width, width), AttentionBlock(width), ResidualBlock(width, width)])


def _head(width: int, channels_out: int) -> nn.ModuleList:
    return nn.ModuleList([RMSNorm(width, dims=3), nn.SiLU(), CausalConv3d(width, channels_out)])


class WanVAE(nn.Module):
    """The Wan 2.1 VAE. `dim` is the base width: 96 in the published weights (127M parameters).

    Works in the dtype of its parameters (float32, bf16), takes and returns any floating dtype. Latent frame 0 stands
    for pixel frame 0 alone, latent frame i for pixel frames 4i-3..4i. Raises ValueError for a width below 1.
    """

    latent_channels = LATENT_CHANNELS
    spatial_stride = SPATIAL_STRIDE

    def __init__(self, dim: int = 96) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"the base width of a WanVAE must be at least 1, got {dim}")
        self.dim = dim
        self.encoder = Encoder(dim)
        self.conv1 = nn.Conv3d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)
        self.conv2 = nn.Conv3d(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.decoder = Decoder(dim)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B,3,4F-3,H,W] in -1..1 -> normalised latents [B,16,F,H/8,W/8], in the dtype of the pixels.

        The mean of the distribution, not a sample: (mean - LATENT_MEAN) / LATENT_STD. Raises ValueError for other
        shapes.
        """
        check_pixels(pixels, spatial_stride=SPATIAL_STRIDE, time_stride=TIME_STRIDE, first=True)
        batch, _, frames, height, width = pixels.shape
        shape = (batch, LATENT_CHANNELS, (frames + 3) // 4, height // SPATIAL_STRIDE, width // SPATIAL_STRIDE)
        latents = pixels.new_empty(shape)
        state = StreamState()
        for i in range(shape[2]):
            piece = pixels[:, :, max(0, 4 * i - 3) : 4 * i + 1]
            latents[:, :, i : i + 1] = self._encode(piece, state)
            state.first = False
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B,16,F,h,w] -> pixels [B,3,4F-3,8h,8w], nominally -1..1, not clamped, in their dtype.

        Raises ValueError for other shapes.
        """
        check_latents(latents, LATENT_CHANNELS)
        batch, _, frames, height, width = latents.shape
        pixels = latents.new_empty((batch, 3, 4 * frames - 3, SPATIAL_STRIDE * height, SPATIAL_STRIDE * width))
        state = StreamState()
        for i in range(frames):
            pixels[:, :, max(0, 4 * i - 3) : 4 * i + 1] = self._decode(latents[:, :, i : i + 1], state)
            state.first = False
        return pixels

    def streaming_decoder(self) -> Stream:
        """Its memory grows with the frames of one push, not with the video: at 832x480 in bfloat16 up to 5.7 GB for
        three latent frames, 3.3 GB for one. A push for which a GPU has no room goes one latent frame at a time.
        """
        return Stream(self._decode_what_fits)

    def streaming_encoder(self) -> Stream:
        return Stream(self._encode)

    def _encode(self, pixels: Tensor, state: StreamState) -> Tensor:
        check_pixels(pixels, spatial_stride=SPATIAL_STRIDE, time_stride=TIME_STRIDE, first=state.first)
        mean, std = latent_statistics(pixels.device)
        moments = self.conv1(self.encoder(pixels.to(self._dtype), state))
        return ((moments[:, :LATENT_CHANNELS].float() - mean) / std).to(pixels.dtype)

    def _decode_what_fits(self, latents: Tensor, state: StreamState) -> Tensor:
        places = latents.numel() // LATENT_CHANNELS
        pixels = TIME_STRIDE * SPATIAL_STRIDE**2 * places
        if _free_bytes(latents.device) >= _DECODING * self.dim * self._dtype.itemsize * pixels:
            return self._decode(latents, state)
        pieces = []
        for latent_frame in latents.split(1, dim=2):
            pieces.append(self._decode(latent_frame, state))
            state.first = False
        return torch.cat(pieces, dim=2)

    def _decode(self, latents: Tensor, state: StreamState) -> Tensor:
        check_latents(latents, LATENT_CHANNELS)
        mean, std = latent_statistics(latents.device)
        x_BCTHW = (latents.float() * std + mean).to(self._dtype)
        return self.decoder(self.conv2(x_BCTHW), state).to(latents.dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.conv2.weight.dtype
