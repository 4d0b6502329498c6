"""Streaming for every causal network here: the state lives outside the network, in an object with push and reset.

A network that can stream is a function of (frames, StreamState). Its layers look up what they remember in the state
and replace it; the state's size does not depend on how many frames have passed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class StreamState:
    """What the layers of one network remember of the frames so far: at most one tensor a layer.

    kept: what they remember; given, it is that of a stream that has begun.
    first: no frame has passed yet. Layers read it, as a first frame is often a case of its own; whoever owns the
    state clears it after the first pass.
    """

    def __init__(self, kept: dict[nn.Module, Tensor] | None = None) -> None:
        self.first = kept is None
        self.kept = {} if kept is None else kept

    def get(self, layer: nn.Module) -> Tensor | None:
        return self.kept.get(layer)

    def keep(self, layer: nn.Module, frames: Tensor) -> None:
        """Remember a copy: a view would keep the whole tensor that it looks into alive."""
        self.kept[layer] = frames.clone()

    def numel(self) -> int:
        """Numbers held in all."""
        return sum(kept.numel() for kept in self.kept.values())


class Stream:
    """Feeds a video to a network piece by piece; the pieces joined equal what the network makes of the whole.

    As a decoder: push takes latents [B,C,f,h,w] and returns pixels [B,3,t,H,W]; as an encoder, the other way round.
    With s pixel frames to a latent frame (4 for Wan), t is s (f - 1) + 1 for the first push after a reset, s f for
    later ones. No gradient is kept. A push that dies half-way (out of memory, say) leaves a half-updated state: reset.
    """

    def __init__(self, run: Callable[[Tensor, StreamState], Tensor]) -> None:
        self.run = run
        self.reset()

    def reset(self) -> None:
        """Forget the past: the next push starts a new video, of any batch and size."""
        self.state = StreamState()
        self._shape: tuple[int, ...] | None = None

    @torch.no_grad()
    def push(self, frames: Tensor) -> Tensor:
        """The next frames of the video -> what they become.

        Raises ValueError for the shapes that `encode` or `decode` refuses, and when batch, channels, height or width
        are not those of the pushes since the last reset.
        """
        shape = (*frames.shape[:2], *frames.shape[3:])
        if self._shape is not None and shape != self._shape:
            raise ValueError(
                f"this stream began with [batch, channels, height, width] = {list(self._shape)}, got {list(shape)}; "
                "call reset() before another video"
            )
        out = self.run(frames, self.state)
        self.state.first = False
        self._shape = shape
        return out
