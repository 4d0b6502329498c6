"""The MP4 fragment of a single packet, as FFmpeg will write it.

FFmpeg writes a packet's fragment when the next packet comes, since only then does it know how long the frame is shown.
Here frames are all shown equally long, so the newest packet need not wait: a muxer of its own makes its fragment, equal
to the byte but for its number and time, which are put in.
"""

from __future__ import annotations

import io
import struct
from typing import Any

from .mp4_boxes import read_boxes

FRAGMENTED = "frag_every_frame+empty_moov+default_base_moof"  # also of the file it is for


def fragment_of(av: Any, packet: Any, stream: Any, number: int) -> bytes:
    """`moof` and `mdat` of `packet`, number `number` (from 1) of the fragments of `stream`, which has muxed it already.

    Args:
        av: the module PyAV.

    Raises:
        OSError: this FFmpeg writes no such boxes.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"movflags": FRAGMENTED}) as container:
        alone = container.add_stream_from_template(stream)
        own, packet.stream = packet.stream, alone
        # Older FFmpegs leave it to the next packet.
        packet.duration = packet.duration or round(1 / (stream.average_rate * packet.time_base))
        container.mux(packet)
        packet.stream = own
    data = file.getvalue()
    boxes = {box.kind: box for box in read_boxes(data)}
    if b"moof" not in boxes or b"mdat" not in boxes:
        raise OSError(f"this FFmpeg makes no fragments of the kind known here, but {', '.join(map(repr, boxes))}")
    moof, mdat = (data[boxes[kind].start : boxes[kind].end] for kind in (b"moof", b"mdat"))
    return _numbered(moof, number, packet.dts) + mdat


def _numbered(moof: bytes, number: int, time: int) -> bytes:
    result = bytearray(moof)
    places = dict(_places(moof, 8))
    struct.pack_into(">I", result, places[b"mfhd"] + 4, number)
    struct.pack_into(">Q" if moof[places[b"tfdt"]] else ">I", result, places[b"tfdt"] + 4, time)
    return bytes(result)


def _places(boxes: bytes, start: int) -> list[tuple[bytes, int]]:
    """Where the content of the boxes from `start` on begins, and of those in a `traf`."""
    found = []
    for box in read_boxes(boxes[start:]):
        found.append((box.kind, start + box.content))
        if box.kind == b"traf":
            found += _places(boxes[: start + box.end], start + box.content)
    return found
