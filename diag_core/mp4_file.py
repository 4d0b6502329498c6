"""The file that FFmpeg writes an MP4 into while a box of ours stands behind its `ftyp`.

FFmpeg can write no such box, and its file plays while it grows, so the box must be there from the first bytes on. It
counts positions as if the box were not: here they are moved, and so are the chunk offsets of the complete video.
"""

from __future__ import annotations

import os
from pathlib import Path

from .mp4_boxes import move_chunks, read_boxes

_MAX_BOX_HEADER = 16


class Mp4File:
    """What PyAV needs of a file to write a `hybrid_fragmented` MP4 into, unbuffered.

    While it grows, the file is ftyp, our box, a `free` box, a moov without frames, and fragments, whose positions are
    relative. At the end FFmpeg appends a moov of all frames, with chunk offsets from the beginning of the file, and
    turns the `free` box into an mdat that covers everything up to that moov: a few bytes that make the fragments an
    ordinary MP4. They are held back here until `finish` has moved the chunk offsets. So the file plays at every moment:
    as fragments before those bytes (players pass over the second moov), as an ordinary MP4 after them. FFmpeg also goes
    back to fill in the sizes of boxes longer than its buffer, such as the moov of some minutes: that is done at once.

    Args:
        path: replaced if it is there.
        box: a whole box, or nothing.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, box: bytes = b"") -> None:
        self._box = box
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 - closed by `close`
        self._position = self._written = self._shown = 0  # as FFmpeg counts
        self._ftyp_end = 0
        self._held: list[tuple[int, bytes]] = []

    def write(self, data: bytes) -> int:
        data = bytes(data)
        position, self._position = self._position, self._position + len(data)
        if not self._written:
            self._ftyp_end = _end_of_ftyp(data)
            self._write(data[: self._ftyp_end] + self._box + data[self._ftyp_end :])
        elif position < min(self._written, self._ftyp_end + _MAX_BOX_HEADER):  # the conversion: mdat over free
            self._held.append((self._moved(position), data))
        else:
            self._file.seek(self._moved(position))
            self._write(data)
        self._written = max(self._written, self._position)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._written}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def show(self, data: bytes) -> None:
        """Put `data` behind what FFmpeg has written so far, which writes over it as soon as it goes on."""
        self._shown = self._written
        self._file.seek(self._moved(self._written))
        self._write(data)

    def finish(self) -> None:
        """Complete the conversion, if FFmpeg has asked for it, and close the file; nothing when it is closed already.

        FFmpeg must be done with the file.

        Raises:
            OSError: the file cannot be written, or its layout is not known here. Its fragments play.
        """
        if self._file.closed:
            return
        with self._file:
            if self._shown < self._written:  # else nothing has come in place of it
                self._file.truncate(self._moved(self._written))
            held, self._held = self._held, []
            if held:
                self._convert(held)

    def _convert(self, held: list[tuple[int, bytes]]) -> None:
        header = bytearray(self._read(0, max(at + len(data) for at, data in held) + _MAX_BOX_HEADER))
        for at, data in held:
            header[at : at + len(data)] = data
        if self._box:
            self._move_chunks(bytes(header))
        for at, data in held:
            self._file.seek(at)
            self._write(data)

    def _move_chunks(self, header: bytes) -> None:
        try:
            # The file as it will be: the mdat's size is known, though its content is cut off here.
            media = next(box for box in read_boxes(header) if box.kind == b"mdat")
            moov = self._read(media.end)
            if [box.kind for box in read_boxes(moov)] != [b"moov"]:
                raise ValueError("its end is no moov box")
            moved = move_chunks(moov, len(self._box))
        except (ValueError, StopIteration) as error:
            raise OSError(
                f"{self._file.name}: this FFmpeg lays an MP4 out in a way that is not known here ({error}); the file "
                "plays as it is"
            ) from error
        self._file.seek(media.end)
        self._write(moved)

    def _moved(self, position: int) -> int:
        """FFmpeg's position in our file."""
        return position if position < self._ftyp_end else position + len(self._box)

    def _write(self, data: bytes) -> None:
        # An unbuffered file may take less than it is given.
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _read(self, start: int, count: int = -1) -> bytes:
        """`count` bytes from `start` on, or all up to the end."""
        self._file.seek(start)
        parts = []
        while count and (part := self._file.read(count)):
            parts.append(part)
            count -= len(part) if count > 0 else 0
        return b"".join(parts)


def _end_of_ftyp(data: bytes) -> int:
    """Where the box at the beginning of the file ends. OSError when `data` does not hold it all, or it is another."""
    box = next(read_boxes(data), None) if len(data) >= _MAX_BOX_HEADER else None
    if box is None or box.kind != b"ftyp" or box.end > len(data):
        raise OSError("this FFmpeg begins an MP4 in a way that is not known here")
    return box.end
