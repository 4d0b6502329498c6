"""`generate --layout vbench`: videos named as VBench's scripts look for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import decode


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red 3 moves right\nA blue 7, seen from above\n", encoding="utf-8")
    return path


def test_five_videos_of_each_prompt(generate, prompts: Path) -> None:
    result = generate("--prompt-file", prompts, "--layout", "vbench", "--out", "videos", "--frames", 1)
    assert result.code == 0, result.err
    names = {path.name for path in Path("videos").iterdir()}
    texts = ("a red 3 moves right", "A blue 7, seen from above")
    assert names == {f"{text}-{index}.mp4" for text in texts for index in range(5)}


def test_the_index_follows_the_seed(generate, prompts: Path) -> None:
    assert generate(
        "--prompt-file", prompts, "--layout", "vbench", "--out", "videos", "--count", 2, "--seed", 7
    ).code == 0  # fmt: skip
    assert generate("--prompt", "a red 3 moves right", "--seed", 8, "--out", "one.mp4").code == 0
    assert decode("videos/a red 3 moves right-1.mp4").equal(decode("one.mp4"))


def test_videos_that_are_there_are_not_made_again(generate, prompts: Path) -> None:
    command = ("--prompt-file", prompts, "--layout", "vbench", "--out", "videos", "--count", 2, "--frames", 1)
    assert generate(*command).code == 0
    lost = Path("videos/A blue 7, seen from above-0.mp4")
    whole = {path: path.stat().st_mtime_ns for path in Path("videos").iterdir() if path != lost}
    before = decode(lost)
    lost.unlink()
    again = generate(*command)
    assert again.code == 0 and "3 of 4 videos are there already and stay" in again.err
    assert decode(lost).equal(before)
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    done = generate(*command)
    assert (done.code, done.err) == (2, "error: all 4 videos are in videos already; --overwrite makes them again\n")


def test_capitals_are_told_apart_only_where_the_file_system_does(generate, monkeypatch):
    two = ("--layout", "vbench", "--prompt", "a 1", "--prompt", "A 1", "--count", 1, "--frames", 1, "--out", "videos")
    with monkeypatch.context() as patch:
        patch.setattr("os.path.normcase", str.lower)
        assert "would be made twice" in generate(*two).err
    assert generate(*two).code == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--prompt", "this/that"), "no file can be named 'this/that-0.mp4'"),
        (("--prompt", "x" * 300), "too long for the name of a file"),
        (("--prompt", "a 1", "--prompt", "a 1"), "would be made twice"),
        (("--prompt", "a 1", "--out", "a.mp4"), "give a folder"),
        (("--prompt", "a 1", "--png"), "leave out --png"),
        (("--timeline", "0s: a 1"), "leave out --png, --timeline"),
    ],
)
def test_what_does_not_fit_is_said(generate, options: tuple[str, ...], told: str) -> None:
    result = generate("--layout", "vbench", *options)
    assert result.code == 2 and told in result.err and len(result.err.splitlines()) == 1
    assert list(Path().iterdir()) == []
