"""What a user gets wrong: one line that says what, exit code 2, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diag_core.cli import models as cli_models
from diag_core.cli import plan as cli_plan
from diag_core.cli.outputs import check_writable
from diag_core.pictures import write_png

PROMPT = ("--prompt", "a 1")


def no_model(*_, **__):
    raise AssertionError("a model was loaded before the fault was found")


@pytest.fixture
def early(monkeypatch):
    """Makes it an error to load any model."""
    for name in ("load_dit", "vae_from_state_dict", "UMT5Encoder"):
        monkeypatch.setattr(cli_models, name, no_model)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give --prompt, --prompt-file or --timeline"),
        (("--prompt", "  "), "--prompt: the prompt is empty"),
        ((*PROMPT, "--timeline", "0s: x"), "leave out --prompt"),
        (("--timeline", "1s: a 1"), "--timeline: line 1, column 1: the first prompt starts at 1s"),
        (("--timeline", "0s: a 1; 5x: a 2"), "--timeline: line 1, column 11: 'x' is no unit"),
        (("--timeline", "@bad.txt"), "--timeline @bad.txt: line 2, column 1:"),
        (("--timeline", "@none.txt"), "--timeline @none.txt: it cannot be read"),
        (("--prompt-file", "none.txt"), "--prompt-file none.txt: it cannot be read"),
        (("--prompt-file", "blank.txt"), "blank.txt: it holds no prompts"),
        (("--prompt-file", "latin.txt"), "latin.txt: it is not UTF-8 text"),
        ((*PROMPT, "--schedule", "12x"), "--schedule: character 3"),
        ((*PROMPT, "--schedule", "100,1000"), "--schedule: character"),
        ((*PROMPT, "--shift", "-1"), "shift"),
        ((*PROMPT, "--kv-noise", "1001"), "--kv-noise: KV noise is a schedule timestep from 0 to 1000"),
        ((*PROMPT, "--window", "4", "--sink", "3"), "--window: must hold the sink and at least one chunk"),
        ((*PROMPT, "--chunk-frames", "10"), "must hold the sink and at least one chunk"),
        ((*PROMPT, "--window", "many"), "argument --window: it must be a number of latent frames, or \"all\""),
        ((*PROMPT, "--cfg", "nan"), "argument --cfg: it must be a number"),
        ((*PROMPT, "--seed", "-1"), "argument --seed: it must be a whole number from 0 on"),
        ((*PROMPT, "--count", "0"), "argument --count: it must be a whole number from 1 on"),
        ((*PROMPT, "--size", "32"), "argument --size: a size is WIDTHxHEIGHT"),
        ((*PROMPT, "--size", "40x32"), "width must be a multiple of 16"),
        ((*PROMPT, "--size", "0x32"), "width must be a multiple of 16"),
        ((*PROMPT, "--seconds", "0"), "--seconds must be above 0"),
        ((*PROMPT, "--frames", "9", "--seconds", "1"), "not allowed with argument"),
        ((*PROMPT, "--fps", "0"), "fps must be above 0"),
        ((*PROMPT, "--out", "a.gif"), "--out a.gif: give the video a name that ends in .mp4"),
        ((*PROMPT, "--out", "blank.txt/a.mp4"), "blank.txt is a file, not a folder"),
        ((*PROMPT, "--preset", "fast"), "argument --preset: invalid choice: 'fast'"),
        ((*PROMPT, "--checkpoint", "none.safetensors"), "--checkpoint none.safetensors: there is no such file"),
        ((*PROMPT, "--checkpoint", "blank.txt"), "blank.txt: "),
        ((*PROMPT, "--vae", "none.pth"), "--vae none.pth: there is no such file"),
        ((*PROMPT, "--lora", "none"), "--lora none: there is no such file"),
        ((*PROMPT, "--image", "none.png"), "--image none.png: there is no such file"),
        ((*PROMPT, "--image", "i.png", "--image-mode", "repeat", "--preset", "wan"), "a video to start from"),
        (("--timeline", "0s: a 1; 1s: a 2", "--preset", "wan"), "a timeline with several prompts"),
        ((*PROMPT, "--attention", "flash3"), "attention back end 'flash3' is not available here"),
        ((*PROMPT, "--device", "tpu9"), "--device tpu9: there is no such device"),
        ((*PROMPT, "--device", "cuda:7"), "--device cuda:7: PyTorch sees"),
        ((*PROMPT, "--resume", "none"), "none: there is no such saved video"),
        ((*PROMPT, "--save-state", "s", "--count", "2"), "are for one video; these options make 2"),
        ((*PROMPT, "--save-state", "blank.txt"), "--save-state blank.txt: blank.txt exists already"),
        ((*PROMPT, "--save-state", "s.v1"), "--save-state s.v1: s.v1.latents.safetensors exists already"),
        ((*PROMPT, "--promt", "x"), "unrecognized arguments: --promt x"),
        ((*PROMPT, "--sched", "3"), "unrecognized arguments: --sched 3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)  # fmt: skip
def test_faults_are_found_before_anything_is_loaded(generate, early, arguments, said):
    Path("bad.txt").write_text("0s: a 1\nwithout a time\n", encoding="utf-8")
    Path("blank.txt").write_text("\n \n", encoding="utf-8")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    Path("s.v1.latents.safetensors").write_bytes(b"of another video")
    write_png("i.png", torch.zeros(16, 16, 3, dtype=torch.uint8))
    before = sorted(Path().iterdir())
    result = generate(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert said in result.err
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("strange", ["notes.txt", "1.png", "000010.png/inside"])
def test_a_folder_that_holds_something_else_is_not_overwritten(generate, early, strange):
    folder = Path("o/a-1-0")
    for name in ("000001.png", strange):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"mine")
    before = sorted(Path().rglob("*"))
    result = generate(*PROMPT, "--png", "--overwrite", "--out", "o/")
    assert result.code == 2
    assert f"something else in this folder ({strange.split('/')[0]})" in result.err
    assert sorted(Path().rglob("*")) == before and (folder / "000001.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--checkpoint", "bare.safetensors"), "bare.safetensors does not say how it is sampled: choose with --preset"),
        (("--checkpoint", "bare.safetensors", "--schedule", "3"), "this checkpoint needs --text-encoder"),
        (("--checkpoint", "bare.safetensors", "--schedule", "3", "--text-encoder", "no"), "no: there is no"),
        (("--checkpoint", "lonely/dit.safetensors"), "lonely/vae.safetensors is missing: give --vae"),
    ],
)  # fmt: skip
def test_what_else_a_checkpoint_needs_is_named(generate, models, early, arguments, said):
    Path("lonely").mkdir()
    Path("lonely/dit.safetensors").symlink_to(models / "dit.safetensors")
    Path("bare.safetensors").symlink_to(models / "bare.safetensors")
    result = generate(*PROMPT, *arguments)
    assert result.code == 2
    assert said in result.err
    assert result.err.count("\n") == 1


def test_a_missing_demo_is_named(command, monkeypatch, tmp_path):
    monkeypatch.setattr(cli_plan, "DEMO", tmp_path / "demo")
    result = command("generate", *PROMPT)
    assert result.code == 2
    assert f"{tmp_path / 'demo' / 'dit.safetensors'}: the demo's checkpoint is missing" in result.err


def test_the_demo_is_found_beside_the_package(command, monkeypatch, models):
    assert Path(__file__).parents[2] / "demo" == cli_plan.DEMO
    monkeypatch.setattr(cli_plan, "DEMO", models)
    assert command("generate", *PROMPT, "--frames", 5).code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompt", "word " * 17), "17 words"),
        (("--prompt", "a 1", "--vae", "lora.txt"), "lora.txt: "),
        (("--prompt", "a 1", "--lora", "lora.txt"), "lora.txt: "),
        (("--prompt", "a 1", "--image", "lora.txt"), "lora.txt: it cannot be read as an image"),
        (("--prompt", "a 1", "--lora", "dit"), "fit nothing in this model"),
        (("--prompt", "a 1", "--vae", "dit"), "neither a Wan 2.1 VAE"),
        (("--prompt", "a 1", "--checkpoint", "vae", "--schedule", "2", "--vae", "vae"), "--text-encoder"),
    ],
)
def test_files_that_do_not_fit_leave_no_video(generate, models, arguments, said):
    Path("lora.txt").write_text("nothing of the kind")
    files = {name: models / f"{name}.safetensors" for name in ("dit", "vae")}
    result = generate(*(files.get(argument, argument) for argument in arguments), "--out", "o/a.mp4")
    assert result.code == 2
    assert said in result.err
    assert result.err.splitlines()[-1].startswith("error: ")
    assert not list(Path().rglob("*.mp4"))


def test_no_memory_left_is_an_error_that_helps(generate, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(cli_models, "load_dit", full)
    result = generate(*PROMPT)
    assert result.code == 2
    assert "not enough memory on cpu: try a smaller --size or --window" in result.err


def test_a_video_that_cannot_be_written_is_an_error(generate, monkeypatch):
    from diag_core.mp4_writer import Mp4Writer

    def full(self, pixels):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Mp4Writer, "write", full)
    result = generate(*PROMPT, "--out", "a.mp4")
    assert result.code == 2
    assert "No space left on device" in result.err
    assert list(Path().iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that not even an administrator can write to")
def test_a_folder_that_cannot_be_written_to(generate, early):
    result = generate(*PROMPT, "--out", "/proc/a.mp4")
    assert result.code == 2 and "/proc: /proc cannot be written to" in result.err


def test_a_drive_that_is_not_there(monkeypatch):
    """On Windows, where the root of a path may be missing too."""
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with pytest.raises(FileNotFoundError, match=r"a/b: .* is not there"):
        check_writable(Path("a/b"))
