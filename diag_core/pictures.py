"""Pictures from pixels and back: strips of frames, PNG files (written without any library), fitting an image to a size.

Shapes: T pixel frames, H W pixels. Pixels are float [1,3,T,H,W], nominally -1..1, or uint8 [T,H,W,3].
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .provenance import PNG_KEYWORD
from .replacing import replacing


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


def fit_image(image: Tensor, width: int, height: int) -> Tensor:
    """uint8 [H,W,3] -> pixels [1,3,1,height,width] in -1..1: scaled to cover the size, its middle cut out."""
    scale = max(width / image.shape[1], height / image.shape[0])
    size = (max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale)))
    pixels = image.permute(2, 0, 1)[None].float()
    if size != tuple(image.shape[:2]):
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 255)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return (pixels[:, :, top : top + height, left : left + width] / 127.5 - 1)[:, :, None]


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
