"""All stages from nothing to the scored checkpoint, by the command line, and what it says when something is wrong."""

from __future__ import annotations

import errno
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from saved_states import saved_weights

from diag_core import WanConfig, WanDiT
from diag_core.checkpoint import CheckpointSettings, load_dit, save_dit
from training.__main__ import main
from training.distillation_pictures import draw_playing
from training.logbook import read_log
from training.recipes import wan
from training.recipes.moving_digits import cpu, cpu_long, smoke
from training.stages.distil import Distil
from training.stages.moving_digits import STAGES

RESULTS = (
    "vae",
    "classifier",
    "looks",
    "motion",
    "videos",
    "teacher",
    "ode_init",
    "stage1",
    "stage1_critic",
    "stage2",
    "dit",
)


def toy(folder: Path, *more: str) -> int:
    return main(["toy", "--recipe", "toy-smoke", "--out", str(folder), "--device", "cpu", *more])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke recipe's folder after all stages."""
    folder = tmp_path_factory.mktemp("smoke")
    assert toy(folder) == 0
    return folder


@pytest.fixture()
def told(capsys: pytest.CaptureFixture[str]):
    """The one line that an error gives."""

    def read() -> str:
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return read


def test_every_stage_leaves_its_result(done: Path) -> None:
    for name in RESULTS:
        assert (done / f"{name}.safetensors").stat().st_size < 15_000_000
    for stage, steps in (("ode_init", 2), ("stage1", 4), ("stage2", 4)):
        entries = read_log(done / stage)
        assert entries[-1]["step"] == steps
        assert {"sample/digit", "sample/motion", "sample/saturation", "sample/contrast"} <= set(entries[-1])
        assert (done / stage / "samples" / "teacher.mp4").exists()
    for sample in ("autoencoder/samples/step_000002", "ode_pairs/samples/ends"):
        assert all((done / f"{sample}.{ending}").exists() for ending in ("mp4", "png"))
        assert list((done / stage / "tensorboard").iterdir())
    assert {path.stem for path in (done / "scores").iterdir()} == {"teacher", "ode_init", "stage1", "dit"}


def test_the_checkpoint_says_how_to_sample_it(done: Path) -> None:
    loaded = load_dit(done / "dit.safetensors")
    assert loaded.settings == CheckpointSettings(
        schedule="4322222", shift=5.0, kv_noise=100.0, reuse_last_step=True, window_frames=12, sink_frames=3,
        step="renoise", cfg=1.0, text_encoder="demo-clauses", title="moving digits", license="Apache-2.0",
    )  # fmt: skip
    assert loaded.config.text_len == 32
    assert next(loaded.model.parameters()).dtype == torch.bfloat16
    stage1 = load_dit(done / "stage1.safetensors").settings
    assert stage1 is not None and stage1.schedule == "4" and stage1.title == "moving digits, stage 1"


def test_what_is_done_is_not_done_again(done: Path) -> None:
    # The export is written anew, from what is there, and to the same bytes.
    files = [path for path in done.rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    assert toy(done) == 0
    again = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in done.rglob("*") if path.is_file()}
    assert again.keys() == before.keys()
    assert all(again[path][0] == before[path][0] for path in before)
    assert {path.name for path in before if again[path][1] != before[path][1]} <= {"dit.safetensors"}


def test_one_stage_alone_on_another_machine(done: Path, tmp_path: Path) -> None:
    """Only the results that a stage reads are needed, and it gives what it gave in the whole run."""
    for name in ("vae", "classifier", "teacher", "stage1", "stage1_critic"):
        (tmp_path / f"{name}.safetensors").write_bytes((done / f"{name}.safetensors").read_bytes())
    assert toy(tmp_path, "--stage", "stage2") == 0
    assert (tmp_path / "stage2.safetensors").read_bytes() == (done / "stage2.safetensors").read_bytes()


def test_toy_evaluate_scores_any_of_them(done: Path, tmp_path: Path) -> None:
    report = tmp_path / "scores.json"
    command = ["toy-evaluate", str(done), "--prompts", "2", "--seeds", "0", "--json", str(report)]
    assert main([*command, "--file", "stage1.safetensors", "--schedule", "1"]) == 0
    result = json.loads(report.read_text())
    assert result["settings"]["schedule"] == "1"
    # Videos are as long as those that the folder's autoencoder was trained on: 21 pixel frames, which are two chunks.
    assert len(result["scores"]["chunk_digit"]) == 2


