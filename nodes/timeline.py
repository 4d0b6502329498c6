"""Prompt Timeline and Prompt Timeline Join."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..diag_core import SwitchPolicy
from ..diag_core.geometry import DEFAULT_FPS
from ..diag_core.timeline_text import TimelineError, latent_frame_of_time
from .files import choice_fault
from .prompt_timeline import join_conditions, read_prompts

_RECACHE = ("chunks", "joint", "off")
_EXAMPLE = "0s: a corgi runs along a beach, sunny day\n2.5s: the corgi swims in the sea"


def _fps() -> Any:
    return io.Float.Input(
        "fps",
        default=DEFAULT_FPS,
        min=1.0,
        max=120.0,
        step=1.0,
        tooltip="Pixel frames a second, for times in seconds. Wan videos have 16.",
    )


def _switch() -> list[Any]:
    return [
        io.Int.Input(
            "blend_chunks",
            default=0,
            min=0,
            max=64,
            tooltip="0 switches at once. Otherwise each switch moves over to the new prompt in so many chunks (of "
            "about 0.75 s): softer and slower.",
        ),
        io.Combo.Input(
            "recache",
            options=list(_RECACHE),
            default="chunks",
            tooltip="What a switch does to the memory of earlier chunks. 'chunks' and 'joint' recompute it under the "
            "new prompt (one by one, or at once as LongLive does, whose model was trained that way); 'off' leaves it "
            "as it is. The demo's directions follow better for it.",
        ),
        io.Boolean.Input(
            "recache_sink",
            default=False,
            tooltip="Recompute the first chunk's memory too: a cleaner break with how the video began.",
        ),
    ]


class DiagDistillPromptTimeline(io.ComfyNode):
    """Text with times to CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillPromptTimeline",
            display_name="Prompt Timeline",
            category="DiagDistill",
            description="Prompts over time for the Diagonal Sampler. In a plain KSampler the first prompt counts.",
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder: Load CLIP with umT5 and type wan, or Demo Prompt Encode's for the demo.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    default=_EXAMPLE,
                    tooltip="One prompt a line, each after its time: 2.5s (seconds), 40f (pixel frames), 9lf (latent "
                    "frames) or 3c (chunks). The first is at 0s. A text without times is one prompt for all. A switch "
                    "is taken by the first chunk that begins at or after it.",
                ),
                _fps(),
                *_switch(),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
                    tooltip="For the Diagonal Sampler, or Prompt Timeline Join.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, text: str | None = None, fps: float | None = None, recache: str | None = None
    ) -> bool | str:
        try:
            if text is not None:  # None: it comes from another node
                read_prompts(text, DEFAULT_FPS if fps is None else fps)
        except ValueError as error:
            return f"text: {error}"
        return choice_fault("recache", recache, _RECACHE)

    @classmethod
    def execute(
        cls, clip: Any, text: str, fps: float, blend_chunks: int, recache: str, recache_sink: bool
    ) -> io.NodeOutput:
        prompts = read_prompts(text, fps)
        encoded = {
            prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
            for prompt in dict.fromkeys(prompt for _, prompt in prompts)
        }
        timed = [(time, encoded[prompt]) for time, prompt in prompts]
        switch = SwitchPolicy(recache, recache_sink)
        return io.NodeOutput(join_conditions(timed, fps=fps, blend_chunks=blend_chunks, switch=switch))


class DiagDistillTimelineJoin(io.ComfyNode):
    """Two CONDITIONINGs, one after the other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillTimelineJoin",
            display_name="Prompt Timeline Join",
            category="DiagDistill",
            description="Puts a hand-made conditioning (or a timeline) after another one. Chain it for more; "
            "the last one's blend and recache count for all switches.",
            inputs=[
                io.Conditioning.Input("before", tooltip="Counts from the beginning: any conditioning, or a timeline."),
                io.Conditioning.Input("after", tooltip="Counts from the time below on."),
                io.String.Input(
                    "at",
                    default="2.5s",
                    tooltip="When the second one begins: 2.5s (seconds), 40f (pixel frames), 9lf (latent frames) or 3c "
                    "(chunks).",
                ),
                _fps(),
                *_switch(),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", display_name="conditioning", tooltip="A timeline of both, for the Diagonal Sampler."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, at: str | None = None, fps: float | None = None, recache: str | None = None) -> bool | str:
        try:
            if at is not None and latent_frame_of_time(at, DEFAULT_FPS if fps is None else fps) < 1:
                return f"at: {at} is the beginning, where nothing would be left of 'before'; give a later time"
        except TimelineError as error:
            return f"at: {error.reason}"
        except ValueError as error:
            return f"at: {error}"
        return choice_fault("recache", recache, _RECACHE)

    @classmethod
    def execute(
        cls, before: Any, after: Any, at: str, fps: float, blend_chunks: int, recache: str, recache_sink: bool
    ) -> io.NodeOutput:
        switch = SwitchPolicy(recache, recache_sink)
        timed = [("0s", before), (at.strip(), after)]
        return io.NodeOutput(join_conditions(timed, fps=fps, blend_chunks=blend_chunks, switch=switch))


NODES = [DiagDistillPromptTimeline, DiagDistillTimelineJoin]
