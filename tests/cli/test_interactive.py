"""Prompts typed while the video is made."""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import decode, press_at

from diag_core import SeededNoise
from diag_core.cli import run as cli_run
from diag_core.cli.interactive import STOP, Console, live_prompts
from diag_core.mp4_writer import Mp4Writer
from diag_core.video_reader import read_image


class Typist(io.StringIO):
    """Standard input: each line comes when the chunk before it is about to be sampled."""

    def __init__(self, says: dict[int, str]) -> None:
        super().__init__()
        self.says, self.ready, self.taken = says, threading.Semaphore(0), threading.Semaphore(0)

    def __iter__(self) -> Iterator[str]:
        for line in self.says.values():
            self.ready.acquire()
            yield line + "\n"
            self.taken.release()


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch):
    """Types lines while chunks are being sampled; a line is there before the next chunk begins."""

    def types(says: dict[int, str]) -> None:
        typist = Typist(says)
        draw = SeededNoise.initial

        def initial(self, start_frame, shape):
            if start_frame // 3 in says:
                typist.ready.release()
                typist.taken.acquire(timeout=10)
            return draw(self, start_frame, shape)

        monkeypatch.setattr(SeededNoise, "initial", initial)
        monkeypatch.setattr(sys, "stdin", typist)

    return types


def test_prompts_take_effect_with_the_next_chunk_and_the_timeline_makes_the_video_again(generate, typing):
    typing({1: "a blue 7", 3: "2", 4: ""})
    result = generate(
        "--interactive", "--prompt", "a red 3", "--slot", "a 5", "--slot", "a green 1", "--seed", 4, "--frames", 81,
        "--out", "a.mp4",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "1  a 5" in result.err and "2  a green 1" in result.err
    assert "from the next chunk on: a blue 7" in result.err and "from the next chunk on: a green 1" in result.err
    assert "1.31 s: a blue 7 (" in result.err and "ms after it was asked for" in result.err
    assert Path("a.timeline.txt").read_text() == "0s: a red 3\n6lf: a blue 7\n12lf: a green 1\n"
    assert '--timeline "@a.timeline.txt" --seed 4 makes this video again' in result.out
    typing({})
    result = generate("--timeline", "@a.timeline.txt", "--seed", 4, "--frames", 81, "--out", "b.mp4")
    assert result.code == 0, result.err
    assert torch.equal(decode("a.mp4"), decode("b.mp4"))


def test_ctrl_c_keeps_the_prompts_as_they_were_shown(generate, typing, monkeypatch):
    """In the timeline and in the saved state, which goes on with the last of them."""
    arguments = ("--seed", 4, "--frames", 69)
    typing({1: "a blue 7", 3: "a green 1"})
    with monkeypatch.context() as patch:
        press_at(patch, 5)
        result = generate(
            "--interactive", "--prompt", "a red 3", *arguments, "--out", "a.mp4", "--save-state", "s"
        )  # fmt: skip
    assert result.code == 130, result.err
    timeline = "0s: a red 3\n6lf: a blue 7\n12lf: a green 1\n"
    assert Path("a.timeline.txt").read_text() == timeline
    assert '--timeline "@a.timeline.txt" --seed 4' in result.out
    typing({})
    assert generate("--timeline", "@a.timeline.txt", *arguments, "--out", "b.mp4").code == 0
    whole, part = decode("b.mp4"), decode("a.part.mp4")
    assert 0 < len(part) < len(whole) and torch.equal(part, whole[: len(part)])
    result = generate("--resume", "s", "--out", "c.mp4")
    assert result.code == 0, result.err
    assert torch.equal(decode("c.mp4"), whole)


def test_ctrl_c_before_the_video_begins(generate, typing, monkeypatch):
    def slow(encode, slots):
        signal.raise_signal(signal.SIGINT)
        return live_prompts(encode, slots)

    typing({})
    monkeypatch.setattr(cli_run, "live_prompts", slow)
    result = generate("--interactive", "--prompt", "a red 3", "--out", "a.mp4")
    assert result.code == 130 and "interrupted: no frame was finished" in result.err
    assert list(Path().iterdir()) == []


def test_prompts_are_on_disk_as_soon_as_they_are_shown(generate, typing, monkeypatch):
    typing({1: "a blue 7"})
    draw = SeededNoise.initial

    def initial(self, start_frame, shape):
        if start_frame == 9:
            raise RuntimeError(Path("a.timeline.txt").read_text())
        return draw(self, start_frame, shape)

    monkeypatch.setattr(SeededNoise, "initial", initial)
    with pytest.raises(RuntimeError, match="0s: a red 3\n6lf: a blue 7\n"):
        generate("--interactive", "--prompt", "a red 3", "--out", "a.mp4", "--frames", 81)


def test_a_malformed_byte_does_not_end_the_reading_of_prompts():
    typed = io.TextIOWrapper(io.BytesIO(b"a \xff 7\n" + STOP.encode() + b"\n"), encoding="utf-8")
    out = io.StringIO()
    console = Console(live_prompts(lambda prompt: torch.zeros(1, 4), []), 16.0, lines=typed, out=out)
    console.start()
    assert console.stopped.wait(10)
    assert "from the next chunk on: a \ufffd 7" in out.getvalue()


@pytest.mark.parametrize(
    ("first", "slot", "typed"),
    [
        ("a red 3;", "a\n5", "a blue 7 ;"),
        (" a red 3; 2s: a 9", "\u00e9 \U0001f600", "2"),
        ("a \\; b", "2s: a 5;", "; 1lf: a blue 7"),
    ],
)
def test_any_prompt_can_be_kept(generate, typing, first, slot, typed):
    """Those that look like the timeline's own signs too: nothing is lost, and they make the same video again."""
    typing({1: typed, 2: "1"})
    result = generate(
        "--interactive", "--prompt", first, "--slot", slot, "--frames", 45, "--out", "a.mp4", "--save-state", "s"
    )
    assert result.code == 0, result.err
    assert Path("s").is_file()
    typing({})
    assert generate("--timeline", "@a.timeline.txt", "--frames", 45, "--out", "b.mp4").code == 0
    assert torch.equal(decode("a.mp4"), decode("b.mp4"))
    result = generate("--resume", "s", "--frames", 57, "--out", "c.mp4")
    assert result.code == 0, result.err
    assert torch.equal(decode("c.mp4")[:45], decode("a.mp4"))


def test_a_timeline_that_cannot_be_written_costs_neither_video_nor_state(generate, typing, monkeypatch):
    def full(entries):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli_run, "format_timeline", full)
    typing({1: "a blue 7"})
    result = generate(
        "--interactive", "--prompt", "a red 3", "--frames", 33, "--out", "a.mp4", "--save-state", "s"
    )  # fmt: skip
    assert result.code == 2 and "No space left on device" in result.err
    assert "note: the prompts are not on disk" in result.err
    assert len(decode("a.mp4")) == 33 and Path("s").is_file()