def test_toy_compare_gives_both_the_same_prompts_and_noise(done: Path, tmp_path: Path) -> None:
    report = tmp_path / "difference.json"
    command = ["toy-compare", str(done), "--prompts", "3", "--score", "colour", "--json", str(report)]
    assert main([*command, "--file", "stage1.safetensors", "--schedule", "1", "--against", "1 1"]) == 0
    result = json.loads(report.read_text())
    assert [result[side]["schedule"] for side in "ab"] == ["1", "1 1"]
    assert result["difference"] == {"mean": 0, "lower": 0, "prompts": 3}


def test_toy_report_draws_stages_and_curves(done: Path, tmp_path: Path) -> None:
    assert main(["toy-report", str(done), "--plot", str(tmp_path / "pictures"), "--prompts", "1"]) == 0
    for name in ("distillation-frames.png", "distillation-curves.png"):
        assert (tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG")
    with Image.open(tmp_path / "pictures" / "distillation.webp") as playing:
        assert playing.format == "WEBP"
    head, _, *rows = (tmp_path / "pictures" / "distillation-scores.md").read_text().splitlines()
    assert head == "| | teacher | ODE init | stage 1 | stage 2 |"
    assert all(row.count("|") == head.count("|") for row in rows)
    report = json.loads((done / "scores" / "dit.json").read_text())
    mean, spread = (100 * report[name]["digit"] for name in ("scores", "spread"))
    digits = next(row for row in rows if row.startswith("| digits right"))
    assert spread == 0 and digits.endswith(f"| {mean:.1f}% |")  # one seed has no spread to tell


def test_stages_play_beside_each_other() -> None:
    left, right = torch.zeros(3, 5, 16, 16) - 1, torch.zeros(3, 5, 16, 16) - 1
    left[0] = torch.linspace(-1, 1, 5)[:, None, None]  # brightens in red
    pictures = draw_playing({"a": [left], "b": [right]}, ["a prompt"], {"a": "17", "b": "100"})
    assert len(pictures) == 5
    first, last = (np.asarray(pictures[i]).astype(int) for i in (0, -1))
    changed = np.argwhere((first != last).any(-1))
    assert changed[:, 1].max() < first.shape[1] / 2  # the left column alone
    assert (last - first)[tuple(changed.mean(0).astype(int))].tolist() == [255, 0, 0]


def test_toy_report_says_which_stage_is_missing(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["toy-report", str(tmp_path), "--plot", str(tmp_path)]) == 2
    assert "run all stages in this folder first" in capsys.readouterr().err


# -- what is said when something is wrong ----------------------------------------------------------------------------


def test_a_wrong_field(tmp_path: Path, told) -> None:
    assert toy(tmp_path, "stage1.setps=3") == 2
    assert told() == "error: the recipe has no field 'stage1.setps'; did you mean stage1.steps?"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_checkpoint(tmp_path: Path, told) -> None:
    needs = {"ode-pairs": "teacher", "stage1": "ode-init", "stage2": "stage1", "export": "stage2"}
    for stage, missing in needs.items():
        assert toy(tmp_path, "--stage", stage) == 2
        line = told()
        assert f"{missing.replace('-', '_')}.safetensors is missing" in line
        assert f"Run the stage {missing} first" in line
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_size(done: Path, tmp_path: Path, told) -> None:
    for name in ("vae", "classifier", "teacher"):
        (tmp_path / f"{name}.safetensors").write_bytes((done / f"{name}.safetensors").read_bytes())
    config = replace(smoke().preparation.model, num_layers=2)
    save_dit(tmp_path / "ode_init.safetensors", WanDiT(config), config)
    assert toy(tmp_path, "--stage", "stage1") == 2
    assert "must have num_layers 1, it has 2" in told()
    assert not (tmp_path / "stage1.safetensors").exists()


def test_a_file_that_is_no_checkpoint(tmp_path: Path, told) -> None:
    (tmp_path / "teacher.safetensors").write_bytes(b"not a model")
    assert toy(tmp_path, "--stage", "ode-pairs") == 2
    assert "teacher.safetensors" in told()


def test_another_recipe_in_the_same_folder(done: Path, told) -> None:
    assert toy(done, "--stage", "stage1", "stage1.learning_rate=1e-3") == 2
    assert "was begun with another recipe: learning_rate was 5e-05, now it is 0.001" in told()


def test_a_stage_is_ended_early_and_goes_on_later(done: Path, tmp_path: Path, told) -> None:
    for name in ("vae", "classifier", "teacher", "ode_init"):
        (tmp_path / f"{name}.safetensors").write_bytes((done / f"{name}.safetensors").read_bytes())
    result, stage = tmp_path / "stage1.safetensors", ("--stage", "stage1")
    assert toy(tmp_path, *stage, "stage1.steps=2") == 0
    assert toy(tmp_path, *stage) == 2
    assert f"steps was 2, now it is 4. Go on with what it was begun with, or delete {result} to go on" in told()
    result.unlink()
    assert toy(tmp_path, *stage) == 0
    assert result.read_bytes() == (done / "stage1.safetensors").read_bytes()


def test_a_stage_that_is_told_to_stop_goes_on(done: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("vae", "classifier", "teacher", "ode_init"):
        (tmp_path / f"{name}.safetensors").write_bytes((done / f"{name}.safetensors").read_bytes())
    update = Distil.update

    def told(task: Distil, step: int) -> dict[str, torch.Tensor]:
        signal.raise_signal(signal.SIGTERM)
        return update(task, step)

    with monkeypatch.context() as patch:
        patch.setattr(Distil, "update", told)
        assert toy(tmp_path, "--stage", "stage1") == 128 + signal.SIGTERM
    line = capsys.readouterr().err
    assert line == (
        "stage1: stopped after iteration 1, of which the state is saved; the same command goes on from here\n"
    )
    assert toy(tmp_path, "--stage", "stage1") == 0
    assert (tmp_path / "stage1.safetensors").read_bytes() == (done / "stage1.safetensors").read_bytes()


def test_fields_that_weights_do_not_depend_on_may_change(done: Path) -> None:
    assert toy(done, "--stage", "stage1", "stage1.sample_every=3", "stage1.limits.patience=5") == 0


def test_another_input_in_the_same_folder(done: Path, tmp_path: Path, told) -> None:
    for name in ("vae.safetensors", "classifier.safetensors", "teacher.safetensors", "stage2/recipe.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((done / name).read_bytes())
    for name in ("stage1", "stage1_critic"):
        shutil.copy(done / "ode_init.safetensors", tmp_path / f"{name}.safetensors")
    assert toy(tmp_path, "--stage", "stage2") == 2
    assert "was begun with other inputs: stage1.safetensors" in told()


def test_stage_2_begins_with_the_critic_that_stage_1_ended_with(done: Path, tmp_path: Path, monkeypatch, told) -> None:
    for name in ("vae", "classifier", "teacher", "stage1"):
        shutil.copy(done / f"{name}.safetensors", tmp_path)
    assert toy(tmp_path, "--stage", "stage2") == 2
    assert "stage1_critic.safetensors is missing" in told()

    critic, teacher = (load_dit(done / f"{name}.safetensors").model for name in ("stage1_critic", "teacher"))
    trained = saved_weights(done / "stage1", "critic")
    assert all(torch.equal(tensor, trained[name].bfloat16()) for name, tensor in critic.state_dict().items())
    shutil.copy(done / "stage1_critic.safetensors", tmp_path)
    began: list[dict[str, torch.Tensor]] = []
    init = Distil.__init__

    def seen(task: Distil, recipe, roles, **rest) -> None:
        began.append({name: tensor.clone() for name, tensor in roles.fake_score.state_dict().items()})
        init(task, recipe, roles, **rest)

    monkeypatch.setattr(Distil, "__init__", seen)
    assert toy(tmp_path, "--stage", "stage2") == 0
    own = critic.state_dict()
    assert all(torch.equal(tensor, own[name].float()) for name, tensor in began[0].items())
    assert any(not torch.equal(tensor, own[name]) for name, tensor in teacher.state_dict().items())


def test_the_teacher_is_not_trained_on_latents_of_another_recipe(done: Path, tmp_path: Path, told) -> None:
    for name in ("vae.safetensors", "classifier.safetensors"):
        shutil.copy(done / name, tmp_path)
    assert toy(tmp_path, "--stage", "looks") == 2
    assert "latents/first_frames_0000.safetensors is missing. Run the stage latents first" in told()
    shutil.copytree(done / "latents", tmp_path / "latents")
    assert toy(tmp_path, "--stage", "looks", "preparation.pairs=0.25") == 2
    assert "first_frames_0000.safetensors was made with pairs 0.6, now it is 0.25" in told()
    (tmp_path / "latents" / "videos_0000.safetensors").unlink()
    assert toy(tmp_path, "--stage", "looks") == 2
    assert "videos_0000.safetensors is missing" in told()
    assert toy(tmp_path, "--stage", "latents") == 0 and toy(tmp_path, "--stage", "looks") == 0


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("autoencoder.warmup_steps=0", "warmup_steps must be at least 1, got 0"),
        ("autoencoder.learning_rate=-1", "learning_rate must be above 0"),
        ("autoencoder.lengths=9,8", "lengths must be 1, 5, 9"),
        ("classifier.batch=-1", "batch must be at least 1"),
        ("classifier.data.digit_size=0", "digit_size must be above 0"),
        ("video_shards=-3", "video_shards must be at least 1"),
        ("evaluation_seeds=", "evaluation_seeds must be one at least"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, told, field: str, said: str) -> None:
    assert toy(tmp_path / "run", f"preparation.{field}") == 2
    assert said in told() and not (tmp_path / "run").exists()


def test_a_device_that_is_not_there(tmp_path: Path, told) -> None:
    assert toy(tmp_path / "run", "--device", "no-such") == 2
    assert "there is no such device; use cpu or cuda" in told() and not (tmp_path / "run").exists()


def test_other_pairs_than_ode_initialisation_began_with(done: Path, tmp_path: Path, told) -> None:
    for name in ("vae.safetensors", "classifier.safetensors", "teacher.safetensors", "ode_init/recipe.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(done / name, tmp_path / name)
    assert toy(tmp_path, "--stage", "ode-pairs", "ode_pairs.seed=5") == 0
    assert toy(tmp_path, "--stage", "ode-init") == 2
    assert "was begun with other inputs: ode_pairs was" in told()


def test_pairs_may_be_deleted_once_they_are_used(done: Path, tmp_path: Path) -> None:
    for name in ("vae.safetensors", "classifier.safetensors", "teacher.safetensors", "ode_init.safetensors"):
        shutil.copy(done / name, tmp_path / name)
    (tmp_path / "ode_init").mkdir()
    shutil.copy(done / "ode_init" / "recipe.json", tmp_path / "ode_init")
    assert toy(tmp_path, "--stage", "ode-init") == 0


def test_a_full_disk(done: Path, tmp_path: Path, told, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vae", "classifier", "teacher", "ode_init"):
        (tmp_path / f"{name}.safetensors").write_bytes((done / f"{name}.safetensors").read_bytes())

    def full(state: object, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert toy(tmp_path, "--stage", "stage1") == 2
    assert told() == "error: the disk is full: free some space and run the same command again, it goes on from here"
    assert not (tmp_path / "stage1.safetensors").exists()
    assert not list((tmp_path / "stage1").rglob(".*")) and not list((tmp_path / "stage1").rglob("step_*"))
    assert toy(tmp_path, "--stage", "stage1") == 0
    assert (tmp_path / "stage1.safetensors").read_bytes() == (done / "stage1.safetensors").read_bytes()


def test_a_run_that_collapses_says_so(done: Path, tmp_path: Path, told) -> None:
    for name in ("vae", "classifier", "teacher", "ode_init"):
        (tmp_path / f"{name}.safetensors").write_bytes((done / f"{name}.safetensors").read_bytes())
    assert toy(tmp_path, "--stage", "stage1", "stage1.learning_rate=1e30", "stage1.clip=1e30") == 2
    assert "the run has collapsed at iteration" in told()
    assert not (tmp_path / "stage1.safetensors").exists()


def test_stages_draw_numbers_of_their_own() -> None:
    for recipe in (cpu(), cpu_long(), cpu().with_seed(3)):
        assert recipe.stage1.seed != recipe.stage2.seed
    assert wan.stage1().seed != wan.stage2().seed
    seeds = [(recipe.stage1.seed, recipe.stage2.seed) for recipe in map(cpu().with_seed, range(4))]
    assert len({seed for pair in seeds for seed in pair}) == 8 and seeds[0] == (cpu().stage1.seed, cpu().stage2.seed)


def test_the_cpu_recipe_is_that_of_the_benchmark() -> None:
    recipe = cpu()
    assert recipe.preparation.model == WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=6, text_len=32)
    assert recipe.preparation.data.size == 64 and recipe.preparation.data.num_pixel_frames == 81
    assert (recipe.stage1.schedule, recipe.stage2.schedule) == ("4", "4322222")
    assert {recipe.stage1.chunk_frames, recipe.stage2.chunk_frames, recipe.ode_init.chunk_frames} == {3}
    assert recipe.stage2.weights.gamma == 1 and recipe.stage1.weights.gamma == 0


def test_there_is_a_command_for_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["toy", "--help"])
    shown = capsys.readouterr().out
    assert all(stage in shown for stage in STAGES)


def test_a_part_that_the_recipe_does_not_have(done: Path, told) -> None:
    assert toy(done, "--stage", "whole") == 2
    assert "no part 'whole'" in told()
