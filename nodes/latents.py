"""Latents to sample into: empty ones, ones that begin with given pictures, and longer ones.

Legend: B batch, F latent frames, T pixel frames, H and W pixels, h and w latent rows and columns.
"""

from __future__ import annotations

import logging
from typing import Any

import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..diag_core.geometry import DEFAULT_FPS, latent_size, pixel_frames, usable_pixel_frames
from . import comfy_bridge
from .files import choice_fault, first_fault
from .length import MAX_SIZE, UNITS, latent_length, size_fault
from .record import EXTEND_KEY, RECORD_KEY

log = logging.getLogger(__name__)

_CHANNELS = 16
_SINGLE, _FILL = "single latent frame", "repeat to fill a chunk"


def size_inputs() -> list[Any]:
    return [
        io.Int.Input(
            "width", default=832, min=16, max=MAX_SIZE, step=16,
            tooltip="Pixels, a multiple of 16. Wan 1.3B knows 832x480; the demo 64x64.",
        ),
        io.Int.Input("height", default=480, min=16, max=MAX_SIZE, step=16, tooltip="Pixels, a multiple of 16."),
    ]  # fmt: skip


_HOW_LONG = (
    "In the unit below. 5 seconds are 81 pixel frames, 21 latent frames or 7 chunks. A length that is no whole number "
    "of chunks is sampled to the next one and trimmed."
)
_HOW_MUCH_LONGER = "What is added, in the unit below. 3 seconds are 48 pixel frames, 12 latent frames or 4 chunks."


def length_inputs(tooltip: str = _HOW_LONG, *, chunks: bool = True) -> list[Any]:
    """`chunks` is false for a node that knows the size of a chunk otherwise."""
    inputs = [
        io.Float.Input(
            "length",
            default=5.0,
            min=0.0,
            max=1_000_000.0,
            step=0.25,
            tooltip=tooltip,
        ),
        io.Combo.Input("unit", options=list(UNITS), default="seconds", tooltip="What the length counts."),
        io.Float.Input(
            "fps", default=DEFAULT_FPS, min=1.0, max=120.0, step=1.0,
            tooltip="Pixel frames a second, for a length in seconds. Wan videos have 16.",
        ),
        io.Int.Input(
            "chunk_frames", default=3, min=1, max=64,
            tooltip="Latent frames of a chunk, as in the sampler; for lengths in chunks.",
        ),
    ]  # fmt: skip
    return inputs if chunks else inputs[:-1]


def _batch() -> Any:
    return io.Int.Input(
        "batch_size", default=1, min=1, max=64, tooltip="Videos at once; each takes a seed one higher than the last."
    )


