"""What the commands of Wan's size say when something is missing or does not fit, and that nothing is left behind."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from wan_models import CONFIG, PROMPTS, random_dit, write_layouts, write_text_encoder

from diag_core.checkpoint import PRESETS, save_dit
from training.__main__ import main
from training.recipes.wan import VideoSize, ode_pairs, stage1
from training.stages.ode_pairs import save_shard
from training.wan import lora as wan_lora
from training.wan import room
from training.wan.inputs import examine
from training.wan.prompts import read_prompts
from training.wan.setup import Setup

SMALL = ("video.width=32", "video.height=32", "video.latent_frames=6", "batch=2", "steps=1")
pytestmark = pytest.mark.filterwarnings("ignore:ComfyUI will misread")


class Files(NamedTuple):
    generator: Path
    teacher: Path
    embeddings: Path
    text_encoder: Path
    prompts: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    layouts, encoder = write_layouts(folder), write_text_encoder(folder / "umt5")
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    made = Files(layouts["self_forcing"], layouts["original"], folder / "embeddings", encoder, prompts)
    assert embed(made) == 0
    return made


def embed(files: Files, *more: object, **changed: object) -> int:
    own = {"--prompts": files.prompts, "--text-encoder": files.text_encoder, "--out": files.embeddings, **changed}
    given = [str(part) for item in own.items() for part in item]
    return main(["embed", *given, "--shard-size", "2", "--device", "cpu", *map(str, more)])


@pytest.fixture
def stage(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs a stage that must fail, with some files replaced (None: left out): its one line of error."""

    def run(name: str, *more: str, fields: tuple[str, ...] = SMALL, **changed: Path | None) -> str:
        own = {"generator": files.generator, "teacher": files.teacher, "embeddings": files.embeddings, **changed}
        given = [part for key, path in own.items() if path is not None for part in (f"--{key}", str(path))]
        capsys.readouterr()
        code = main([name, *given, "--out", str(tmp_path / "out"), "--device", "cpu", *fields, *more])
        lines = capsys.readouterr().err.strip().splitlines()
        assert code == 2 and lines[0].startswith("error: "), lines
        assert not (tmp_path / "out").exists()  # nothing was begun
        return "\n".join(lines)

    return run


def test_missing_options_and_files(stage, files: Files, tmp_path: Path) -> None:
    assert "--generator is missing: give a Wan 2.1 checkpoint" in stage("stage1", generator=None)
    assert "--teacher is missing" in stage("ode-pairs", teacher=None, fields=SMALL[:3])
    assert "--embeddings is missing: give the folder that `python -m training embed` wrote" in stage(
        "stage1", embeddings=None
    )
    assert "there is no such file. Check the path" in stage("stage1", generator=tmp_path / "none.pt")
    assert "there are no embeddings" in stage("stage1", embeddings=tmp_path)
    assert "--vae" in stage("stage1", "--vae", str(tmp_path / "vae.pth"))
    assert "neither a Wan 2.1 VAE" in stage("stage1", "--vae", str(files.teacher))
    assert "--vae is for stages that train" in stage("ode-pairs", "--vae", str(files.teacher), fields=SMALL[:3])
    assert "Make them with the stage ode-pairs first" in stage("ode-init")


def test_fields_and_options(stage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        stage("stage1", "learning_rat=1")
        == "error: the recipe has no field 'learning_rat'; did you mean learning_rate?"
    )
    assert "takes a number" in stage("stage1", "learning_rate=fast")
    assert "micro_batch=2 does not divide the 3 videos" in stage("stage1", "batch=3", "micro_batch=2", fields=SMALL[:3])
    assert "weights_precision must be fp32 where precision is fp32" in stage("stage1", "precision=fp32")
    assert "attention must be one of auto, sdpa" in stage("stage1", "attention=sage")
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    assert "attention back end 'flash3' is not available here" in stage("stage1", "attention=flash3")
    assert "--part is for ode-pairs" in stage("stage1", "--part", "0/2")
    assert "--part 8/8: give two whole numbers" in stage("ode-pairs", "--part", "8/8", fields=())
    assert "--tflops must be above 0" in stage("stage1", "--tflops", "0")
    assert "there is no such device" in stage("stage1", "--device", "gpu")


