"""One video as asked for: all that determines it, given the models. It travels in MP4 comments and saved states."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..config import CacheConfig, ContextPolicy, SwitchPolicy
from ..geometry import Span, chunk_spans, latent_frames, latent_size
from ..mp4_writer import MAX_FPS, check_video_size
from ..settings import CheckpointSettings
from ..timeline import Timeline
from ..timeline_text import TimelineEntry


@dataclass(frozen=True)
class Work:
    """Forwards of the model, each of both branches with guidance; those of prompt switches are not counted."""

    steps: int
    commits: int


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """A video to make. ValueError for values that do not fit each other."""

    entries: tuple[TimelineEntry, ...]
    """Prompts and where they begin."""
    settings: CheckpointSettings
    seed: int
    width: int
    height: int
    fps: float
    pixel_frames: int
    """Length of the video, 1, 5, 9, .."""
    given_frames: int = 0
    """latent frames that are there already: those of an image or a video"""
    blend_chunks: int = 0
    """Chunks over which the new prompt replaces the old one after a switch."""
    switch: SwitchPolicy = dataclasses.field(default_factory=SwitchPolicy)

    def __post_init__(self) -> None:
        if not 0 < self.fps <= MAX_FPS:
            raise ValueError(f"fps must be above 0 and at most {MAX_FPS}, got {self.fps:g}")
        latent_size(self.height, self.width)
        check_video_size(self.width, self.height)
        if not self.settings.causal and (len(self.entries) > 1 or self.given_frames):
            what = "a timeline with several prompts" if len(self.entries) > 1 else "an image or a video to start from"
            raise ValueError(
                f"this model makes the whole video at once and cannot take {what}; choose a causal checkpoint, or "
                "--preset diagdistill"
            )
        self.spans()

    @property
    def latent_frames(self) -> int:
        return latent_frames(self.pixel_frames)

    @property
    def chunk_frames(self) -> int:
        """Latent frames denoised together: for a bidirectional model, the whole video."""
        return self.settings.chunk_frames if self.settings.causal else self.latent_frames

    def spans(self) -> list[Span]:
        return chunk_spans(self.latent_frames, self.chunk_frames, self.given_frames)

    def cache(self) -> CacheConfig:
        return self.settings.cache() if self.settings.causal else CacheConfig(None, 0)

    def policy(self) -> ContextPolicy:
        return self.settings.policy() if self.settings.causal else ContextPolicy.last_step()

    def prompts(self) -> list[str]:
        """All that must be encoded, the negative prompt included where it is used."""
        return [entry.prompt for entry in self.entries] + ([self.settings.negative_prompt] if self.guided else [])

    @property
    def guided(self) -> bool:
        return self.settings.cfg != 1.0

    def work(self) -> Work:
        """What sampling will take."""
        schedule, policy = self.settings.diagonal_schedule(), self.policy()
        # Only the timeline's arithmetic is wanted here; the prompts need not be encoded.
        starts = [entry.start_latent_frame for entry in self.entries]
        timeline = Timeline([(start, torch.zeros(1, 1, 1)) for start in starts], self.blend_chunks)
        steps = commits = 0
        for chunk, start in self._sampled():
            sigmas = schedule.sigmas(chunk, timeline.at(start, self.chunk_frames).since_switch)
            steps += len(sigmas)
            commits += not policy.reuses(sigmas[-1])
        return Work(steps, commits + len(self.spans()) - sum(1 for _ in self._sampled()))

    def _sampled(self) -> Iterator[tuple[int, int]]:
        """(number of the chunk, its first latent frame)"""
        return enumerate(span.start for span in self.spans() if span.start >= self.given_frames)

    def prompt_text(self) -> str:
        """The prompt, or the timeline on one line."""
        if len(self.entries) == 1:
            return self.entries[0].prompt
        return "; ".join(f"{entry.label}: {entry.prompt}" for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = dataclasses.asdict(self)
        plain["entries"] = [list(dataclasses.astuple(entry)) for entry in self.entries]
        return plain

    @classmethod
    def from_dict(cls, values: Any) -> VideoRequest:
        """Raises ValueError for what `to_dict` did not write."""
        try:
            return cls(
                **{
                    **values,
                    "entries": tuple(TimelineEntry(*entry) for entry in values["entries"]),
                    "settings": CheckpointSettings.from_dict(values["settings"]),
                    "switch": SwitchPolicy(**values["switch"]),
                }
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"the description of a video cannot be read: {error}") from error