def test_stop_ends_the_video_after_the_chunk_in_the_making(generate, typing):
    typing({2: "/stop"})
    result = generate("--interactive", "--prompt", "a red 3", "--out", "a.mp4", "--seconds", 60)
    assert result.code == 0, result.err
    assert len(decode("a.mp4")) == 33 and not Path("a.timeline.txt").exists()


def test_a_prompt_that_cannot_be_used_is_said_and_the_video_goes_on(generate, typing):
    typing({1: "x" * 20_000})
    result = generate("--interactive", "--prompt", "a red 3", "--out", "a.mp4", "--frames", 33)
    assert result.code == 0 and "20000 characters" in result.err
    assert len(decode("a.mp4")) == 33


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--slot", "a 1"), "--slot is a prompt for --interactive"),
        (("--interactive", "--prompt", "a 2"), "--interactive is for one video"),
        (("--interactive", *(["--slot", "a"] * 33)), "33 times --slot; at most 32"),
        (("--interactive", "--slot", " "), "--slot: the prompt is empty"),
    ],
)
def test_what_cannot_go_together_is_refused(generate, options, why):
    result = generate("--prompt", "a red 3", *options)
    assert result.code == 2 and why in result.err


def test_a_folder_of_pictures_holds_the_frames_of_the_video(generate):
    arguments = ("--prompt", "a red 3", "--seed", 4, "--frames", 21)
    result = generate(*arguments, "--png", "--out", "frames")
    assert result.code == 0, result.err
    files = sorted(Path("frames").iterdir())
    assert [file.name for file in files] == [f"{n:06d}.png" for n in range(1, 22)]
    assert generate(*arguments, "--out", "a.mp4").code == 0
    with Mp4Writer("b.mp4", 16, 32, 32) as writer:
        writer.write(torch.stack([read_image(file) for file in files]))
    assert torch.equal(decode("a.mp4"), decode("b.mp4"))
    assert b"trainedAlgorithmicMedia" in files[0].read_bytes() and b"a red 3" in files[0].read_bytes()
    again = generate(*arguments, "--png", "--out", "frames")
    assert again.code == 0 and len(list(Path("frames").glob("*/*.png"))) == 21  # into the folder that is there
    refused = generate(*arguments, "--png", "--out", "a.png")
    assert refused.code == 2 and "without an ending" in refused.err
