"""The commands of Wan's size in two processes: the same results as in one, and no process ever holds a whole model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from two_processes import ended, run, start
from wan_models import CONFIG, PROMPTS, random_dit, write_text_encoder

from diag_core import WanConfig
from diag_core.checkpoint import save_dit
from diag_core.vae import TinyVAE, TinyVAEConfig
from training.__main__ import main
from training.logbook import read_log

pytestmark = pytest.mark.filterwarnings("ignore:ComfyUI will misread")
EXACT = ["video.width=32", "video.height=32", "video.latent_frames=6", "precision=fp32"]
LOOP = ["steps=2", "batch=2", "save_every=1", "log_every=1", "learning_rate=1e-3", "ema=0.5"]
PAIRS = ["steps=4", "shards=3", "pairs_a_shard=2", "points=1000,750,500", "sharded=true", "weights_precision=fp32"]
HEALTHY = [f"limits.{name}" for name in ("static=0", "flashing=1e9", "saturated=1e9", "washed_out=0", "harsh=1e9")]
CLOSE = 1e-5


def commands(folder: Path, out: Path) -> list[list[str]]:
    """Every stage: pairs of a sharded teacher, sample videos, a LoRA, and a teacher that is larger than the student."""
    student, teacher = folder / "student.safetensors", folder / "teacher.safetensors"

    def stage(name: str, *more: object, generator: Path = student) -> list[str]:
        files = {"generator": generator, "teacher": student, "embeddings": folder / "embeddings", "out": out}
        given = [text for key, path in files.items() for text in (f"--{key}", str(path))]
        return [name, *given, "--device", "cpu", *EXACT, *map(str, more)]

    distil = [*LOOP, "generator_every=1", "critic_learning_rate=1e-3", "weights_precision=fp32"]
    samples = ["--vae", folder / "taew2_1.safetensors", "sample_every=2", "sample_prompts=3", *HEALTHY]
    larger = ["--teacher", teacher, "--critic", student]
    return [
        stage("ode-pairs", *PAIRS),
        stage("ode-init", *LOOP),
        stage("stage1", *distil, *samples, generator=out / "ode_init.safetensors"),
        stage("stage2", *distil, "lora.rank=4", "lora.critic=false", *larger, generator=out / "stage1.safetensors"),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one/ and two/: all stages by one process and by two."""
    folder = tmp_path_factory.mktemp("wan_distributed")
    save_dit(folder / "student.safetensors", random_dit(), CONFIG)
    larger = replace(CONFIG, num_layers=2, ffn_dim=160)
    save_dit(folder / "teacher.safetensors", random_dit(1, larger), larger)
    save_file(TinyVAE(TinyVAEConfig(patch_size=1)).state_dict(), folder / "taew2_1.safetensors")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    encoder, embeddings = write_text_encoder(folder / "umt5"), folder / "embeddings"
    files = ["--prompts", folder / "prompts.txt", "--text-encoder", encoder, "--out", embeddings]
    assert main(["embed", *map(str, files), "--device", "cpu"]) == 0
    (folder / "commands.json").write_text(json.dumps(commands(folder, folder / "two")))
    run(f"commands={folder}")
    for command in commands(folder, folder / "one"):
        assert main(command) == 0
    return folder


@pytest.mark.parametrize("name", ["ode_init", "stage1", "stage2", "stage2.lora", *(f"pairs_000{i}" for i in range(3))])
def test_results_are_those_of_one_process(folder: Path, name: str) -> None:
    where = "ode_pairs/" if name.startswith("pairs") else ""
    one, two = (load_file(folder / number / f"{where}{name}.safetensors") for number in ("one", "two"))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        close = 1e-3 if key == "points" else CLOSE  # they are float16
        torch.testing.assert_close(two[key], tensor, atol=close, rtol=close)


def test_the_critic_that_is_handed_on_is_that_of_one_process(folder: Path) -> None:
    one, two = (load_file(folder / number / "stage1.critic.safetensors") for number in ("one", "two"))
    assert one.keys() == two.keys()
    begun = {name: tensor.bfloat16() for name, tensor in random_dit().state_dict().items()}

    def differing(weights: dict[str, torch.Tensor]) -> float:
        """Share of them, for what is as good as equal may round to two numbers in bfloat16."""
        return float(torch.cat([(weights[name] != one[name]).flatten() for name in one]).float().mean())

    assert differing(two) < 0.01 < 0.2 < differing(begun)


@pytest.mark.parametrize("stage", ["ode_init", "stage1", "stage2"])
def test_logs_and_samples_are_those_of_one_process(folder: Path, stage: str) -> None:
    one, two = (read_log(folder / number / stage) for number in ("one", "two"))
    assert [entry.keys() for entry in one] == [entry.keys() for entry in two]
    for mine, theirs in zip(one, two, strict=True):
        # Samples may be of bf16, which one process and two round in other places.
        assert theirs == pytest.approx(mine, rel=0.02 if "sample/motion" in mine else CLOSE, abs=1e-6)


def test_sample_videos_of_student_and_teacher_are_written(folder: Path) -> None:
    for number in ("one", "two"):
        names = {path.name for path in (folder / number / "stage1" / "samples").glob("*.mp4")}
        assert names == {"teacher.mp4", "step_000002.mp4"}


def test_a_model_is_loaded_by_shares(tmp_path: Path) -> None:
    config = WanConfig(dim=512, ffn_dim=2048, num_heads=4, num_layers=8)
    save_dit(tmp_path / "model.safetensors", random_dit(config=config), config)
    size = (tmp_path / "model.safetensors").stat().st_size
    run(f"memory={tmp_path}")
    for rank in range(2):
        assert json.loads((tmp_path / f"memory_{rank}.json").read_text()) < 0.75 * size


def test_commands_for_one_process_say_so(folder: Path, tmp_path: Path) -> None:
    given = ["--prompts", folder / "prompts.txt", "--text-encoder", folder / "umt5", "--out", tmp_path / "out"]
    for command in (["embed", *given], ["export", folder / "one", "--out", tmp_path / "out.safetensors"]):
        (tmp_path / "commands.json").write_text(json.dumps([list(map(str, command))]))
        (first, told), (second, silent) = ended(start(f"commands={tmp_path}"))
        assert (first, second) == (2, 2)
        assert f"error: {command[0]} is for one process: run it without torchrun" in told and "error" not in silent
    assert [path.name for path in tmp_path.iterdir()] == ["commands.json"]


def test_what_is_wrong_is_told_once_and_nothing_is_begun(folder: Path, tmp_path: Path) -> None:
    (command := commands(folder, tmp_path / "out")[0]).append("negative_prompt=never embedded")
    (tmp_path / "commands.json").write_text(json.dumps([command]))
    (first, told), (second, silent) = ended(start(f"commands={tmp_path}"))
    assert (first, second) == (2, 2)
    assert "has no embedding of the recipe's negative_prompt" in told and "Traceback" not in told
    assert "error" not in silent and not (tmp_path / "out").exists()
