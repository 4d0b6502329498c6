"""Tiny VAE Loader and Streaming Decode."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
from comfy_api.latest import io

from . import comfy_bridge
from .demo_files import DEMO_NAME, vae_path
from .files import chosen_file, file_fault, file_mark
from .pixels import decode_in_pieces
from .tiny_vae import TinyVideoVAE, load_tiny_vae


def _names() -> list[str]:
    """vae_approx holds tiny autoencoders only; vae is searched for files whose names say so."""
    inside_vae = [name for name in folder_paths.get_filename_list("vae") if "tae" in Path(name).name.lower()]
    return [DEMO_NAME, *dict.fromkeys([*folder_paths.get_filename_list("vae_approx"), *inside_vae])]


def _path(name: str) -> Path:
    return vae_path() if name == DEMO_NAME else chosen_file(("vae_approx", "vae"), name)


class DiagDistillTinyVAELoader(io.ComfyNode):
    """A tiny autoencoder as a VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillTinyVAELoader",
            display_name="Tiny VAE Loader",
            category="DiagDistill",
            description="A small, fast autoencoder for Wan 2.1 latents (TAEHV, taew2_1), or the demo's own.",
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=_names(),
                    tooltip="taew2_1.pth or .safetensors from models/vae_approx (or models/vae): decodes with 26 "
                    "times fewer operations than the full VAE, a little softer. The demo's is part of the pack and "
                    "fits the demo's model only.",
                )
            ],
            outputs=[
                io.Vae.Output(
                    "vae",
                    display_name="vae",
                    tooltip="For Streaming Decode, Start Image Latent and ComfyUI's own VAE nodes.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, vae_name: str | None = None) -> bool | str:
        return file_fault("vae_name", vae_name, _names())

    @classmethod
    def fingerprint_inputs(cls, vae_name: str) -> Any:
        return file_mark(_path(vae_name))

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return io.NodeOutput(TinyVideoVAE(load_tiny_vae(_path(vae_name))))


class DiagDistillStreamingDecode(io.ComfyNode):
    """LATENT to pictures, piece by piece with the state of a stream."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillStreamingDecode",
            display_name="Streaming Decode",
            category="DiagDistill",
            description="Decodes a video latent piece by piece: the same pictures as VAE Decode, in constant VRAM.",
            inputs=[
                io.Latent.Input("samples", tooltip="A Wan video latent of any length."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE from Load VAE, or one from Tiny VAE Loader."),
                io.Int.Input(
                    "chunk_frames",
                    default=3,
                    min=1,
                    max=64,
                    tooltip="Latent frames decoded at once. Fewer take less VRAM, more are a little faster. The "
                    "pictures are the same.",
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="All pictures of the video; 16 a second.")
            ],
        )

    @classmethod
    def execute(cls, samples: dict[str, Any], vae: Any, chunk_frames: int) -> io.NodeOutput:
        latents = comfy_bridge.normalise(comfy_bridge.check_latent(samples))
        progress = comfy.utils.ProgressBar(math.ceil(latents.shape[2] / chunk_frames))
        done = itertools.count()

        def before_piece() -> None:
            comfy_bridge.check_interrupted()
            progress.update_absolute(next(done))

        if isinstance(vae, TinyVideoVAE):
            images = vae.decode_normalised(latents, chunk_frames, before_piece)
        else:
            network = comfy_bridge.wan_vae_of(vae, tuple(latents[:, :, :chunk_frames].shape))
            reference = next(iter(network.parameters()))  # type: ignore[attr-defined]
            images = decode_in_pieces(
                network, latents, chunk_frames, device=reference.device, dtype=reference.dtype,
                output_device=comfy_bridge.intermediate_device(), before_piece=before_piece,
            )  # fmt: skip
        progress.update_absolute(next(done))
        return io.NodeOutput(images.flatten(0, 1))  # samples one after the other, as VAE Decode does


NODES = [DiagDistillTinyVAELoader, DiagDistillStreamingDecode]
