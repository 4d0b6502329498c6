"""The boxes an MP4 file is made of: reading them, making one, and moving the media data they point at.

Knows bytes only: no codec, and no file but through what is handed over. ISO/IEC 14496-12 is the format. A box is its
size (4 bytes, big-endian, header included), its kind (4 bytes) and its content; size 1 says that the real size follows
the kind in 8 bytes, size 0 that the box reaches to the end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

_MAX_SIZE32 = 2**32 - 1
_MAX_OFFSET = {b"stco": 2**32 - 1, b"co64": 2**64 - 1}
_OFFSET_CODE = {b"stco": "I", b"co64": "Q"}
# What lies between a moov and its chunk offsets.
_CONTAINERS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl"))


class Box(NamedTuple):
    """Where a box lies: `start`, the beginning of its content, and its end, which may be beyond the bytes looked at."""

    kind: bytes
    start: int
    content: int
    end: int


def read_boxes(data: bytes) -> Iterator[Box]:
    """The boxes that follow each other in `data`, without those inside them. The last may be cut short.

    Raises:
        ValueError: a size that no box has.
    """
    start = 0
    while start < len(data):
        if len(data) - start < 8:
            raise ValueError(f"{len(data) - start} bytes at {start} are too few for an MP4 box")
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1:
            if len(data) - start < 16:
                raise ValueError(f"the MP4 box {kind!r} at {start} is cut short")
            (size,) = struct.unpack_from(">Q", data, content)
            content += 8
        end = start + size if size else len(data)
        if end < content:
            raise ValueError(f"the MP4 box {kind!r} at {start} has the impossible size {size}")
        yield Box(kind, start, content, end)
        start = end


def make_box(kind: bytes, content: bytes) -> bytes:
    """A box around `content`, its size in 4 bytes where that is enough."""
    size = 8 + len(content)
    if size > _MAX_SIZE32:
        return struct.pack(">I4sQ", 1, kind, size + 8) + content
    return struct.pack(">I4s", size, kind) + content


def move_chunks(moov: bytes, by: int) -> bytes:
    """A `moov` box whose media data lies `by` bytes further on.

    Chunk offsets (stco, co64) count from the beginning of the file; all else in a moov is relative. A 32-bit table
    grows to 64 bits where an offset asks for that, and the moov with it: it must lie behind the media data.

    Raises:
        ValueError: a damaged box, or an offset that would become negative.
    """
    parts = []
    for box in read_boxes(moov):
        if box.end > len(moov):
            raise ValueError(f"the MP4 box {box.kind!r} is cut short")
        content = moov[box.content : box.end]
        if box.kind in _CONTAINERS:
            parts.append(make_box(box.kind, move_chunks(content, by)))
        elif box.kind in _OFFSET_CODE:
            parts.append(_moved_table(box.kind, content, by))
        else:
            parts.append(moov[box.start : box.end])
    return b"".join(parts)


def _moved_table(kind: bytes, content: bytes, by: int) -> bytes:
    """Version and flags, the number of offsets, the offsets."""
    if len(content) < 8:
        raise ValueError(f"the MP4 box {kind!r} is cut short")
    version, count = struct.unpack_from(">II", content)
    if len(content) != 8 + count * struct.calcsize(f">{_OFFSET_CODE[kind]}"):
        raise ValueError(f"the MP4 box {kind!r} says {count} chunk offsets, but has {len(content) - 8} bytes of them")
    offsets = [offset + by for offset in struct.unpack_from(f">{count}{_OFFSET_CODE[kind]}", content, 8)]
    if offsets and min(offsets) < 0:
        raise ValueError(f"a chunk cannot be moved by {by} bytes: it would begin before the file")
    if offsets and max(offsets) > _MAX_OFFSET[kind]:
        kind = b"co64"
    return make_box(kind, struct.pack(f">II{count}{_OFFSET_CODE[kind]}", version, count, *offsets))
