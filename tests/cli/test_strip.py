"""`strip`: frames of videos in one picture."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from diag_core.cli import main
from diag_core.mp4_writer import Mp4Writer
from diag_core.video_reader import read_image, read_video


def write(path, size=(32, 16), frames=5, level=0):
    width, height = size
    pixels = torch.full((frames, height, width, 3), level, dtype=torch.uint8)
    pixels += torch.arange(frames, dtype=torch.uint8)[:, None, None, None] * 20
    with Mp4Writer(path, 16, width, height, metadata={}) as writer:
        writer.write(pixels)
    return path


def test_rows_are_videos_and_columns_frames_from_first_to_last(tmp_path):
    videos = [write(tmp_path / "a.mp4"), write(tmp_path / "b.mp4", level=100)]
    out = tmp_path / "strip.png"
    assert main(["strip", *map(str, videos), "--out", str(out), "--count", "3", "--scale", "2"]) == 0
    image = read_image(out)
    assert image.shape == (2 * 32 + 2, 3 * 64 + 2 * 2, 3)
    for row, level in ((16, 0), (32 + 2 + 16, 100)):
        for column, frame in ((32, 0), (66 + 32, 2), (132 + 32, 4)):
            assert abs(int(image[row, column, 0]) - (level + 20 * frame)) <= 6
    assert (image[32] == 255).all()


def test_patterns_are_expanded_where_the_shell_does_not(tmp_path, capsys):
    for name, level in (("b.mp4", 100), ("a.mp4", 0)):
        write(tmp_path / name, level=level)
    out = tmp_path / "strip.png"
    assert main(["strip", str(tmp_path / "*.mp4"), "--out", str(out), "--count", "2"]) == 0
    image = read_image(out)
    assert image.shape[0] == 2 * 16 + 2 and image[8, 16, 0] < 10 < 90 < image[26, 16, 0]
    capsys.readouterr()
    assert main(["strip", str(tmp_path / "*.mkv"), "--out", str(out)]) == 2
    assert "*.mkv" in capsys.readouterr().err


def test_a_name_that_the_console_cannot_write_ends_nothing(tmp_path, monkeypatch):
    """As on Windows, where redirected output is of the system's code page."""
    out = tmp_path / "\u7ea2.png"
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    assert main(["strip", str(write(tmp_path / "a.mp4")), "--out", str(out), "--count", "2"]) == 0
    console.flush()
    assert out.exists() and b"\\u7ea2.png" in console.buffer.getvalue()


def test_videos_come_back_whole(tmp_path):
    assert read_video(write(tmp_path / "a.mp4")).shape == (5, 16, 32, 3)


def test_what_cannot_be_shown_is_refused_in_one_line(tmp_path, capsys):
    small, large = write(tmp_path / "a.mp4"), write(tmp_path / "b.mp4", size=(64, 16))
    text = tmp_path / "c.mp4"
    text.write_text("no video")
    out = str(tmp_path / "x.png")
    for arguments, message in (
        ([str(small), "--count", "6"], "has 5 frames, fewer than --count 6"),
        ([str(small), str(large), "--count", "2"], "not of the size"),
        ([str(text)], "cannot be read as a video"),
    ):
        assert main(["strip", *arguments, "--out", out]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("missing", ["--out", "VIDEO"])
def test_what_is_needed_is_asked_for(missing, capsys):
    assert main(["strip", *(["a.mp4"] if missing == "--out" else ["--out", "x.png"])]) == 2
    assert "required" in capsys.readouterr().err
