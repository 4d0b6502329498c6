"""Diagonal Stream: sample, decode, show and write a video of any length, chunk by chunk."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.input_impl import VideoFromFile
from comfy_api.latest import io, ui

from ..diag_core import DiagonalSchedule
from ..diag_core.geometry import latent_size, pixel_frames
from . import comfy_bridge
from .comfy_sampler import Chunks, LiveInput, Streaming, sample_latent
from .files import first_fault
from .latents import length_inputs, size_inputs
from .length import latent_length, size_fault
from .live import slots_of
from .record import EXTEND_KEY, RECORD_KEY
from .sampler_inputs import (
    Checked,
    TakesPrompts,
    choice_of,
    clip_input,
    guidance_inputs,
    preset_inputs,
    seed_input,
    settings_inputs,
)
from .video_file import NewFile, PromptKeeper, as_timeline, tags, write_video

_CHANNELS = 16
_PIXELS = 8  # to a latent, along height and width


class DiagDistillStream(Checked, TakesPrompts, io.ComfyNode):
    """One node from prompt to file, for videos longer than memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillStream",
            display_name="Diagonal Stream",
            category="DiagDistill",
            description="Samples, decodes and writes a video chunk by chunk, and shows it meanwhile. Memory does not "
            "grow with its length.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="A Wan 2.1 text-to-video model, distilled for chunk-by-chunk sampling."
                ),
                io.Conditioning.Input("positive", tooltip="The prompt, or a Prompt Timeline."),
                io.Vae.Input(
                    "vae", tooltip="The Wan 2.1 VAE from Load VAE, or one from Tiny VAE Loader, which is much faster."
                ),
                *size_inputs(),
                *length_inputs(chunks=False),
                seed_input(),
                io.String.Input(
                    "filename_prefix",
                    default="video/diagonal",
                    tooltip="The file, in ComfyUI's output folder; a number and .mp4 are added. It grows as the video "
                    "is made: stopped or killed, name.part.mp4 plays up to the last chunk.",
                ),
                *preset_inputs(),
                *settings_inputs(),
                *guidance_inputs(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Size, length and beginning of the video instead of the fields above: from Start Image "
                    "Latent or Extend Video (which also takes what Load Video State loads).",
                ),
                clip_input(),
                io.String.Input(
                    "live_prompts",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Prompts for the live box, one a line, 32 at most, encoded before the video begins so that "
                    "they take effect at once. Their buttons appear while it is sampled. Needs a CLIP.",
                ),
            ],
            outputs=[
                io.Video.Output("video", display_name="video", tooltip="The file, for any node that takes a video."),
                io.String.Output(
                    "prompts",
                    display_name="prompts",
                    tooltip="The live prompts as they took effect, a time and a prompt a line. As the text of a Prompt "
                    "Timeline that begins with the first prompt, they make the video again. Empty where none came. "
                    "They are also in name.timeline.txt beside the file, after a stop too.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        width: int | None = None,
        height: int | None = None,
        length: float | None = None,
        unit: str | None = None,
        preset: str | None = None,
        schedule_text: str | None = None,
        shift: float | None = None,
        kv_noise: float | None = None,
        reuse_last_step: bool | None = None,
        window: int | None = None,
        sink: int | None = None,
        positions: str | None = None,
        chunk_frames: int | None = None,
        step: str | None = None,
        cfg: float | None = None,
    ) -> bool | str:
        settings = super().validate_inputs(
            preset, schedule_text, shift, kv_noise, reuse_last_step, window, sink, positions, chunk_frames, step, cfg
        )
        return first_fault(size_fault(width, height, length, unit), settings)

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        vae: Any,
        width: int,
        height: int,
        length: float,
        unit: str,
        fps: float,
        seed: int,
        filename_prefix: str,
        preset: str,
        schedule_text: str,
        negative: Any = None,
        schedule: DiagonalSchedule | None = None,
        latent: dict[str, Any] | None = None,
        clip: Any = None,
        live_prompts: str = "",
        **settings: Any,
    ) -> io.NodeOutput:
        choice = choice_of(preset, schedule_text, schedule, settings)
        own = choice.resolve(comfy_bridge.settings_of(model))
        if latent is None:
            rows, columns = latent_size(height, width)
            frames = latent_length(length, unit, fps, own.chunk_frames)
            # The sampler is told the length apart: no tensor is as long as the video.
            latent = {"samples": torch.zeros(1, _CHANNELS, own.chunk_frames, rows, columns)}
        else:
            batch, _, frames, rows, columns = comfy_bridge.check_latent(latent).shape
            if batch > 1:
                raise ValueError(f"Diagonal Stream makes one video at a time; this LATENT is a batch of {batch}")
            if latent.get(RECORD_KEY) is not None and EXTEND_KEY not in latent:
                raise ValueError(
                    "this latent is a video that is finished: put Extend Video between it and Diagonal Stream to go on "
                    "with it, or disconnect it and give size and length in the fields"
                )
        size = (columns * _PIXELS, rows * _PIXELS)
        file = NewFile.named(filename_prefix, *size)
        model = comfy_bridge.loaded_with(model, vae)
        decoding = comfy_bridge.decode_bytes(vae, (1, _CHANNELS, own.chunk_frames, rows, columns))

        def consume(chunks: Chunks, show: Any) -> None:
            write_video(
                file, chunks, comfy_bridge.wan_vae_of(vae), show,
                fps=fps, size=size, pixel_frames=pixel_frames(frames),
                metadata={"seed": seed, "settings": own.to_dict()},
                tags=tags(cls.hidden.prompt, cls.hidden.extra_pnginfo),
            )  # fmt: skip

        live = None if clip is None else LiveInput(clip, slots_of(live_prompts), fps, PromptKeeper(file.prompts).add)
        try:
            _, job = sample_latent(
                model, positive, negative, latent, seed=seed, choice=choice, live=live,
                streaming=Streaming(frames, decoding, consume),
            )  # fmt: skip
        finally:
            comfy_bridge.unload_tiny(vae)
        saved = ui.SavedResult(file.path.name, file.subfolder, io.FolderType.output)
        return io.NodeOutput(
            VideoFromFile(str(file.path)),
            as_timeline(job.switches),
            ui={**ui.PreviewVideo([saved]).as_dict(), **job.told},
        )


NODES = [DiagDistillStream]