def test_checkpoints_that_do_not_fit(stage, files: Files, tmp_path: Path) -> None:
    other = replace(CONFIG, text_dim=64)
    save_dit(tmp_path / "text.safetensors", random_dit(config=other), other)
    told = stage("stage1", teacher=tmp_path / "text.safetensors", critic=files.teacher)
    assert "--teacher does not fit --generator: its text_dim is 64, the generator's is 32" in told
    deep = replace(CONFIG, num_layers=2)
    save_dit(tmp_path / "deep.safetensors", random_dit(config=deep), deep)
    told = stage("stage1", teacher=tmp_path / "deep.safetensors")
    assert "--critic is missing: the teacher is of another size than the generator" in told
    save_dit(tmp_path / "student.safetensors", random_dit(), CONFIG, PRESETS["diagdistill"])
    told = stage("stage1", teacher=tmp_path / "student.safetensors")
    assert "this is a causal student; the teacher must be a bidirectional Wan 2.1 model" in told
    (tmp_path / "cut.safetensors").write_bytes(files.teacher.read_bytes()[:-100])
    assert "it is cut short" in stage("stage1", generator=tmp_path / "cut.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "none.safetensors")
    assert "it is no Wan 2.1 DiT" in stage("stage1", generator=tmp_path / "none.safetensors")


def test_a_frozen_student_that_does_not_say_how_it_is_sampled(stage, files: Files, tmp_path: Path) -> None:
    told = stage("stage2")
    assert f"--generator {files.generator}: it does not say how it is sampled" in told
    assert f"`python -m diag_core convert {files.generator} NEW.safetensors --preset longlive`" in told
    save_dit(tmp_path / "wan.safetensors", random_dit(), CONFIG, PRESETS["wan"])
    assert "this is a bidirectional model" in stage("stage2", generator=tmp_path / "wan.safetensors")
    save_dit(tmp_path / "six.safetensors", random_dit(), CONFIG, replace(PRESETS["longlive"], chunk_frames=6))
    told = stage("stage2", "video.latent_frames=9", generator=tmp_path / "six.safetensors", fields=SMALL[:2])
    assert "makes chunks of 6 latent frames" in told


def test_embeddings_that_do_not_fit(stage, files: Files, tmp_path: Path) -> None:
    copy = tmp_path / "embeddings"
    shutil.copytree(files.embeddings, copy)
    told = stage("stage1", "negative_prompt=blurred", embeddings=copy)
    assert "has no embedding of the recipe's negative_prompt" in told and "--negative" in told
    shard = copy / "prompts_00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    told = stage("stage1", embeddings=copy)
    assert f"{shard}: it is cut short" in told and "run embed again" in told
    shard.unlink()
    assert "this shard of the embeddings is missing. Run embed again" in stage("stage1", embeddings=copy)
    assert embed(files, **{"--out": copy}) == 0
    assert shard.read_bytes() == content  # the one that was missing was made anew
    index = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({**index, "complete": False}))
    assert "are not finished. Run the same embed command again" in stage("stage1", embeddings=copy)
    (copy / "index.json").write_text("{")
    assert "index.json: it cannot be read" in stage("stage1", embeddings=copy)


def test_a_damaged_embedding_is_told_before_anything_is_loaded(stage, files: Files, tmp_path: Path) -> None:
    copy = tmp_path / "embeddings"
    shutil.copytree(files.embeddings, copy)
    shard = copy / "prompts_00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    told = stage("stage1", embeddings=copy)
    assert told.startswith(f"error: {shard}: embedding 0 is damaged. Delete the file and run embed again")


