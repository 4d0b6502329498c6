"""Diagonal Schedule."""

from __future__ import annotations

from comfy_api.latest import io

from ..diag_core.diagonal_schedule import DEFAULT_SHIFT
from .custom_types import SCHEDULE
from .schedule_parts import CUSTOM, PRESET_NAMES, schedule_of
from .staircase import draw_staircase


class DiagDistillSchedule(io.ComfyNode):
    """Step lists of every chunk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillSchedule",
            display_name="Diagonal Schedule",
            category="DiagDistill",
            description="How many steps each chunk of a video takes, and at which noise levels.",
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=list(PRESET_NAMES),
                    default="paper-4322222",
                    tooltip="A ready schedule, or 'custom' for the steps below. paper-4322222 is the paper's choice: 4 "
                    "steps for the first chunk, 3 for the second, 2 for all others.",
                ),
                io.String.Input(
                    "steps",
                    multiline=True,
                    default="4322222",
                    tooltip="Counts with preset 'custom'. Steps of each chunk: 4322222, or '4 3 2*5' (2*5: five "
                    "chunks of 2), or noise levels: '1000,750,100 | 1000,100'. The last one goes on for longer "
                    "videos. 12 means 1 step, then 2; write '12*1' for twelve.",
                ),
                io.String.Input(
                    "cycle",
                    default="",
                    tooltip="Steps that repeat for ever after those above, such as '3 2*6': a fresh start now and "
                    "then in a long video. Empty: the last chunk's steps go on.",
                ),
                io.String.Input(
                    "after_switch",
                    default="",
                    tooltip="Steps of the first chunks from a prompt switch on, such as '4 3': more of them let a new "
                    "prompt settle. Empty: as without a switch.",
                ),
                io.Float.Input(
                    "shift",
                    default=DEFAULT_SHIFT,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    tooltip="Moves all steps towards high noise. Distilled Wan models want 5.",
                ),
                io.Int.Input(
                    "chunks",
                    default=7,
                    min=1,
                    max=10_000,
                    tooltip="How many chunks are drawn and counted; 7 are 5 seconds. The schedule itself has no end.",
                ),
            ],
            outputs=[
                SCHEDULE.Output("schedule", display_name="schedule", tooltip="For the Diagonal Sampler."),
                io.Int.Output("forwards", display_name="forwards", tooltip="Denoising forwards of that many chunks."),
                io.Image.Output(
                    "picture",
                    display_name="picture",
                    tooltip="The staircase: chunks across, noise down, true timesteps on the marks.",
                ),
                io.String.Output(
                    "text", display_name="text", tooltip="The schedule in the usual notation, as it was understood."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        preset: str | None = None,
        steps: str | None = None,
        cycle: str | None = None,
        after_switch: str | None = None,
        shift: float | None = None,
    ) -> bool | str:
        try:  # what another node brings is None here
            schedule_of(preset or CUSTOM, steps or "1", cycle or "", after_switch or "", shift or DEFAULT_SHIFT)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, preset: str, steps: str, cycle: str, after_switch: str, shift: float, chunks: int
    ) -> io.NodeOutput:
        schedule = schedule_of(preset, steps, cycle, after_switch, shift)
        return io.NodeOutput(schedule, schedule.forwards(chunks), draw_staircase(schedule, chunks), schedule.text())


NODES = [DiagDistillSchedule]
