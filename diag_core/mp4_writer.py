"""MP4 written as the frames come, by PyAV, which is imported when first used.

Shapes: T pixel frames, H W pixels. Pixels are float [1,3,T,H,W], nominally -1..1, or uint8 [T,H,W,3].
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from .mp4_file import Mp4File
from .mp4_fragment import FRAGMENTED, fragment_of
from .pictures import to_uint8
from .provenance import generated_xmp, xmp_box
from .replacing import replace_file, replacing
from .video_reader import import_av

MAX_FPS = 1000
_BT709 = 1  # FFmpeg's number for it as colour space, primaries and transfer
_LIMITED_RANGE = 1
_CRF = 17  # constant quality of x264; hard to tell from the original
_SECONDS_BETWEEN_KEYFRAMES = 2
# A fragment a frame, so that a killed process leaves a file that plays. Closing the file makes an ordinary MP4 of it,
# which can be sought in.
_MOVFLAGS = f"{FRAGMENTED}+hybrid_fragmented"


def part_path(path: str | os.PathLike[str]) -> Path:
    """Where `Mp4Writer` writes until the video is complete; a player opens it by its ending."""
    path = Path(path)
    return path.with_name(f"{path.stem}.part{path.suffix}")


class Mp4Writer:
    """Writes H.264 video frame by frame; used as a context manager.

    Frames go into `part_path(path)`, which replaces `path` only when the video is complete: nothing unfinished ever
    bears the final name. When the body raises, or the process is killed, the frames so far stay in the part, which
    plays.

    Args:
        path: ends in .mp4.
        fps: pixel frames a second.
        width, height: pixels, even (4:2:0 colour has half the size).
        metadata: JSON-able; stored as the container's comment, and its "title", if any, as the title.
        tags: more of the container's metadata, by names of the caller's, such as the "workflow" that ComfyUI looks for.
        mark_generated: put the mark of generated media (`generated_xmp`, with the title) into the header; True unless
            the frames come from elsewhere.

    Raises:
        ValueError: sizes or a rate that H.264 cannot have; PyAV missing, or without an H.264 encoder.
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float,
        width: int,
        height: int,
        *,
        metadata: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        mark_generated: bool = True,
    ) -> None:
        self.path, self.part = Path(path), part_path(path)
        self.width, self.height = width, height
        self.frames = 0
        """Pixel frames written so far."""
        if self.path.suffix.lower() != ".mp4":
            raise ValueError(f"{self.path}: give the video a name that ends in .mp4")
        check_video_size(width, height)
        if not 0 < fps <= MAX_FPS:
            raise ValueError(f"fps must be above 0 and at most {MAX_FPS}, got {fps}")
        self._av = import_av()
        metadata = dict(metadata or {})
        title = str(metadata["title"]) if "title" in metadata else None
        mark = xmp_box(generated_xmp(title=title)) if mark_generated else b""
        with self._naming():
            self._file = Mp4File(self.part, mark)
        self._container = self._av.open(
            self._file,
            "w",
            format="mp4",
            # Names of one's own need another kind of table, which fewer players read.
            options={"movflags": _MOVFLAGS + "+use_metadata_tags" * bool(tags), "flush_packets": "1"},
        )
        self._container.metadata.update(tags or {})
        try:
            self._stream = self._open_stream(fps, metadata)
        except BaseException:
            self._abandon()
            raise

    def _open_stream(self, fps: float, metadata: dict[str, Any]) -> Any:
        if "title" in metadata:
            self._container.metadata["title"] = str(metadata.pop("title"))
        self._container.metadata["comment"] = json.dumps(metadata, ensure_ascii=False)
        try:
            stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        except ValueError as error:
            raise ValueError(f"this PyAV has no H.264 encoder ({error}); install av from PyPI") from error
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
        # No look-ahead: every frame is encoded when it comes, not tens of frames later.
        stream.options = {"crf": str(_CRF), "preset": "veryfast", "tune": "zerolatency"}
        codec = stream.codec_context
        codec.gop_size = max(1, round(fps * _SECONDS_BETWEEN_KEYFRAMES))
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED_RANGE
        with self._naming():
            self._container.start_encoding()
        return stream

    def write(self, pixels: Tensor) -> None:
        """Append frames: float [1,3,T,H,W] in -1..1 (clamped), or uint8 [T,H,W,3], on any device.

        Afterwards they are all in the part: a process killed then leaves every one of them.

        Raises:
            ValueError: another shape or size. Nothing is written then.
            OSError: the file cannot be written.
        """
        frames = to_uint8(pixels)
        if frames.shape[1:3] != (self.height, self.width):
            raise ValueError(
                f"{self.path}: frames are {frames.shape[2]}x{frames.shape[1]}, the video is {self.width}x{self.height}"
            )
        packets: list[Any] = []
        for frame in frames.cpu().contiguous().numpy():
            picture = self._av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG"
            )
            picture.pts = self.frames
            with self._naming():
                packets = self._stream.encode(picture)
                self._container.mux(packets)
            self.frames += 1
        for packet in packets:  # the last frame's, which FFmpeg holds back until the next one comes
            with self._naming():
                self._file.show(fragment_of(self._av, packet, self._stream, self.frames))

    def close(self) -> None:
        """Complete the video and give it its name. ValueError when it has no frames."""
        if not self.frames:
            self._abandon()
            raise ValueError(f"{self.path}: the video has no frames")
        try:
            with self._naming():
                self._container.mux(self._stream.encode())
                self._container.close()
                self._file.finish()
        except BaseException:
            self._abandon()
            raise
        try:
            replace_file(self.part, self.path)
        except OSError as error:
            self._name_a_copy(error)

    def _name_a_copy(self, error: OSError) -> None:
        """What another program has open cannot be renamed on Windows, but read."""
        try:
            with open(self.part, "rb") as part, replacing(self.path) as file:
                shutil.copyfileobj(part, file, 1 << 20)
        except OSError:
            raise OSError(
                f"{self.path}: the whole video is in {self.part}, which could not be renamed ({error}). Close the "
                "program that has either of them open, and rename it"
            ) from error
        with contextlib.suppress(OSError):
            self.part.unlink()

    def _abandon(self) -> None:
        """Leave what is there as a part that plays, or nothing when there are no frames."""
        # What went wrong before matters more than what goes wrong here.
        with contextlib.suppress(self._av.error.FFmpegError, OSError):
            if self.frames:
                self._container.mux(self._stream.encode())
        with contextlib.suppress(self._av.error.FFmpegError, OSError):
            self._container.close()
        with contextlib.suppress(OSError):
            self._file.finish()
        if not self.frames:
            with contextlib.suppress(OSError):
                self.part.unlink()

    @contextlib.contextmanager
    def _naming(self) -> Any:
        try:
            yield
        except (self._av.error.FFmpegError, OSError) as error:
            raise OSError(f"{self.part}: it cannot be written ({error.strerror or error})") from error

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()


def check_video_size(width: int, height: int) -> None:
    """Raises ValueError for what H.264 with 4:2:0 colour cannot hold."""
    for name, size in (("width", width), ("height", height)):
        if size < 2 or size % 2 or size > 16384:
            raise ValueError(f"the video's {name} must be even, from 2 to 16384 pixels, got {size}")