def test_pairs_that_do_not_fit(stage, files: Files, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    points, sigmas = torch.zeros(2, 4, 16, 6, 4, 4, dtype=torch.float16), torch.tensor([1, 0.9, 0.8, 0])
    save_shard(pairs / "pairs_0000.safetensors", points, sigmas, list(PROMPTS[:2]))
    command = ("--pairs", str(pairs))
    assert "the trajectories are of latents [16, 6, 4, 4]" in stage("ode-init", *command, fields=("batch=2",))
    save_shard(pairs / "pairs_0001.safetensors", points, sigmas, ["a 1", "a 2"])
    assert "has no embedding of 2 prompts of the pairs, such as 'a 1'" in stage("ode-init", *command)
    (pairs / "pairs_0001.safetensors").write_bytes(b"12")
    told = stage("ode-init", *command)
    assert "pairs_0001.safetensors: it ends inside its header" in told and "run ode-pairs again" in told


def test_damaged_pairs_are_told_before_anything_is_loaded(stage, tmp_path: Path) -> None:
    shard = tmp_path / "pairs" / "pairs_0000.safetensors"
    points = torch.zeros(2, 4, 16, 6, 4, 4, dtype=torch.float16)
    save_shard(shard, points, torch.tensor([1, 0.9, 0.8, 0]), list(PROMPTS[:2]))
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    told = stage("ode-init", "--pairs", str(shard.parent))
    assert told.startswith(f"error: {shard}: trajectory 1 is damaged. Delete it and run ode-pairs again")


def test_memory_and_disk(stage, monkeypatch: pytest.MonkeyPatch) -> None:
    told = stage("stage1", "--gpu-memory", "0.001", "checkpointing=false")
    assert "too little GPU memory: about" in told and "checkpointing=true, lora.rank=64, more GPUs" in told
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage)
    told = stage("stage1")
    assert "saved states" in told and "its critic" in told and "0.0 GB are free. Free some space" in told