class DiagDistillEmptyLatent(io.ComfyNode):
    """Size and length of a video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillEmptyLatent",
            display_name="Empty Diagonal Latent",
            category="DiagDistill",
            description="Size and length of a video to be sampled.",
            inputs=[*size_inputs(), *length_inputs(), _batch()],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="For the Diagonal Sampler."),
                io.Int.Output(
                    "pixel_frames", display_name="pixel_frames", tooltip="How many pictures the video will have."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, width: int | None = None, height: int | None = None, length: float | None = None, unit: str | None = None
    ) -> bool | str:
        return size_fault(width, height, length, unit)

    @classmethod
    def execute(
        cls,
        width: int,
        height: int,
        length: float,
        unit: str,
        fps: float,
        chunk_frames: int,
        batch_size: int,
    ) -> io.NodeOutput:
        frames, (rows, columns) = latent_length(length, unit, fps, chunk_frames), latent_size(height, width)
        samples = torch.zeros(batch_size, _CHANNELS, frames, rows, columns, device=comfy_bridge.intermediate_device())
        return io.NodeOutput({"samples": samples}, pixel_frames(frames))


class DiagDistillStartLatent(io.ComfyNode):
    """A latent whose first latent frames are given."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillStartLatent",
            display_name="Start Image Latent",
            category="DiagDistill",
            description="Begins a video with a picture, or goes on from a clip.",
            inputs=[
                io.Vae.Input("vae", tooltip="Encodes the pictures: the Wan 2.1 VAE, or one from Tiny VAE Loader."),
                io.Image.Input(
                    "image",
                    tooltip="One picture, or the pictures of a clip in order. Scaled and cropped to the size below.",
                ),
                *size_inputs(),
                *length_inputs(),
                io.Combo.Input(
                    "fill",
                    options=[_SINGLE, _FILL],
                    default=_FILL,
                    tooltip="One picture makes one latent frame. Models sample whole chunks: repeated to fill one, the "
                    "picture stands still for the first 9 pixel frames and the video fits what the model was trained "
                    "on. For clips this does not matter.",
                ),
                _batch(),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="For the Diagonal Sampler: the given frames first, then empty ones.",
                ),
                io.Int.Output(
                    "pixel_frames",
                    display_name="pixel_frames",
                    tooltip="How many pictures the video will have, given ones included.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        width: int | None = None,
        height: int | None = None,
        length: float | None = None,
        unit: str | None = None,
        fill: str | None = None,
    ) -> bool | str:
        return first_fault(size_fault(width, height, length, unit), choice_fault("fill", fill, (_SINGLE, _FILL)))

    @classmethod
    def execute(
        cls,
        vae: Any,
        image: Tensor,
        width: int,
        height: int,
        length: float,
        unit: str,
        fps: float,
        chunk_frames: int,
        fill: str,
        batch_size: int,
    ) -> io.NodeOutput:
        frames = latent_length(length, unit, fps, chunk_frames)
        pictures = comfy.utils.common_upscale(image[..., :3].movedim(-1, 1), width, height, "bicubic", "center")
        pictures = pictures.movedim(1, -1).clamp(0, 1)
        used = usable_pixel_frames(len(pictures), chunk_frames)
        if used < len(pictures):
            log.info(
                "Start Image Latent: the last %d of %d pictures are used; that many fill whole chunks of %d latent "
                "frames",
                used, len(pictures), chunk_frames,
            )  # fmt: skip
        pictures = pictures[-used:]
        if used == 1 and fill == _FILL:
            pictures = pictures.expand(pixel_frames(chunk_frames), -1, -1, -1)
        given = vae.encode(pictures)
        if given.ndim != 5 or given.shape[1] != _CHANNELS:
            raise ValueError(
                f"this VAE makes latents {list(given.shape)}, and a Wan 2.1 video's are [batch, 16, latent frames, "
                "rows, columns]: connect the Wan 2.1 VAE (Load VAE), or one from Tiny VAE Loader"
            )
        if given.shape[2] >= frames:
            raise ValueError(
                f"the pictures fill {given.shape[2]} latent frames, and the length is {frames}: give a greater length "
                "(it counts the given pictures too) or fewer pictures"
            )
        samples = torch.zeros(1, _CHANNELS, frames, *given.shape[3:], device=given.device)
        samples[:, :, : given.shape[2]] = given
        mask = torch.ones(1, 1, frames, *given.shape[3:], device=given.device)
        mask[:, :, : given.shape[2]] = 0
        latent = {"samples": samples.repeat(batch_size, 1, 1, 1, 1), "noise_mask": mask.repeat(batch_size, 1, 1, 1, 1)}
        return io.NodeOutput(latent, pixel_frames(frames))


class DiagDistillExtend(io.ComfyNode):
    """A sampled latent made longer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillExtend",
            display_name="Extend Video",
            category="DiagDistill",
            description="Makes a sampled latent longer. Sampled again, the video goes on where it stopped: with the "
            "same seed and settings it is the video of one longer run.",
            inputs=[
                io.Latent.Input("latent", tooltip="From the Diagonal Sampler, unchanged."),
                *length_inputs(_HOW_MUCH_LONGER, chunks=False),
            ],
            outputs=[
                io.Latent.Output(
                    "extended",
                    display_name="latent",
                    tooltip="For another Diagonal Sampler. What is there stays as it is, at the cost of one forward a "
                    "chunk; another prompt takes over where the video goes on.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, length: float | None = None, unit: str | None = None) -> bool | str:
        return size_fault(None, None, length, unit)

    @classmethod
    def execute(cls, latent: dict[str, Any], length: float, unit: str, fps: float) -> io.NodeOutput:
        samples, record = comfy_bridge.check_latent(latent), latent.get(RECORD_KEY)
        if record is None:
            raise ValueError(
                "this LATENT does not say how it was sampled: connect the Diagonal Sampler's output directly (saving, "
                "or a model that makes the whole video at once, leaves nothing to go on from). To go on from other "
                "pictures, use Start Image Latent"
            )
        record.check(comfy_bridge.normalise(samples), record.chunk_frames)
        more = latent_length(length, unit, fps, record.chunk_frames, more=True)
        batch, channels, frames, rows, columns = samples.shape
        kept = {key: value for key, value in latent.items() if key != RECORD_KEY}
        longer = torch.cat((samples, samples.new_zeros(batch, channels, more, rows, columns)), dim=2)
        # Samplers that know nothing of the record keep by the mask what is there.
        mask = torch.ones(batch, 1, longer.shape[2], rows, columns, device=samples.device)
        mask[:, :, :frames] = 0
        return io.NodeOutput({**kept, "samples": longer, "noise_mask": mask, EXTEND_KEY: record})


NODES = [DiagDistillEmptyLatent, DiagDistillStartLatent, DiagDistillExtend]
