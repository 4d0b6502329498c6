"""Ctrl-C, and going on another time: the same video as in one go."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import av
import pytest
import torch
from tiny_models import decode, press_at

from diag_core import SamplerState
from diag_core.cli.interrupt import deferred_interrupt
from diag_core.mp4_writer import Mp4Writer
from diag_core.pictures import write_png
from diag_core.safetensors_file import SafetensorsFile, write_safetensors

ROOT = Path(__file__).parents[2]
PROMPT = ("--prompt", "a red 3", "--seed", 5)


@pytest.fixture
def whole(generate):
    """57 pixel frames made in one go."""
    assert generate(*PROMPT, "--frames", 57, "--out", "whole.mp4").code == 0
    return decode("whole.mp4")


@pytest.mark.parametrize("frames", [33, 25, 31, 1])
def test_going_on_equals_one_run(generate, whole, frames):
    """Also from a length that is no whole number of chunks, or of latent frames."""
    first = generate(*PROMPT, "--frames", frames, "--save-state", "s", "--out", "first.mp4")
    assert first.code == 0, first.err
    assert 's and s.latents.safetensors: saved, --resume "s" goes on' in first.out
    assert torch.equal(decode("first.mp4"), whole[:frames])
    second = generate("--resume", "s", "--frames", 57, "--out", "second.mp4")
    assert second.code == 0, second.err
    assert "seed       5" in second.out
    assert torch.equal(decode("second.mp4"), whole)


def test_going_on_twice_in_the_same_file(generate, whole):
    assert generate(*PROMPT, "--frames", 21, "--save-state", "s", "--out", "a.mp4").code == 0
    assert generate("--resume", "s", "--save-state", "s", "--frames", 45, "--out", "b.mp4").code == 0
    assert generate("--resume", "s", "--frames", 57, "--out", "c.mp4").code == 0
    assert torch.equal(decode("c.mp4"), whole)


def test_states_whose_names_differ_in_the_ending_share_nothing(generate, whole):
    assert generate(*PROMPT, "--frames", 33, "--save-state", "clip.v1", "--out", "a.mp4").code == 0
    assert generate("--prompt", "a blue 7", "--frames", 33, "--save-state", "clip.v2", "--out", "b.mp4").code == 0
    result = generate("--resume", "clip.v1", "--frames", 57, "--out", "c.mp4")
    assert result.code == 0, result.err
    assert torch.equal(decode("c.mp4"), whole)


def test_files_of_two_states_are_not_mixed(generate):
    assert generate(*PROMPT, "--frames", 33, "--save-state", "s", "--out", "a.mp4").code == 0
    for name, length in (("t", 45), ("u", 57)):  # two ways on from the same place
        assert generate("--resume", "s", "--frames", length, "--save-state", name, "--out", f"{name}.mp4").code == 0
    shutil.copy("u.latents.safetensors", "t.latents.safetensors")
    result = generate("--resume", "t", "--frames", 69, "--out", "b.mp4")
    assert result.code == 2
    assert "error: t.latents.safetensors: it does not hold the latents that lead to t" in result.err


def test_a_state_whose_renewal_failed_finds_its_latents(generate, whole, monkeypatch):
    assert generate(*PROMPT, "--frames", 21, "--save-state", "s", "--out", "a.mp4").code == 0

    def full(self, path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SamplerState, "save", full)
        assert generate("--resume", "s", "--save-state", "s", "--frames", 45, "--out", "b.mp4").code == 2
    result = generate("--resume", "s", "--frames", 57, "--out", "c.mp4")
    assert result.code == 0, result.err
    assert torch.equal(decode("c.mp4"), whole)


def test_states_of_earlier_versions_are_gone_on_with(generate, whole):
    """Their latents lie beside them under another name, and neither file has an id."""
    assert generate(*PROMPT, "--frames", 33, "--save-state", "clip.state", "--out", "a.mp4").code == 0
    for old, name in (("clip.state", "clip.state"), ("clip.state.latents.safetensors", "clip.latents.safetensors")):
        file = SafetensorsFile(Path(old))
        metadata = {key: value for key, value in file.metadata.items() if key != "diagdistill-saves"}
        if "state" in metadata:
            document = json.loads(metadata["state"])
            del document["id"]
            metadata["state"] = json.dumps(document)
        else:
            assert metadata != file.metadata
        tensors = {key: file.read(key) for key in file.specs}
        Path(old).unlink()
        write_safetensors(Path(name), file.specs, tensors.__getitem__, metadata)
    result = generate("--resume", "clip.state", "--save-state", "clip.state", "--frames", 45, "--out", "b.mp4")
    assert result.code == 0, result.err
    result = generate("--resume", "clip.state", "--frames", 57, "--out", "c.mp4")
    assert result.code == 0, result.err
    assert torch.equal(decode("c.mp4"), whole)


def test_a_video_is_gone_on_with_as_it_began(generate):
    """Size, rate, timeline, image and sampling options need not be given again."""
    write_png(
        "i.png", torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    )
    options = ("--timeline", "0c: a 1; 2c: a 2", "--size", "48x32", "--fps", 10, "--image", "i.png", "--image-mode",
               "repeat", "--kv-noise", 50, "--blend-chunks", 2, "--recache-sink", "--seed", 3)  # fmt: skip
    assert generate(*options, "--frames", 57, "--out", "whole.mp4").code == 0
    assert generate(*options, "--frames", 33, "--save-state", "s", "--out", "a.mp4").code == 0
    result = generate("--resume", "s", "--frames", 57, "--out", "b.mp4")
    assert result.code == 0, result.err
    assert "[saved video]" in result.out
    assert torch.equal(decode("b.mp4"), decode("whole.mp4"))
    with av.open("b.mp4") as container:
        assert float(container.streams.video[0].average_rate) == 10


def test_a_new_prompt_from_where_it_stopped(generate, whole):
    assert generate(*PROMPT, "--frames", 33, "--save-state", "s", "--out", "a.mp4").code == 0
    result = generate("--resume", "s", "--timeline", "0s: a red 3; 9lf: a blue 7", "--frames", 57, "--out", "b.mp4")
    assert result.code == 0, result.err
    assert torch.equal(decode("b.mp4")[:33], whole[:33])
    assert not torch.equal(decode("b.mp4")[33:], whole[33:])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--frames", 33), "holds 9 latent frames already: ask for more"),
        ((), "holds 9 latent frames already: ask for more"),
        (("--frames", 57, "--schedule", "3"), "the state is of a video with another schedule"),
        (("--frames", 57, "--size", "16x16"), "the state is of a video with another size"),
        (("--frames", 57, "--image", "i.png"), "leave all but one of them out"),
        (("--frames", 57, "--count", 2), "these options make 2"),
    ],
)
def test_what_does_not_go_on_from_there(generate, arguments, said):
    write_png("i.png", torch.zeros(16, 16, 3, dtype=torch.uint8))
    assert generate(*PROMPT, "--frames", 33, "--save-state", "s", "--out", "a.mp4").code == 0
    result = generate("--resume", "s", *arguments, "--out", "b.mp4")
    assert result.code == 2
    assert said in result.err
    assert not list(Path().glob("b*"))


@pytest.mark.parametrize("damage", ["state", "latents", "no latents", "cut latents", "request"])
def test_damaged_states_are_named(generate, damage):
    assert generate(*PROMPT, "--frames", 33, "--save-state", "s", "--out", "a.mp4").code == 0
    latents = Path("s.latents.safetensors")
    content = latents.read_bytes()
    if damage == "state":
        Path("s").write_bytes(b"no state")
    elif damage == "latents":
        latents.write_bytes(b"no latents")
    elif damage == "no latents":
        latents.unlink()
    elif damage == "cut latents":
        latents.write_bytes(content[:-7])
    else:
        latents.write_bytes(content.replace(b'\\"entries\\"', b'\\"entriez\\"'))
        assert latents.read_bytes() != content
    result = generate("--resume", "s", "--frames", 57, "--out", "b.mp4")
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith(("error: s: ", "error: s cannot", "error: s.latents.safetensors"))
    assert not list(Path().glob("b*"))


def test_ctrl_c_keeps_the_finished_chunks_and_the_state(generate, whole, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        press_at(patch, 3)
        result = generate(*PROMPT, "--frames", 57, "--out", "a.mp4", "--save-state", "s")
    assert result.code == 130
    assert "interrupted: 33 pixel frames are in a.part.mp4" in result.err
    assert torch.equal(decode("a.part.mp4"), whole[:33])
    assert not Path("a.mp4").exists()
    assert signal.getsignal(signal.SIGINT) == before
    result = generate("--resume", "s", "--out", "b.mp4")  # to the length it was to have
    assert result.code == 0, result.err
    assert torch.equal(decode("b.mp4"), whole)


def test_a_video_that_cannot_get_its_name_keeps_the_state(generate, whole, monkeypatch):
    """On Windows, because a player has it open."""

    def refuse(self: Mp4Writer) -> None:
        raise OSError("a.mp4: the whole video is in a.part.mp4")

    with monkeypatch.context() as patch:
        patch.setattr(Mp4Writer, "close", refuse)
        result = generate(*PROMPT, "--frames", 33, "--out", "a.mp4", "--save-state", "s")
    assert result.code == 2 and "the whole video is in a.part.mp4" in result.err
    assert generate("--resume", "s", "--frames", 57, "--out", "b.mp4").code == 0
    assert torch.equal(decode("b.mp4"), whole)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_a_state_that_is_read_is_not_kept_open(generate, whole):
    """Windows would not let it be saved over."""
    assert generate(*PROMPT, "--frames", 33, "--out", "a.mp4", "--save-state", "kept-state").code == 0
    state = SamplerState.load("kept-state")
    assert state.history and "kept-state" not in Path("/proc/self/maps").read_text()


def test_ctrl_c_before_the_first_chunk_leaves_nothing(generate, monkeypatch):
    press_at(monkeypatch, 0)
    result = generate(*PROMPT, "--frames", 57, "--out", "a.mp4", "--save-state", "s")
    assert result.code == 130
    assert "interrupted: no frame was finished" in result.err
    assert "no state to save" in result.err
    assert list(Path().iterdir()) == []


def test_ctrl_c_ends_all_videos(generate, monkeypatch):
    press_at(monkeypatch, 1)
    result = generate("--prompt", "a 1", "--prompt", "a 2", "--frames", 81, "--out", "a.mp4")
    assert result.code == 130
    assert [path.name for path in Path().iterdir()] == ["a-1.part.mp4"]


def test_ctrl_c_waits_for_the_next_check():
    with deferred_interrupt() as check:
        signal.raise_signal(signal.SIGINT)  # raises nothing here: in the midst of a forward, say
        with pytest.raises(KeyboardInterrupt):
            check()


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it waited")


def test_other_threads_work_without_signals():
    done = []

    def work() -> None:
        with deferred_interrupt() as check:
            check()
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_a_real_ctrl_c(models, tmp_path):
    """A process of its own, as on a terminal: interrupted in the midst of a long video."""
    arguments = ["generate", "--checkpoint", str(models / "dit.safetensors"), "--prompt", "a 1", "--size", "32x32",
                 "--frames", "40001", "--out", str(tmp_path / "a.mp4")]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "diag_core", *arguments], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("9/40001 frames")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    last = err.splitlines()[-1]
    assert last.startswith("interrupted: ")
    assert last.endswith(f"pixel frames are in {tmp_path / 'a.part.mp4'}")
    assert len(decode(tmp_path / "a.part.mp4")) == int(last.split()[1]) >= 9
    with av.open(str(tmp_path / "a.part.mp4")) as container:
        assert json.loads(container.metadata["comment"])["seed"] == 0
