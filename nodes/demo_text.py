"""Demo Prompt Encode: prompts for the embedded checkpoint, whose encoder has no weights."""

from __future__ import annotations

from comfy_api.latest import io

from .demo_clip import DemoClip
from .demo_files import text_encoder

_EXAMPLE = "a red 3 moves right slowly and bounces, on a navy ground"


class DiagDistillDemoPrompt(io.ComfyNode):
    """Text to CONDITIONING for the demo's model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillDemoPrompt",
            display_name="Demo Prompt Encode",
            category="DiagDistill",
            description="Encodes a prompt for the embedded demo (handwritten digits that move). No other model knows "
            "it.",
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default=_EXAMPLE,
                    tooltip="A digit (0 to 9), its colour (red, orange, yellow, green, cyan, blue, purple, white), "
                    "where it moves (right, left, up, down), slowly or fast, and how it goes on: stops, bounces or "
                    "turns (and where), or else it circles. A second digit after a semicolon. The ground at the end "
                    "(black, navy, maroon, forest). Other words mean nothing to it. Empty: the negative prompt.",
                )
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
                    tooltip="For the Diagonal Sampler with the demo's model.",
                ),
                io.Clip.Output(
                    "clip", display_name="clip", tooltip="The encoder itself, for Prompt Timeline or CLIP Text Encode."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, text: str | None = None) -> bool | str:
        try:
            text_encoder().encode([text or ""])
        except ValueError as error:
            return f"text: {error}"
        return True

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        clip = DemoClip()
        return io.NodeOutput(clip.encode_from_tokens_scheduled(clip.tokenize(text)), clip)


NODES = [DiagDistillDemoPrompt]
