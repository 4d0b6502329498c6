"""Diagonal Sampler, and the same as a SAMPLER."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..diag_core import DiagonalSchedule
from ..diag_core.geometry import DEFAULT_FPS
from .comfy_sampler import LiveInput, make_sampler, sample_latent
from .sampler_inputs import (
    Checked,
    TakesPrompts,
    choice_of,
    clip_input,
    guidance_inputs,
    preset_inputs,
    schedule_input,
    seed_input,
    settings_inputs,
)


class DiagDistillSampler(Checked, TakesPrompts, io.ComfyNode):
    """Samples a video latent chunk by chunk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillSampler",
            display_name="Diagonal Sampler",
            category="DiagDistill",
            description="Samples a Wan video chunk by chunk: many steps for the first chunks, few for the later ones.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A Wan 2.1 text-to-video model, distilled for chunk-by-chunk sampling: from Diagonal Model "
                    "Loader (which knows the checkpoint's settings) or Load Diffusion Model, with any LoRA.",
                ),
                io.Conditioning.Input("positive", tooltip="The prompt, or a Prompt Timeline."),
                io.Latent.Input(
                    "latent",
                    tooltip="Size and length: Empty Diagonal Latent, Start Image Latent or Extend Video. A length "
                    "that is no whole number of chunks is sampled to the next one and trimmed. Where its noise mask "
                    "is 0, it is kept as it is.",
                ),
                seed_input(),
                *preset_inputs(),
                *settings_inputs(),
                *guidance_inputs(),
                clip_input(),
            ],
            outputs=[
                io.Latent.Output(
                    "sampled",
                    display_name="latent",
                    tooltip="The video, for Streaming Decode or VAE Decode, or for Extend Video to go on with.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        latent: Any,
        seed: int,
        preset: str,
        schedule_text: str,
        negative: Any = None,
        schedule: DiagonalSchedule | None = None,
        clip: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        choice = choice_of(preset, schedule_text, schedule, settings)
        live = None if clip is None else LiveInput(clip, (), DEFAULT_FPS)
        sampled, job = sample_latent(model, positive, negative, latent, seed=seed, choice=choice, live=live)
        return io.NodeOutput(sampled, ui=job.told)


class DiagDistillSamplerSelect(Checked, io.ComfyNode):
    """The same as a SAMPLER, for SamplerCustomAdvanced: seed, guidance and conditions come from there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillSamplerSelect",
            display_name="Diagonal Sampler Select",
            category="DiagDistill",
            description="Diagonal sampling as a SAMPLER, to be used with SamplerCustomAdvanced and its guiders.",
            inputs=[*preset_inputs(), *settings_inputs(), schedule_input()],
            outputs=[
                io.Sampler.Output("sampler", display_name="sampler", tooltip="For SamplerCustomAdvanced."),
                io.Sigmas.Output(
                    "sigmas",
                    display_name="sigmas",
                    tooltip="The first chunk's noise levels. SamplerCustomAdvanced asks for them; the sampler goes by "
                    "its schedule.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        preset: str,
        schedule_text: str,
        schedule: DiagonalSchedule | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        choice = choice_of(preset, schedule_text, schedule, settings)
        # Where the model's own settings count, they are not known yet; the sampler takes them, whatever is said here.
        first = choice.resolve(None).diagonal_schedule().sigmas(0)
        return io.NodeOutput(make_sampler(choice), torch.tensor([*first, 0.0]))


NODES = [DiagDistillSampler, DiagDistillSamplerSelect]
