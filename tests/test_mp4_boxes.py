"""MP4 boxes: read, made, moved, and put into a file that FFmpeg counts without."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from diag_core.mp4_boxes import make_box, move_chunks, read_boxes
from diag_core.mp4_file import Mp4File

GIB = 2**30


def table(kind: bytes, *offsets: int) -> bytes:
    code = "I" if kind == b"stco" else "Q"
    return make_box(kind, struct.pack(f">II{len(offsets)}{code}", 0, len(offsets), *offsets))


def moov(*tables: bytes) -> bytes:
    """A track for each table, with boxes around it that nothing may change."""
    tracks = b""
    for chunk_offsets in tables:
        stbl = make_box(b"stbl", make_box(b"stsz", b"sizes") + chunk_offsets + make_box(b"stss", b"sync"))
        minf = make_box(b"minf", make_box(b"vmhd", b"") + stbl)
        tracks += make_box(b"trak", make_box(b"tkhd", b"stco in here is text") + make_box(b"mdia", minf))
    return make_box(b"moov", make_box(b"mvhd", b"head") + tracks + make_box(b"udta", b"tail"))


def chunk_offsets(data: bytes) -> list[tuple[bytes, list[int]]]:
    found = []
    for box in read_boxes(data):
        content = data[box.content : box.end]
        if box.kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
            found += chunk_offsets(content)
        elif box.kind in (b"stco", b"co64"):
            width = 4 if box.kind == b"stco" else 8
            values = [int.from_bytes(content[at : at + width], "big") for at in range(8, len(content), width)]
            assert len(values) == int.from_bytes(content[4:8], "big")
            found.append((box.kind, values))
    return found


def test_boxes_are_read_as_they_lie():
    data = make_box(b"ftyp", b"isom") + struct.pack(">I4sQ", 1, b"wide", 19) + b"abc" + struct.pack(">I4s", 0, b"mdat")
    assert list(read_boxes(data + b"rest")) == [
        (b"ftyp", 0, 8, 12),
        (b"wide", 12, 28, 31),
        (b"mdat", 31, 39, 43),
    ]
    # The last may reach beyond the bytes at hand, also by more than 32 bits hold.
    (box,) = read_boxes(struct.pack(">I4sQ", 1, b"mdat", 5 * GIB))
    assert (box.content, box.end) == (16, 5 * GIB)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0\0\0", "3 bytes at 0 are too few"),
        (make_box(b"free", b"") + b"1234567", "7 bytes at 8 are too few"),
        (struct.pack(">I4s", 7, b"free"), "impossible size 7"),
        (struct.pack(">I4sQ", 1, b"mdat", 15), "impossible size 15"),
        (struct.pack(">I4sI", 1, b"mdat", 0), "cut short"),
    ],
)
def test_what_is_no_box_is_refused(data: bytes, said: str):
    with pytest.raises(ValueError, match=said):
        list(read_boxes(data))


def test_a_box_beyond_4_gib_has_a_long_size():
    class Long(bytes):
        def __len__(self) -> int:
            return 2**32 - 8

    assert make_box(b"mdat", b"abc") == b"\0\0\0\x0bmdatabc"
    assert make_box(b"mdat", Long())[:16] == struct.pack(">I4sQ", 1, b"mdat", 2**32 + 8)


def test_chunks_of_every_track_are_moved_and_nothing_else():
    before = moov(table(b"stco", 44, 1000), table(b"co64", 5 * GIB, 45))
    after = move_chunks(before, 300)
    assert after == moov(table(b"stco", 344, 1300), table(b"co64", 5 * GIB + 300, 345))
    assert move_chunks(after, -300) == before
    assert move_chunks(moov(table(b"stco")), 300) == moov(table(b"stco"))


def test_a_table_grows_where_an_offset_no_longer_fits():
    last = 2**32 - 1
    assert move_chunks(moov(table(b"stco", 44, last - 300)), 300) == moov(table(b"stco", 344, last))
    # The expected moov is made by hand, with the sizes of all boxes around the table.
    assert move_chunks(moov(table(b"stco", 44, last)), 300) == moov(table(b"co64", 344, last + 300))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (moov(table(b"stco", 10)), "it would begin before the file"),
        (moov(make_box(b"stco", struct.pack(">III", 0, 2, 500))), "says 2 chunk offsets, but has 4 bytes"),
        (moov(make_box(b"co64", b"1234567")), "b'co64' is cut short"),
        (moov(table(b"stco", 500))[:-1], "b'moov' is cut short"),
    ],
)
def test_a_damaged_moov_is_refused(data: bytes, said: str):
    with pytest.raises(ValueError, match=said):
        move_chunks(data, -20)


FTYP = make_box(b"ftyp", b"isom\0\0\2\0")
FREE = make_box(b"free", b"")
MARK = make_box(b"uuid", b"m" * 500)


@pytest.mark.parametrize(
    ("media_end", "kind", "header"),
    [
        (3 * GIB, b"stco", struct.pack(">I4s", 3 * GIB - len(FTYP) - 8, b"mdat")),
        (2**32 - 100, b"stco", struct.pack(">I4s", 2**32 - 108 - len(FTYP), b"mdat")),  # grows
        (6 * GIB, b"co64", struct.pack(">I4sQ", 1, b"mdat", 6 * GIB - len(FTYP))),
    ],
    ids=["3 GiB", "just under 4 GiB", "6 GiB"],
)
def test_large_files_are_converted(tmp_path: Path, media_end: int, kind: bytes, header: bytes):
    """The media data is a hole in the file: only what FFmpeg writes at its ends is written."""
    path, shift = tmp_path / "a.mp4", len(MARK)
    file = Mp4File(path, MARK)
    file.write(FTYP + FREE + FREE)
    os.truncate(path, media_end + shift)
    file.seek(media_end)
    file.write(moov(table(kind, 60, media_end - 10)))
    file.seek(len(FTYP) + (0 if len(header) == 16 else 8))
    file.write(header)
    with open(path, "rb") as before:
        assert before.read(len(FTYP) + shift + 16) == FTYP + MARK + FREE + FREE  # held back until the chunks are moved
    file.finish()
    file.finish()  # does nothing more
    with open(path, "rb") as after:
        boxes = list(read_boxes(after.read(len(FTYP) + shift + 24)))
        assert [box.kind for box in boxes][:2] == [b"ftyp", b"uuid"]
        assert (boxes[-1].kind, boxes[-1].end) == (b"mdat", media_end + shift)
        after.seek(media_end + shift)
        (found,) = chunk_offsets(after.read())
    assert found[1] == [60 + shift, media_end - 10 + shift]
    assert found[0] == (b"co64" if found[1][1] >= 2**32 else b"stco")


def test_short_writes_lose_nothing(tmp_path: Path, monkeypatch):
    file = Mp4File(tmp_path / "a.mp4", MARK)
    whole = file._file

    class Short:
        def __getattr__(self, name: str):
            return getattr(whole, name)

        def write(self, data: bytes) -> int:
            return whole.write(data[:7])

    monkeypatch.setattr(file, "_file", Short())
    file.write(FTYP + FREE)
    file.write(b"fragment" * 9)
    whole.close()
    assert (tmp_path / "a.mp4").read_bytes() == FTYP + MARK + FREE + b"fragment" * 9


@pytest.mark.parametrize("data", [b"", b"ftyp", FREE + FTYP, FTYP[:-1], b"\0" * 40])
def test_another_beginning_is_refused(tmp_path: Path, data: bytes):
    file = Mp4File(tmp_path / "a.mp4", MARK)
    with pytest.raises(OSError, match="begins an MP4 in a way that is not known"):
        file.write(data)
    file.finish()


def test_another_ending_is_refused_and_the_fragments_stay(tmp_path: Path):
    path = tmp_path / "a.mp4"
    file = Mp4File(path, MARK)
    file.write(FTYP + FREE + FREE + b"fragments")
    end = file.tell()
    file.write(make_box(b"free", b"no moov"))
    file.seek(len(FTYP) + 8)
    file.write(struct.pack(">I4s", end - len(FTYP) - 8, b"mdat"))
    with pytest.raises(OSError, match=r"a\.mp4: this FFmpeg lays an MP4 out .*no moov.*the file plays as it is"):
        file.finish()
    assert path.read_bytes() == FTYP + MARK + FREE + FREE + b"fragments" + make_box(b"free", b"no moov")
