"""MP4 files as players see them, what is left of an unfinished one, and images in and out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor

from diag_core import mp4_writer, replacing
from diag_core.mp4_boxes import read_boxes
from diag_core.mp4_file import Mp4File
from diag_core.mp4_writer import Mp4Writer, part_path
from diag_core.pictures import fit_image, frame_strip, to_uint8, write_png
from diag_core.provenance import generated_xmp, xmp_box
from diag_core.video_reader import count_frames, read_image, read_video

ROOT = Path(__file__).parent.parent


def colours(frames: int, height: int = 32, width: int = 48) -> Tensor:
    """Pixels [1,3,T,H,W]: frame t is one colour that only it has."""
    t = torch.arange(frames) / max(1, frames - 1)
    colour_3T = torch.stack([2 * t - 1, 1 - 2 * t, torch.full_like(t, 0.2)])
    return colour_3T[None, :, :, None, None].expand(1, 3, frames, height, width)


def decode(path: Path, *, whole: bool = True) -> Tensor:
    """All frames, uint8 [T,H,W,3]; not `whole`, those before one that is cut short."""
    frames = []
    with av.open(str(path)) as container, contextlib.suppress(*() if whole else (av.error.InvalidDataError,)):
        for frame in container.decode(video=0):
            frames.append(frame)
    assert {(int(f.colorspace), int(f.color_range)) for f in frames} == {(1, 1)}  # BT.709, limited range
    return rgb(frames)


def rgb(frames: list[av.VideoFrame]) -> Tensor:
    # Said again, because older PyAV converts by its own defaults.
    converted = [
        f.reformat(format="rgb24", src_colorspace="ITU709", src_color_range="MPEG", dst_color_range="JPEG")
        for f in frames
    ]
    return torch.stack([torch.from_numpy(f.to_ndarray()) for f in converted])


def test_pixels_are_clamped_and_rounded():
    pixels = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]).reshape(1, 1, 1, 1, 6).expand(1, 3, 1, 1, 6)
    assert to_uint8(pixels)[0, 0, :, 0].tolist() == [0, 0, 128, 191, 255, 255]
    assert to_uint8(pixels.bfloat16()).shape == (1, 1, 6, 3)


@pytest.mark.parametrize(
    "pixels",
    [torch.zeros(2, 3, 1, 4, 4), torch.zeros(3, 1, 4, 4), torch.zeros(1, 3, 1, 4, 4, dtype=torch.int64),
     torch.zeros(1, 4, 4, 4, dtype=torch.uint8)],
)  # fmt: skip
def test_other_pixels_are_refused(pixels: Tensor):
    with pytest.raises(ValueError, match="pixels must be"):
        to_uint8(pixels)


def test_a_player_sees_what_was_written(tmp_path: Path):
    path, pixels = tmp_path / "a.mp4", colours(21)
    with Mp4Writer(path, 12.5, 48, 32, metadata={"title": "a red 3", "prompt": "é 3", "seed": 7}) as writer:
        for part in (pixels[:, :, :9], pixels[:, :, 9:]):
            writer.write(part)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (
            48,
            32,
            21,
        )  # known without decoding: no longer fragmented
        assert float(stream.average_rate) == 12.5
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert container.metadata["title"] == "a red 3"
        assert json.loads(container.metadata["comment"]) == {"prompt": "é 3", "seed": 7}
        assert [f.time for f in container.decode(video=0)] == [i / 12.5 for i in range(21)]
    assert (decode(path).int() - to_uint8(pixels).int()).abs().max() <= 4
    assert not part_path(path).exists()


def test_pieces_make_the_same_video_as_the_whole(tmp_path: Path):
    pixels = colours(10)
    for name, sizes in (("whole.mp4", [10]), ("pieces.mp4", [1, 4, 5])):
        with Mp4Writer(tmp_path / name, 16, 48, 32) as writer:
            for part in pixels.split(sizes, dim=2):
                writer.write(to_uint8(part) if name == "pieces.mp4" else part)
    assert torch.equal(decode(tmp_path / "whole.mp4"), decode(tmp_path / "pieces.mp4"))


def test_an_unfinished_video_never_bears_the_final_name(tmp_path: Path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"an older video")
    with pytest.raises(KeyboardInterrupt), Mp4Writer(path, 16, 48, 32) as writer:
        writer.write(colours(9))
        raise KeyboardInterrupt
    assert path.read_bytes() == b"an older video"
    assert part_path(path).name == "a.part.mp4"
    assert len(decode(part_path(path))) == 9
    # Where there was time to, it was completed, and can be sought in.
    boxes = [box.kind for box in read_boxes(part_path(path).read_bytes())]
    assert boxes == [b"ftyp", b"uuid", b"free", b"mdat", b"moov"]


def test_a_killed_process_leaves_what_it_wrote(tmp_path: Path):
    code = f"""