def test_pairs_are_written_where_pairs_says(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    full = shutil.disk_usage("/")._replace(free=1000)

    def usage(path: Path) -> tuple[int, int, int]:
        asked.append(path)
        return full

    monkeypatch.setattr(room.shutil, "disk_usage", usage)
    (there := tmp_path / "large").mkdir()
    recipe = replace(ode_pairs(), video=VideoSize(width=32, height=32, latent_frames=6))
    setup = Setup(
        stage="ode-pairs", recipe=recipe, out=tmp_path / "out", embeddings=files.embeddings, teacher=files.teacher,
        pairs=there / "pairs",
    )  # fmt: skip
    told = examine(setup).wrong
    assert asked == [there] and told[0].startswith(f"--pairs {there / 'pairs'}: pairs 0.3 GB are needed")


def test_states_that_are_there_need_no_more_disk(files: Files, tmp_path: Path) -> None:
    video = VideoSize(width=32, height=32, latent_frames=6)
    recipe = replace(stage1(), video=video, batch=2, steps=200, save_every=50)
    setup = Setup(
        stage="stage1", recipe=recipe, out=tmp_path, embeddings=files.embeddings, generator=files.generator,
        teacher=files.teacher,
    )  # fmt: skip
    state = 28 * sum(p.numel() for p in random_dit().parameters())  # student 16 bytes a weight, critic 12
    states = setup.folder / "checkpoints"

    def needed(steps: int = 200) -> int:
        inputs = examine(replace(setup, recipe=replace(recipe, steps=steps)))
        assert not inputs.wrong
        return inputs.needed["saved states"]

    # Two are kept, a third is written before the oldest goes.
    assert [needed(steps) for steps in (200, 120, 100, 30)] == [3 * state, 3 * state, 2 * state, state]
    for step in (50, 100):
        (states / f"step_{step:06d}").mkdir(parents=True)
        (states / f"step_{step:06d}" / "manifest.json").write_text("{}")
    assert [needed(steps) for steps in (200, 120, 100, 50)] == [state, state, 0, 0]
    (states / ".step_000150.part").mkdir()
    (states / ".step_000150.part" / "__0_0.distcp").write_bytes(bytes(1000))
    assert needed() == state - 1000
    setup.result.write_bytes(b"")
    assert examine(setup).needed == {}


def test_peft_is_asked_for_before_anything_is_loaded(stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ValueError("lora.rank needs the library peft")

    monkeypatch.setattr(wan_lora, "require_peft", missing)
    monkeypatch.setattr("training.wan.stages.require_peft", missing)
    assert "needs the library peft" in stage("stage1", "lora.rank=4")


def test_weights_and_biases_is_asked_for_before_anything_is_loaded(stage, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else find(name, *more))
    assert "pip install wandb, or leave the field empty" in stage("stage1", "wandb=digits")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"\n \n", "it holds no prompts"),
        ("a.txt", b"caf\xe9", "it is not UTF-8 text"),
        ("a.jsonl", b'{"prompt": "a 1"}\n{"prompt"', "a.jsonl, line 2: it is no JSON"),
        ("a.jsonl", b'{"title": "a 1"}', "line 1: it has no text under any of prompt, text, caption"),
    ],
)
def test_prompts_that_cannot_be_read(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert embed(files, **{"--prompts": tmp_path / name, "--out": tmp_path / "out"}) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_prompts_are_read_from_text_and_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a 1\n\n  a 2 \na 1\nline\u2028separator\n", encoding="utf-8")
    assert read_prompts(tmp_path / "a.txt") == ["a 1", "a 2", "line\u2028separator"]
    (tmp_path / "a.jsonl").write_text('{"caption": "a 1"}\n{"text": "a 2", "x": 1}\n"a 3"\n', encoding="utf-8")
    assert read_prompts(tmp_path / "a.jsonl") == ["a 1", "a 2", "a 3"]


def test_embeddings_of_other_prompts_or_another_encoder(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("another prompt")
    assert embed(files, **{"--prompts": tmp_path / "a.txt"}) == 2
    assert "was begun with other prompts" in capsys.readouterr().err
    assert embed(files, "--text-len", "64") == 2
    assert "was begun with another text encoder" in capsys.readouterr().err
    assert embed(files, **{"--text-encoder": tmp_path / "none", "--out": tmp_path / "out"}) == 2
    assert not (tmp_path / "out").exists()


def test_exports_that_cannot_be(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(result: Path, out: Path, *more: str) -> str:
        assert main(["export", str(result), "--out", str(out), *more]) == 2
        return capsys.readouterr().err

    out = tmp_path / "a.safetensors"
    assert "there is no such result" in told(tmp_path / "none", out)
    assert "it holds no result" in told(tmp_path, out)
    assert "give it that ending" in told(files.teacher, tmp_path / "a.pt")
    assert "does not say how it is sampled" in told(files.teacher, out)
    assert "Leave out --lora" in told(files.teacher, out, "--lora")
    assert "there is no folder" in told(files.teacher, tmp_path / "b" / "a.safetensors")
    out.write_bytes(b"")
    assert "--overwrite" in told(files.teacher, out)
    (tmp_path / "run" / "stage1").mkdir(parents=True)
    (tmp_path / "run" / "stage1" / "recipe.json").write_bytes(b"")
    assert "no stage in it is finished" in told(tmp_path / "run", tmp_path / "b.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "run"]


def test_a_dry_run_says_all_of_it_and_writes_nothing(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = tmp_path / "student.safetensors"
    save_dit(generator, random_dit(), CONFIG, PRESETS["longlive"])
    command = ["stage2", "--generator", str(generator), "--teacher", str(files.teacher), "--out",
               str(tmp_path / "out"), "--dry-run", "--gpus", "2", "--gpu-memory", "80", "--device", "cpu"]  # fmt: skip
    assert main([*command, "--embeddings", str(files.embeddings), "--tflops", "100", *SMALL]) == 0
    shown = capsys.readouterr().out
    count = sum(p.numel() for p in random_dit().parameters())
    assert f"generator: {generator}, {count:,} parameters, width 128, 1 blocks, float32" in shown
    assert "memory of each of 2 GPUs" in shown and "of 80.0 GiB" in shown and "activations, checkpointed" in shown
    assert "at 100 TFLOP/s on each of 2 GPUs (an estimate, not measured)" in shown
    assert "an iteration (a generator update every 5)" in shown and "WRONG" not in shown
    # All that is wrong is listed, not the first fault alone.
    assert main([*command, "--critic", str(tmp_path / "none.pt"), *SMALL]) == 2
    told = capsys.readouterr()
    assert told.out.count("WRONG: ") == 2 and told.err == (
        "error: 2 of these would stop the training: see WRONG above\n"
    )
    assert not (tmp_path / "out").exists()


def test_fields_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stage2", "--fields", "batch=8"]) == 0
    shown = capsys.readouterr().out
    assert "batch=8  (whole number)\n    videos of an update" in shown and "lora.rank=0  (whole number)" in shown
