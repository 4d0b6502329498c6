"""Pictures in and out: MP4 written as the frames come, strips and PNG files, and reading an image.

Shapes: B batch (1), T pixel frames, H W pixels. Pixels are float [1,3,T,H,W], nominally -1..1, or uint8 [T,H,W,3].
Video and image files go through PyAV, imported when first used; PNG is written without any library.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .mp4_file import Mp4File
from .mp4_fragment import FRAGMENTED, fragment_of
from .provenance import PNG_KEYWORD, generated_xmp, xmp_box
from .replacing import replace_file, replacing

MAX_FPS = 1000
_BT709 = 1  # FFmpeg's number for it as colour space, primaries and transfer
_LIMITED_RANGE = 1
_CRF = 17  # constant quality of x264; hard to tell from the original
_SECONDS_BETWEEN_KEYFRAMES = 2
# A fragment a frame, so that a killed process leaves a file that plays. Closing the file makes an ordinary MP4 of it,
# which can be sought in.
_MOVFLAGS = f"{FRAGMENTED}+hybrid_fragmented"


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels [1,3,T,H,W] in -1..1, clamped and rounded, or uint8 [T,H,W,3] as it is -> uint8 [T,H,W,3].

    Raises:
        ValueError: any other shape or type.
    """
    if pixels.dtype == torch.uint8:
        if pixels.dim() != 4 or pixels.shape[3] != 3:
            raise ValueError(f"uint8 pixels must be [T,H,W,3], got {list(pixels.shape)}")
        return pixels
    if not pixels.is_floating_point() or pixels.dim() != 5 or pixels.shape[:2] != (1, 3):
        raise ValueError(f"pixels must be floating point [1,3,T,H,W], got {pixels.dtype} {list(pixels.shape)}")
    scaled = pixels[0].detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(1, 2, 3, 0).contiguous()


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
        self._av = _import_av()
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


def frame_strip(pixels: Tensor, count: int, *, gap: int = 2) -> Tensor:
    """`count` frames of a video, first and last included, side by side: uint8 [H,W',3].

    Args:
        pixels: as in `to_uint8`.
        count: at most the number of frames there are.
        gap: white pixels between frames.
    """
    frames = to_uint8(pixels)
    if not 1 <= count <= frames.shape[0]:
        raise ValueError(f"a strip of {count} frames cannot be cut from {frames.shape[0]}")
    picks = [frames[round(i * (frames.shape[0] - 1) / max(1, count - 1))] for i in range(count)]
    white = frames.new_full((frames.shape[1], gap, 3), 255)
    return torch.cat([part for frame in picks for part in (white, frame)][1:], dim=1)


def write_png(
    path: str | os.PathLike[str], image: Tensor, *, xmp: str | None = None, texts: Mapping[str, str] | None = None
) -> None:
    """Write uint8 [H,W,3] as a PNG file, whole or not at all.

    Args:
        xmp: an XMP packet, such as `generated_xmp`, the mark of generated media.
        texts: keyword (1 to 79 characters of Latin-1) -> text without NUL characters; the file's metadata.

    Raises:
        ValueError: another shape or type; a keyword or text that PNG cannot hold.
        OSError: the file cannot be written.
    """
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image must be uint8 [H,W,3], got {image.dtype} {list(image.shape)}")
    height, width, _ = image.shape
    # Each row begins with its filter: 0, none.
    rows = F.pad(image.cpu().reshape(height, width * 3), (1, 0)).numpy().tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    entries = [*([] if xmp is None else [(PNG_KEYWORD, xmp)]), *(texts or {}).items()]
    chunks = [(b"iTXt", _png_text(keyword, text)) for keyword, text in entries]
    with replacing(Path(path)) as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def _png_text(keyword: str, text: str) -> bytes:
    """The content of an iTXt chunk: uncompressed, no language given."""
    try:
        name = keyword.encode("latin-1")
    except UnicodeEncodeError:
        name = b""
    if not 1 <= len(name) <= 79 or not keyword.isprintable() or keyword != keyword.strip():
        raise ValueError(f"a PNG text needs a keyword of 1 to 79 printable Latin-1 characters, got {keyword!r}")
    if "\0" in text:
        raise ValueError(f"the PNG text {keyword!r} holds a NUL character, which ends a text: remove it")
    return name + b"\0\0\0\0\0" + text.encode()


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """A PNG, JPEG or other image (of a video, its first frame) as uint8 [H,W,3]; transparency is dropped.

    Raises:
        ValueError: it is no image.
        OSError: it cannot be read.
    """
    what = "an image (a PNG or JPEG is best)"
    with _reading(path, what):
        return _picture(next(_decoded(path, what)))


def read_video(path: str | os.PathLike[str], last: int | None = None) -> Tensor:
    """The last `last` frames of a video, or all, uint8 [T,H,W,3]. Memory holds no others, however long the video is.

    Raises:
        ValueError: it is no video.
        OSError: it cannot be read.
    """
    with _reading(path, "a video"):
        frames = deque(_decoded(path, "a video"), maxlen=last)
        return torch.stack([_picture(frames.popleft()) for _ in range(len(frames))])


def count_frames(path: str | os.PathLike[str]) -> int:
    """How many frames `read_video` reads in all, keeping none of them. Raises as it does."""
    # By decoding: what the header says need not be so.
    with _reading(path, "a video"):
        return sum(1 for _ in _decoded(path, "a video"))


def _decoded(path: str | os.PathLike[str], what: str) -> Iterator[Any]:
    """The frames of a file one by one, at least one."""
    found = False
    with open(path, "rb") as file, _import_av().open(file) as container:
        for frame in container.decode(video=0):
            found = True
            yield frame
    if not found:
        raise ValueError(f"{path}: it cannot be read as {what}: it holds no frame")


@contextlib.contextmanager
def _reading(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    av = _import_av()
    try:
        yield
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: it cannot be read as {what}") from error


def _picture(frame: Any) -> Tensor:
    """uint8 [H,W,3]"""
    return torch.from_numpy(frame.to_ndarray(format="rgb24"))


def fit_image(image: Tensor, width: int, height: int) -> Tensor:
    """uint8 [H,W,3] -> pixels [1,3,1,height,width] in -1..1: scaled to cover the size, its middle cut out."""
    scale = max(width / image.shape[1], height / image.shape[0])
    size = (max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale)))
    pixels = image.permute(2, 0, 1)[None].float()
    if size != tuple(image.shape[:2]):
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 255)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return (pixels[:, :, top : top + height, left : left + width] / 127.5 - 1)[:, :, None]


def _import_av() -> Any:
    try:
        import av
        import av.error
    except ImportError as error:
        raise ValueError(f"videos and images need PyAV: pip install av ({error})") from error
    return av
