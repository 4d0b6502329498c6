"""Prompts that arrive while a video is being made: each takes effect with the next chunk.

`LivePrompts` is the box that any thread may put a prompt into; the thread that samples empties it between two chunks.
What it does to the video is an ordinary prompt switch (see timeline.py), so the same seed and the same switches at the
same latent frames, given as a timeline, make the same video.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .chunk_loop import Chunk
from .state import SamplerState
from .timeline import Conditioning, Timeline
from .timeline_text import TimelineEntry

MAX_PROMPT = 10_000  # characters
MAX_PREPARED = 32  # contexts kept; one of umT5 is 4 MB
_MOST_LAYERS = 16


class LiveTimeline(Timeline):
    """A timeline that grows at its end. Memory does not grow with it: what no later chunk can see is dropped."""

    _dropped = 0
    """entries left out so far: what keeps the keys of different contexts different"""

    def _set(self, entries: Iterable[tuple[int, Tensor]], dropped: int) -> None:
        object.__setattr__(self, "entries", tuple(entries))
        object.__setattr__(self, "_dropped", dropped)

    def at(self, start_frame: int, chunk_frames: int) -> Conditioning:
        now = super().at(start_frame, chunk_frames)
        return dataclasses.replace(now, key=tuple((index + self._dropped, weight) for index, weight in now.key))

    def switch(self, start_frame: int, context: Tensor, chunk_frames: int, *, forget: bool = True) -> None:
        """`context` [B,L,D] from absolute latent frame `start_frame` on, where the next chunk starts.

        Whatever was planned from there on is gone, and unless `forget` is false, what shows no more.

        Raises ValueError for a context that does not fit the others.
        """
        if start_frame == 0:
            self._set(Timeline([(0, context)], self.blend_chunks).entries, self._dropped + len(self.entries))
            return
        earlier, dropped = [entry for entry in self.entries if entry[0] < start_frame], 0
        shown = super().at(max(0, start_frame - chunk_frames), chunk_frames)
        # What a finished blend has replaced shows no more. Where blends never finish, a switch a chunk, what they add
        # up to takes their place.
        if forget and (len(shown.key) == 1 or len(shown.key) > _MOST_LAYERS):
            earlier, dropped = [(0, shown.context)], len(self.entries)
        grown = Timeline([*earlier, (start_frame, context)], self.blend_chunks)
        self._set(grown.entries, self._dropped + dropped)


@dataclass(frozen=True)
class Switch:
    """A prompt that has taken effect."""

    start_latent_frame: int
    """of the first chunk that shows it"""
    prompt: str
    waited: float
    """seconds from its arrival to that chunk's first step, encoding included"""

    def entry(self) -> TimelineEntry:
        """As an entry of a timeline text, which replays it."""
        return TimelineEntry(self.start_latent_frame, self.prompt, f"{self.start_latent_frame}lf")


class LivePrompts:
    """Takes prompts from any thread and gives them to the sampler between chunks.

    Args:
        encode: prompt -> context [B,L,D], on the model's device. Called in the thread that samples.
        prepared: prompts encoded before the video begins (`prepare`), which then take effect without delay; they can
            be asked for by their number, from 1.
        keep_past: timelines keep all prompts that were shown, to record the video by; memory then grows with them.
        on_switch: called when a prompt has taken effect; on_error: when one could not be encoded. The video goes on
            with the prompt before it.
    """

    def __init__(
        self,
        encode: Callable[[str], Tensor],
        *,
        prepared: Iterable[str] = (),
        keep_past: bool = False,
        on_switch: Callable[[Switch], None] = lambda _: None,
        on_error: Callable[[str, Exception], None] = lambda prompt, error: None,
    ) -> None:
        self.encode, self.on_switch, self.on_error = encode, on_switch, on_error
        self.slots, self.keep_past = tuple(prepared), keep_past
        if len(self.slots) > MAX_PREPARED:
            raise ValueError(f"{len(self.slots)} prompts to encode beforehand; at most {MAX_PREPARED}")
        self.log: list[Switch] = []
        """what has taken effect, in order: with the seed, it replays the video"""
        self._contexts: OrderedDict[str, Tensor] = OrderedDict()
        self._pending: tuple[str, float] | None = None
        self._lock = threading.Lock()

    def say(self, prompt: str) -> str:
        """Asks for `prompt` (or a slot, by its number) from the next chunk on; of several before that, the last counts.

        Returns the prompt as it will be shown. Raises ValueError for an empty or overlong one, and for what is no text.
        """
        prompt = prompt.strip()
        if prompt.isdecimal() and 1 <= int(prompt[:9]) <= len(self.slots):
            prompt = self.slots[int(prompt) - 1]
        if not prompt:
            raise ValueError("the prompt is empty; write what the video shows from here on")
        if len(prompt) > MAX_PROMPT:
            raise ValueError(f"the prompt has {len(prompt)} characters; at most {MAX_PROMPT}")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the prompt cannot be read: {error.reason} at character {error.start + 1}") from error
        with self._lock:
            self._pending = (prompt, time.monotonic())
        return prompt

    def prepare(self) -> None:
        """Encodes the slots. An error is the caller's: nothing has begun yet."""
        for prompt in self.slots:
            self._context(prompt)

    def apply(self, timelines: Sequence[LiveTimeline], start_frame: int, chunk_frames: int) -> Switch | None:
        """Between chunks: lets the prompt that waits, if any, take effect at `start_frame`, the next chunk's.

        `timelines` all show it: one, or those of conditions that are combined.
        """
        with self._lock:
            pending, self._pending = self._pending, None
        if pending is None:
            return None
        prompt, arrived = pending
        try:
            context = self._context(prompt)
            for timeline in timelines:
                timeline.switch(start_frame, context, chunk_frames, forget=not self.keep_past)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError, OSError) as error:
            self.on_error(prompt, error)
            return None
        switch = Switch(start_frame, prompt, time.monotonic() - arrived)
        self.log.append(switch)
        self.on_switch(switch)
        return switch

    def _context(self, prompt: str) -> Tensor:
        """Encoded once; the newest few are kept, and the slots always."""
        context = self._contexts.pop(prompt, None)
        if context is None:
            context = self.encode(prompt)
        self._contexts[prompt] = context
        for old in [p for p in self._contexts if p not in self.slots][: max(0, len(self._contexts) - MAX_PREPARED)]:
            del self._contexts[old]
        return context


def follow(
    chunks: Iterator[Chunk],
    live: LivePrompts,
    timelines: Sequence[LiveTimeline],
    state: SamplerState,
    chunk_frames: int,
) -> Iterator[Chunk]:
    """The chunks of `stream_chunks(model, timeline, ..., state=state)`, letting prompts take effect between them."""
    while True:
        live.apply(timelines, state.frame, chunk_frames)
        try:
            chunk = next(chunks)
        except StopIteration:
            return
        yield chunk
