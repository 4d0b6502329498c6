"""Which conditioning a chunk gets: prompt switches and blends as a pure lookup over absolute latent frames.

A chunk at latent frame f sees the last entry that starts at or before f; a switch is thus taken by the first chunk
that starts at or after it, and of two switches inside one chunk the later wins. A blend of n chunks moves from the
context before the switch to the new one in n equal parts: 1/n at the chunk that takes the switch, n/n at the n-th.

    context   [B,L,D]   B samples, L text tokens, D = text_dim
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What one chunk is conditioned on."""

    key: tuple[tuple[int, float], ...]
    """Changes exactly when `context` does; compare only keys of the same timeline."""
    context: Tensor
    """[B,L,D]"""
    since_switch: int | None
    """Chunks since the last switch was taken (0 at the chunk that takes it), None before any."""
    recache: bool
    """The window's keys must be recomputed with this context before the chunk: at a switch, or where its blend ends."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """Contexts over time: ((start_latent_frame, context [B,L,D]), ...), ascending, the first at 0.

    Raises ValueError for entries that do not fit together; their batch size, width, dtype and device must agree, their
    lengths L need not. The same tensor object in two entries counts as the same context.
    """

    entries: Sequence[tuple[int, Tensor]]
    blend_chunks: int = 0
    """Chunks over which a switch blends; 0 and 1 both mean at once."""

    def __post_init__(self) -> None:
        if isinstance(self.blend_chunks, bool) or not isinstance(self.blend_chunks, int) or self.blend_chunks < 0:
            raise ValueError(f"blend_chunks must be a whole number from 0 on, got {self.blend_chunks!r}")
        object.__setattr__(self, "entries", _check_entries(self.entries))

    @property
    def batch_size(self) -> int:
        return self.entries[0][1].shape[0]

    @property
    def device(self) -> torch.device:
        return self.entries[0][1].device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Timeline:
        """The same timeline on another device or in another dtype; contexts that were one tensor stay one."""
        moved: dict[int, Tensor] = {}
        for _, context in self.entries:
            if id(context) not in moved:
                moved[id(context)] = context.to(device=device, dtype=dtype)
        return type(self)([(start, moved[id(context)]) for start, context in self.entries], self.blend_chunks)

    def require(
        self, *, batch_size: int | None = None, device: torch.device | None = None, text_dim: int | None = None
    ) -> None:
        """Raise ValueError where the contexts do not fit the model or the latents."""
        batch, _, width = self.entries[0][1].shape
        if batch_size is not None and batch != batch_size:
            raise ValueError(
                f"context has batch size {batch}, the latents have {batch_size}; repeat or trim the context"
            )
        if text_dim is not None and width != text_dim:
            raise ValueError(
                f"context is {width} wide, the model takes {text_dim}; encode with the model's text encoder"
            )
        if device is not None and (
            # "cuda" without an index means any of its devices
            device.type != self.device.type or device.index not in (None, self.device.index)
        ):
            raise ValueError(f"context is on {self.device}, the model on {device}; move it with .to('{device}')")

    def at(self, start_frame: int, chunk_frames: int) -> Conditioning:
        """Conditioning of the chunk that starts at absolute latent frame `start_frame`.

        Other chunks are taken to lie `chunk_frames` apart before and after it, which also holds after a single given
        image (starts 0, 1, 4, 7, ..) and in a continuation. Nothing is remembered between calls.
        """
        assert start_frame >= 0 and chunk_frames >= 1, (start_frame, chunk_frames)
        taken = self._taken(start_frame, chunk_frames)
        # Entries whose contexts are mixed at this chunk, each with its weight over those before it.
        layers: list[tuple[int, float]] = [(0, 1.0)]
        since_switch: int | None = None
        for number, (chunk_start, index) in enumerate(taken):
            last = taken[number + 1][0] - chunk_frames if number + 1 < len(taken) else start_frame
            since_switch = (last - chunk_start) // chunk_frames
            index = self._first_with_same_context(index)
            if since_switch + 1 >= self.blend_chunks or layers == [(index, 1.0)]:
                layers = [(index, 1.0)]
            else:
                layers.append((index, (since_switch + 1) / self.blend_chunks))
        recache = since_switch is not None and since_switch == max(self.blend_chunks, 1) - 1
        return Conditioning(tuple(layers), self._mix(layers), since_switch, recache)

    def _taken(self, start_frame: int, chunk_frames: int) -> list[tuple[int, int]]:
        """(start of the chunk that takes it, entry index) for every switch up to `start_frame`; one a chunk."""
        taken: dict[int, int] = {}
        for index, (switch_frame, _) in enumerate(self.entries):
            if index and switch_frame <= start_frame:
                taken[switch_frame + (start_frame - switch_frame) % chunk_frames] = index
        # A switch to the tensor already shown is none.
        shown, switches = 0, []
        for start, index in taken.items():
            if self.entries[index][1] is not self.entries[shown][1]:
                switches.append((start, index))
            shown = index
        return switches

    def _first_with_same_context(self, index: int) -> int:
        context = self.entries[index][1]
        return next(i for i, (_, other) in enumerate(self.entries) if other is context)

    def _mix(self, layers: list[tuple[int, float]]) -> Tensor:
        mixed = self.entries[layers[0][0]][1]
        if len(layers) == 1:
            return mixed
        dtype = mixed.dtype
        mixed = mixed.to(torch.promote_types(dtype, torch.float32))
        for index, weight in layers[1:]:
            context = self.entries[index][1].to(mixed.dtype)
            length = max(mixed.shape[1], context.shape[1])
            mixed = torch.lerp(_pad(mixed, length), _pad(context, length), weight)
        return mixed.to(dtype)


def as_timeline(context: Tensor | Timeline) -> Timeline:
    """A bare context [B,L,D] becomes a timeline that never switches; a timeline stays as it is."""
    if isinstance(context, Timeline):
        return context
    return Timeline([(0, context)])


def _pad(context: Tensor, length: int) -> Tensor:
    """Zeros past the last token: what a prompt encoder writes there too."""
    return F.pad(context, (0, 0, 0, length - context.shape[1]))


def _check_entries(entries: Sequence[tuple[int, Tensor]]) -> tuple[tuple[int, Tensor], ...]:
    checked = tuple((start, context) for start, context in entries)
    if not checked:
        raise ValueError("a timeline needs at least one entry: (0, context)")
    for number, (start, context) in enumerate(checked):
        where = f"timeline entry {number}"
        if isinstance(start, bool) or not isinstance(start, int):
            raise ValueError(f"{where}: the start is a latent frame, a whole number; got {start!r}")
        if not isinstance(context, Tensor):
            raise ValueError(f"{where}: the context must be a tensor [B,L,D], got {type(context).__name__}")
        if context.ndim != 3 or not context.is_floating_point() or 0 in context.shape:
            got = f"{context.dtype} {list(context.shape)}"
            raise ValueError(f"{where}: the context must be floating point [B,L,D] and not empty, got {got}")
        if number == 0 and start != 0:
            raise ValueError(f"{where}: the first entry must start at latent frame 0, got {start}; add an entry at 0")
        if number and start <= checked[number - 1][0]:
            before = checked[number - 1][0]
            raise ValueError(f"{where}: starts must ascend, but {start} follows {before}; sort them and drop doubles")
        first = checked[0][1]
        for what, mine, other in (
            ("batch size", context.shape[0], first.shape[0]),
            ("width", context.shape[2], first.shape[2]),
            ("dtype", context.dtype, first.dtype),
            ("device", context.device, first.device),
        ):
            if mine != other:
                raise ValueError(f"{where}: its {what} is {mine}, that of entry 0 is {other}; make them equal")
    return checked