import os, torch
from diag_core.mp4_writer import Mp4Writer
writer = Mp4Writer({str(tmp_path / "a.mp4")!r}, 16, 48, 32, metadata={{"seed": 3}})
writer.write(torch.zeros(1, 3, 12, 32, 48))
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 9
    assert os.listdir(tmp_path) == ["a.part.mp4"]
    assert len(decode(tmp_path / "a.part.mp4")) == 12
    with av.open(str(tmp_path / "a.part.mp4")) as container:
        assert json.loads(container.metadata["comment"]) == {"seed": 3}


def write_video(path: Path, pixels: Tensor, **options: object) -> None:
    with Mp4Writer(path, 16, pixels.shape[4], pixels.shape[3], metadata={"title": "a <3>", "seed": 7}, **options) as w:
        for part in pixels.split(9, dim=2):
            w.write(part)


def noise(frames: int) -> Tensor:
    """Frames that are all different, and too much for FFmpeg's buffer: it writes fragments in pieces."""
    return torch.rand(1, 3, frames, 96, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_every_frame_is_in_the_part_after_a_write_and_stays_as_it_is(tmp_path: Path):
    """The newest frame's fragment is written before FFmpeg writes it: the same bytes, so that no moment is without."""
    frames, before = noise(40), b""
    with Mp4Writer(tmp_path / "a.mp4", 16, 128, 96) as writer:
        for count, part in enumerate(frames.split(1, dim=2), start=1):
            writer.write(part)
            now = writer.part.read_bytes()
            assert now.startswith(before) and len(now) > len(before)
            if count in (1, 2, 33, 40):
                assert len(decode(writer.part)) == count
            before = now
    assert len(decode(tmp_path / "a.mp4")) == 40


def test_the_mark_stands_in_the_header_and_changes_nothing_else(tmp_path: Path):
    pixels = noise(50)
    write_video(tmp_path / "marked.mp4", pixels)
    write_video(tmp_path / "plain.mp4", pixels, mark_generated=False)
    marked, plain = ((tmp_path / name).read_bytes() for name in ("marked.mp4", "plain.mp4"))
    boxes = list(read_boxes(marked))
    assert [box.kind for box in boxes] == [b"ftyp", b"uuid", b"free", b"mdat", b"moov"]
    mark = xmp_box(generated_xmp(title="a <3>"))
    assert marked[boxes[1].start : boxes[1].end] == mark
    assert [box.kind for box in read_boxes(plain)] == [b"ftyp", b"free", b"mdat", b"moov"]
    moov = boxes[-1]
    assert marked[: moov.start] == plain[:28] + mark + plain[28 : moov.start - len(mark)]
    # In the moov, the chunk offsets alone differ.
    assert len(marked) - len(plain) == len(mark)
    assert marked[moov.start :] != plain[moov.start - len(mark) :]
    assert torch.equal(decode(tmp_path / "marked.mp4"), decode(tmp_path / "plain.mp4"))
    for name in ("marked.mp4", "plain.mp4"):
        with av.open(str(tmp_path / name)) as container:
            assert container.metadata["title"] == "a <3>"
            assert json.loads(container.metadata["comment"]) == {"seed": 7}
    # FFmpeg knows the box too, but looks for it only behind the moov.
    (tmp_path / "behind.mp4").write_bytes(plain + mark)
    with av.open(str(tmp_path / "behind.mp4"), options={"export_xmp": "1"}) as container:
        assert container.metadata["xmp"] == generated_xmp(title="a <3>")


def test_headers_longer_than_ffmpegs_buffer(tmp_path: Path):
    """FFmpeg goes back to fill in the sizes of such boxes. That was once taken for the conversion, and a video of some
    minutes could not be completed; a long timeline in the metadata made a part that did not play."""
    still = colours(1)
    with Mp4Writer(tmp_path / "a.mp4", 16, 48, 32, metadata={"timeline": "a long story " * 5000}) as writer:
        writer.write(still.expand(-1, -1, 30, -1, -1))
        (tmp_path / "killed.mp4").write_bytes(writer.part.read_bytes())
        for _ in range(150):
            writer.write(still.expand(-1, -1, 30, -1, -1))
    assert len(decode(tmp_path / "killed.mp4")) >= 29
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.frames == writer.frames == 4530
        assert len(json.loads(container.metadata["comment"])["timeline"]) == 65_000
        container.seek(round(280 / stream.time_base), stream=stream)
        assert 278 <= next(container.decode(stream)).time <= 280
    data = (tmp_path / "a.mp4").read_bytes()
    boxes = list(read_boxes(data))
    assert [box.kind for box in boxes] == [b"ftyp", b"uuid", b"free", b"mdat", b"moov"]
    assert boxes[-1].end - boxes[-1].start > 100_000


def test_a_marked_video_is_sought_in(tmp_path: Path):
    write_video(tmp_path / "a.mp4", noise(80))
    frames = decode(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        for wanted in (70, 3, 33, 79, 0, 32):
            container.seek(round(wanted / 16 / stream.time_base), stream=stream)
            first = next(container.decode(stream))
            assert first.key_frame and first.time <= wanted / 16
            found = first
            while found.time < wanted / 16:
                found = next(container.decode(stream))
            assert torch.equal(rgb([found])[0], frames[wanted])


def test_the_file_plays_after_every_write(tmp_path: Path, monkeypatch):
    """What a killed process leaves is the file after one of its writes, or after a part of one."""
    path, states, write = part_path(tmp_path / "a.mp4"), [], Mp4File._write

    def in_pieces(self: Mp4File, data: bytes) -> None:
        for start in range(0, len(data), 300):
            write(self, data[start : start + 300])
            states.append((writer.frames, path.read_bytes()))

    with Mp4Writer(tmp_path / "a.mp4", 16, 128, 96) as writer:
        monkeypatch.setattr(Mp4File, "_write", in_pieces)
        writer.write(noise(6))
    whole, kinds = decode(tmp_path / "a.mp4"), set()
    for frames, state in states:
        if frames < 2:  # the muxer holds one back
            continue
        (tmp_path / "killed.mp4").write_bytes(state)
        found = decode(tmp_path / "killed.mp4", whole=False)
        assert len(found) >= frames - 1
        assert torch.equal(found, whole[: len(found)])
        kinds.add(" ".join(box.kind.decode() for box in read_boxes(state)))
    assert "ftyp uuid free mdat moov" in kinds  # converted
    assert "ftyp uuid free free moov" + " moof mdat" * 6 + " moov" in kinds  # about to be
    assert len(whole) == 6


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_process_killed_between_conversion_and_patching_leaves_all_frames(tmp_path: Path):
    code = f"""
import os, signal, torch
from diag_core.mp4_file import Mp4File
from diag_core.mp4_writer import Mp4Writer
Mp4File.finish = lambda self: os.kill(os.getpid(), signal.SIGKILL)
with Mp4Writer({str(tmp_path / "a.mp4")!r}, 16, 48, 32) as writer:
    writer.write(torch.zeros(1, 3, 12, 32, 48))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["a.part.mp4"]
    assert len(decode(tmp_path / "a.part.mp4")) == 12


def test_a_full_disk_is_named_and_what_was_written_plays(tmp_path: Path, monkeypatch):
    write = Mp4File._write

    def full(self: Mp4File, data: bytes) -> None:
        if writer.frames >= 5:
            raise OSError(28, "No space left on device")
        write(self, data)

    said = r"a\.part\.mp4: it cannot be written \(No space left on device\)"
    with pytest.raises(OSError, match=said), Mp4Writer(tmp_path / "a.mp4", 16, 48, 32) as writer:
        monkeypatch.setattr(Mp4File, "_write", full)
        writer.write(colours(9))
    assert os.listdir(tmp_path) == ["a.part.mp4"]
    assert len(decode(tmp_path / "a.part.mp4")) >= 4


def test_a_video_that_cannot_be_completed_keeps_its_part(tmp_path: Path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Mp4File, "_convert", full)
    with pytest.raises(OSError, match="No space left"), Mp4Writer(tmp_path / "a.mp4", 16, 48, 32) as writer:
        writer.write(colours(9))
    assert os.listdir(tmp_path) == ["a.part.mp4"]
    assert len(decode(tmp_path / "a.part.mp4")) == 9


def test_a_part_that_a_player_has_open_is_copied_to_its_name(tmp_path: Path, monkeypatch):
    """Windows refuses to rename it, not to read it."""

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "The process cannot access the file", str(source))

    monkeypatch.setattr(mp4_writer, "replace_file", refuse)
    with Mp4Writer(tmp_path / "a.mp4", 16, 48, 32) as writer:
        writer.write(colours(9))
    assert os.listdir(tmp_path) == ["a.mp4"] and len(decode(tmp_path / "a.mp4")) == 9
    monkeypatch.setattr(replacing, "replace_file", refuse)
    said = r"b\.mp4: the whole video is in .*b\.part\.mp4, .*Close the program"
    with pytest.raises(OSError, match=said), Mp4Writer(tmp_path / "b.mp4", 16, 48, 32) as writer:
        writer.write(colours(9))
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "b.part.mp4"]
    assert len(decode(tmp_path / "b.part.mp4")) == 9


def test_without_frames_nothing_is_left(tmp_path: Path):
    with pytest.raises(ValueError, match="no frames"), Mp4Writer(tmp_path / "a.mp4", 16, 48, 32):
        pass
    with pytest.raises(RuntimeError), Mp4Writer(tmp_path / "a.mp4", 16, 48, 32):
        raise RuntimeError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "fps", "width", "height", "said"),
    [
        ("a.mp4", 16, 47, 32, "width must be even.* got 47"),
        ("a.mp4", 16, 48, 33, "height must be even.* got 33"),
        ("a.mp4", 16, 0, 32, "width must be even"),
        ("a.mp4", 0, 48, 32, "fps must be above 0"),
        ("a.mp4", float("nan"), 48, 32, "fps must be above 0"),
        ("a.gif", 16, 48, 32, "ends in .mp4"),
    ],
)
def test_videos_that_cannot_be_are_refused(tmp_path: Path, name: str, fps: float, width: int, height: int, said: str):
    with pytest.raises(ValueError, match=said):
        Mp4Writer(tmp_path / name, fps, width, height)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(OSError, match=r"absent/a\.part\.mp4: it cannot be written"):
        Mp4Writer(tmp_path / "absent" / "a.mp4", 16, 48, 32)


def test_frames_of_another_size_are_refused_and_the_video_goes_on(tmp_path: Path):
    with Mp4Writer(tmp_path / "a.mp4", 16, 48, 32) as writer:
        writer.write(colours(2))
        with pytest.raises(ValueError, match="frames are 64x32, the video is 48x32"):
            writer.write(colours(2, width=64))
        writer.write(colours(1))
    assert len(decode(tmp_path / "a.mp4")) == 3


def test_a_png_comes_back_as_it_was(tmp_path: Path):
    image = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_png(tmp_path / "a.png", image)
    assert torch.equal(read_image(tmp_path / "a.png"), image)
    assert os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(ValueError, match="an image must be"):
        write_png(tmp_path / "b.png", image.float())


def test_a_jpeg_is_read(tmp_path: Path):
    with av.open(str(tmp_path / "a.jpg"), "w", format="image2") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuvj420p"
        colour = torch.tensor([200, 30, 60], dtype=torch.uint8)
        frame = av.VideoFrame.from_ndarray(colour.expand(16, 32, 3).contiguous().numpy(), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (16, 32, 3)
    assert (image.int() - colour.int()).abs().max() <= 10


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n cut short"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: it cannot be read as an image"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("last", [1, 4, 9, 20])
def test_the_last_frames_of_a_video(tmp_path: Path, last: int):
    write_video(tmp_path / "a.mp4", noise(9))
    assert count_frames(tmp_path / "a.mp4") == 9
    assert torch.equal(read_video(tmp_path / "a.mp4", last), read_video(tmp_path / "a.mp4")[-last:])


def test_what_is_no_video_is_refused(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for read in (read_video, count_frames):
        with pytest.raises(ValueError, match=r"a\.mp4: it cannot be read as a video"):
            read(tmp_path / "a.mp4")


def test_an_image_covers_the_size_and_loses_its_edges():
    image = torch.zeros(32, 96, 3, dtype=torch.uint8)
    image[:, 32:64] = 255  # the middle third, and all that a square keeps
    pixels = fit_image(image, 16, 16)
    assert pixels.shape == (1, 3, 1, 16, 16)
    assert pixels[..., 2:-2].min() > 0.98
    assert pixels.min() >= -1 and pixels.max() <= 1
    assert torch.equal(to_uint8(fit_image(image, 96, 32))[0], image)


def test_a_strip_shows_first_and_last_frame():
    pixels = to_uint8(colours(9))
    strip = frame_strip(pixels, 3, gap=4)
    assert strip.shape == (32, 3 * 48 + 2 * 4, 3)
    for i, frame in enumerate((0, 4, 8)):
        assert torch.equal(strip[:, i * 52 : i * 52 + 48], pixels[frame])
    assert strip[:, 48:52].min() == 255
    assert torch.equal(frame_strip(pixels, 1), pixels[0])
    with pytest.raises(ValueError, match="a strip of 10 frames"):
        frame_strip(pixels, 10)
