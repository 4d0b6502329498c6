"""Prompts over time as they travel in CONDITIONING, with times as written until the sampler knows the chunk size.

Legend: L text tokens, D text width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..diag_core import SwitchPolicy
from ..diag_core.timeline_text import TimelineError, latent_frame_of_time, parse_timeline

TIMELINE_KEY = "diagdistill_timeline"
_CHUNK_SIZES = range(1, 65)  # what the sampler's widget takes


@dataclass(frozen=True, eq=False)
class PromptTimeline:
    """One condition's prompts.

    Attributes:
        entries: (time such as "2.5s", "12f", "9lf" or "3c"; context [1,L,D]), the first at 0. The same tensor twice is
            the same prompt.
        fps: pixel frames a second, for times in seconds.
        blend_chunks: chunks over which a switch blends; 0 switches at once.
    """

    entries: tuple[tuple[str, Tensor], ...]
    fps: float
    blend_chunks: int
    switch: SwitchPolicy

    def of_text(self, context: Tensor) -> PromptTimeline:
        """Itself, for a condition with this text, which nodes behind Prompt Timeline may have changed.

        Raises:
            ValueError: they have, and there are several prompts, of which they know the first alone.
        """
        time, first = self.entries[0]
        if context is first or torch.equal(context.cpu(), first.cpu()):
            return self
        if len(self.entries) > 1:
            raise ValueError(
                "a node behind Prompt Timeline changed its text, and would change the first of several prompts alone. "
                "Encode and change every prompt by itself, and put them together with Prompt Timeline Join"
            )
        return replace(self, entries=((time, context),))

    def resolve(self, chunk_frames: int) -> list[tuple[int, Tensor]]:
        """(latent frame, context) of each entry.

        Raises:
            ValueError: times that do not ascend at this chunk size.
        """
        resolved: list[tuple[int, Tensor]] = []
        for time, context in self.entries:
            start = latent_frame_of_time(time, self.fps, chunk_frames)
            if resolved and start <= resolved[-1][0]:
                raise ValueError(
                    f"Prompt Timeline: the prompt at {time} begins at latent frame {start}, where or before which the "
                    "one before it begins; put them in order, a chunk apart"
                )
            resolved.append((start, context))
        return resolved


def read_prompts(text: str, fps: float) -> list[tuple[str, str]]:
    """(time as written, prompt) of each entry of a timeline text, before the chunk size is known.

    Raises:
        ValueError: a fault that no chunk size heals. Whether "2c" comes before "1s" is for `PromptTimeline.resolve`.
    """
    try:
        entries = parse_timeline(text, fps)
    except TimelineError:
        for chunk_frames in _CHUNK_SIZES:
            with contextlib.suppress(TimelineError):
                entries = parse_timeline(text, fps, chunk_frames)
                break
        else:
            raise
    return [(entry.label, entry.prompt) for entry in entries]


def join_conditions(
    timed: Sequence[tuple[str, list[Any]]], *, fps: float, blend_chunks: int, switch: SwitchPolicy
) -> list[Any]:
    """One CONDITIONING out of several over time: the first one's conditions, each with its prompts in time.

    Args:
        timed: (time, CONDITIONING), ascending, the first at 0. One may be a timeline itself: its times are those of the
            whole video, and of its prompts those count that lie in its own stretch.

    Raises:
        ValueError: a CONDITIONING with more conditions than the first, without text, or with other pictures a second.
    """
    first = timed[0][1]
    ends = [_order(time, fps) for time, _ in timed[1:]] + [float("inf")]
    joined = []
    for number, (context, own) in enumerate(first):
        entries: list[tuple[str, Tensor]] = []
        for (time, conditioning), end in zip(timed, ends, strict=True):
            if len(conditioning) > len(first):
                raise ValueError(
                    f"the conditioning at {time} has {len(conditioning)} parts (Conditioning Combine), the first has "
                    f"{len(first)}; give the first as many, or this one fewer"
                )
            entries += _stretch(time, end, conditioning[min(number, len(conditioning) - 1)], fps)
        joined.append([context, {**own, TIMELINE_KEY: PromptTimeline(tuple(entries), fps, blend_chunks, switch)}])
    return joined


def _stretch(time: str, end: float, condition: list[Any], fps: float) -> list[tuple[str, Tensor]]:
    """The prompts of one condition from `time` on, those that begin before `end`."""
    context, own = condition
    if context is None:
        raise ValueError(f"the conditioning at {time} holds no text; encode a prompt (an empty one will do)")
    timeline: PromptTimeline | None = own.get(TIMELINE_KEY)
    if timeline is None:
        return [(time, context)]
    timeline = timeline.of_text(context)
    if timeline.fps != fps:
        raise ValueError(
            f"the timeline at {time} counts {timeline.fps:g} pixel frames a second, this node {fps:g}; make them equal"
        )
    start = _order(time, fps)
    showing = [context for own_time, context in timeline.entries if _order(own_time, fps) <= start][-1]
    later = [(own_time, context) for own_time, context in timeline.entries if start < _order(own_time, fps) < end]
    return [(time, showing), *later]


def _order(time: str, fps: float) -> int:
    # Chunks cannot be compared with seconds before their size is known; 3 is what models are trained with.
    return latent_frame_of_time(time, fps)
