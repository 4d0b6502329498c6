"""A video file that grows while its chunks are sampled.

Legend: T pixel frames, H and W pixels.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args

from ..diag_core.live import Switch
from ..diag_core.mp4_writer import Mp4Writer
from ..diag_core.pipeline import VideoPipeline
from ..diag_core.replacing import replacing
from ..diag_core.timeline_text import format_timeline, one_line
from ..diag_core.vae import VideoVAE
from .comfy_sampler import Chunks
from .preview import MAX_SIDE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewFile:
    """A name in ComfyUI's output folder that nothing bears yet."""

    path: Path
    subfolder: str

    @property
    def prompts(self) -> Path:
        """Where live prompts are kept."""
        return self.path.with_suffix(".timeline.txt")

    @classmethod
    def named(cls, prefix: str, width: int, height: int) -> NewFile:
        """Raises an exception of ComfyUI's for a prefix that leads out of the output folder."""
        output = folder_paths.get_output_directory()
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output, width, height)
        # Unfinished videos count too: none is overwritten.
        ends = (".mp4", ".part.mp4", ".timeline.txt")
        while any((path := Path(folder, f"{name}_{counter:05}_{end}")).exists() for end in ends):
            counter += 1
        return cls(path.with_name(f"{name}_{counter:05}_.mp4"), subfolder)


def as_timeline(switches: Sequence[Switch]) -> str:
    """A time and a prompt a line: the text of a Prompt Timeline, but for the prompt that the video began with."""
    return format_timeline([one_line(switch.entry()) for switch in switches])


class PromptKeeper:
    """Keeps the live prompts in a text file beside the video, so that they outlive a run that is stopped or killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._switches: list[Switch] = []

    def add(self, switch: Switch) -> None:
        self._switches.append(switch)
        try:
            with replacing(self.path) as file:
                file.write(f"{as_timeline(self._switches)}\n".encode())
        except OSError as error:  # such as a file that another program has locked; the next switch tries again
            log.warning("Diagonal Stream: the live prompts cannot be kept in %s: %s", self.path, error)


def tags(prompt: Any, extra: dict[str, Any] | None) -> dict[str, str]:
    """What ComfyUI reads a workflow from when the file is dropped on it; nothing where the user has said so."""
    if args.disable_metadata:
        return {}
    named = {**(extra or {}), **({} if prompt is None else {"prompt": prompt})}
    return {name: json.dumps(value) for name, value in named.items()}


def write_video(
    file: NewFile,
    chunks: Chunks,
    vae: VideoVAE,
    show: Callable[[Any], None],
    *,
    fps: float,
    size: tuple[int, int],
    pixel_frames: int,
    metadata: dict[str, Any],
    tags: dict[str, str],
) -> None:
    """Decodes the chunks and writes them as they come, while the next one is sampled.

    Args:
        vae: on the device where it decodes.
        show: takes what makes a JPEG preview, for each chunk; whether it is made is its own affair.
        size: width and height in pixels.
    """
    from PIL import Image

    reference = next(iter(vae.parameters()))  # type: ignore[attr-defined]
    pipeline = VideoPipeline(
        chunks, vae, pixel_frames=pixel_frames, place=lambda latents: latents.to(reference.device, reference.dtype)
    )
    known = {} if args.disable_metadata else metadata
    with (
        Mp4Writer(file.path, fps, *size, metadata=known, tags=tags) as writer,
        contextlib.closing(pipeline.frames()) as pieces,
    ):
        for frames in pieces:
            writer.write(frames.pixels)
            newest = frames.pixels[-1]
            show(lambda newest=newest: ("JPEG", Image.fromarray(newest.numpy()), MAX_SIDE))
