"""The stages up to the teacher fit together, and what is there is not made again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from diag_core import CacheConfig, SeededNoise, WanDiT, generate
from diag_core.checkpoint import load_dit, read_settings
from diag_core.demo_text import DemoTextEncoder
from training.__main__ import main
from training.data.paths import MovingDigitsConfig
from training.logbook import read_log
from training.metrics import Collapse, HealthLimits
from training.recipes.toy import toy_smoke
from training.stages import scoring, toy_teacher

DEMO = Path(__file__).parents[2] / "demo"


def run(folder: Path) -> None:
    recipe = toy_smoke()
    toy_teacher.prepare(recipe, folder)
    for part in recipe.parts:
        toy_teacher.train_part(recipe, folder, part)


@pytest.fixture(scope="module")
def preparation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After all stages up to the teacher; not to be changed."""
    folder = tmp_path_factory.mktemp("preparation")
    run(folder)
    return folder


def test_every_stage_runs_and_leaves_a_checkpoint_that_carries_its_settings(preparation: Path) -> None:
    recipe, tmp_path = toy_smoke(), preparation
    loaded = load_dit(tmp_path / toy_teacher.TEACHER)
    assert loaded.settings == recipe.settings
    assert next(loaded.model.parameters()).dtype == torch.bfloat16
    looks = {path.name for path in (tmp_path / "looks" / "samples").iterdir()}
    assert looks == {"real.png", "step_000002.png", "step_000003.png"}
    samples = {path.name for path in (tmp_path / "motion" / "samples").iterdir()}
    names = ("real", "step_000002", "step_000004", "step_000005")
    assert samples == {f"{name}.{ending}" for name in names for ending in ("mp4", "png")}
    curve = read_log(tmp_path / "motion")
    assert [entry["step"] for entry in curve if "loss" in entry] == [1, 2, 3, 4, 5]  # at every saved state
    assert [entry["step"] for entry in curve if "sample/amplitude" in entry] == [2, 4, 5]
    assert {"sample/digit", "sample/colour", "sample/contrast"} <= set().union(*read_log(tmp_path / "looks"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "latents").iterdir()}
    run(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "latents").iterdir()} == before


@pytest.fixture()
def made(tmp_path: Path, preparation: Path) -> Path:
    """All stages' results, of one's own."""
    return Path(shutil.copytree(preparation, tmp_path / "made"))


def train(folder: Path, part: str = "motion", **changes: Any) -> None:
    recipe = toy_smoke()
    toy_teacher.train_part(replace(recipe, **{part: replace(getattr(recipe, part), **changes)}), folder, part)


def again(folder: Path, part: str = "motion") -> None:
    """As if the part had not been begun."""
    shutil.rmtree(folder / part)
    (folder / f"{part}.safetensors").unlink()


def test_another_recipe_is_refused_for_a_part_that_is_finished_and_for_one_that_is_not(made: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="motion was begun with another recipe: learning_rate was"):
            train(made, learning_rate=1.0)
        (made / "motion.safetensors").unlink(missing_ok=True)
    train(made)  # ends at once, from its last state
    with pytest.raises(ValueError, match="autoencoder was begun with another recipe: seed was 0, now it is 1"):
        recipe = toy_smoke()
        toy_teacher.make_autoencoder(replace(recipe, autoencoder=replace(recipe.autoencoder, seed=1)), made)


def test_what_was_put_there_by_hand_is_of_no_recipe(made: Path) -> None:
    shutil.rmtree(made / "motion")
    train(made, learning_rate=1.0)
    assert not (made / "motion").exists()


def test_a_part_does_not_go_on_with_other_latents(made: Path) -> None:
    again(made)
    train(made, steps=5)
    (made / "motion.safetensors").unlink()
    more = replace(toy_smoke(), video_shards=2)
    toy_teacher.prepare(more, made)
    with pytest.raises(ValueError, match="motion was begun with other inputs: latents was"):
        toy_teacher.train_part(more, made, "motion")
    train(made)  # the shards of its own recipe are there still
    assert (made / "motion.safetensors").exists()


def test_a_missing_input_is_named_with_its_stage(made: Path) -> None:
    again(made)
    for name, stage in (("classifier", "classifier"), ("vae", "autoencoder"), ("looks", "looks")):
        (made / f"{name}.safetensors").rename(made / "away")
        with pytest.raises(ValueError, match=rf"{name}\.safetensors is missing.*Run the stage {stage} first"):
            train(made)
        (made / "away").rename(made / f"{name}.safetensors")
    assert not (made / "motion").exists()


def test_samples_do_not_change_what_is_trained(made: Path) -> None:
    with_samples = (made / "motion.safetensors").read_bytes()
    again(made)
    train(made, sample_every=0)
    assert (made / "motion.safetensors").read_bytes() == with_samples


def test_what_is_not_like_real_videos_is_told(made: Path) -> None:
    again(made)
    with pytest.raises(Collapse, match=r"collapsed at iteration 2, .* of real videos', .*wider limits"):
        train(made, limits=HealthLimits(patience=1))
    assert not (made / "motion.safetensors").exists()


@pytest.mark.parametrize("schedule", ["1", "21"])
def test_the_causal_checkpoint_of_the_demo_is_evaluated_by_its_command(tmp_path: Path, schedule: str) -> None:
    for name in ("dit", "vae", "classifier"):
        shutil.copy(DEMO / f"{name}.safetensors", tmp_path)
    report = tmp_path / "scores.json"
    arguments = ["--prompts", "2", "--seeds", "0", "--schedule", schedule, "--cfg", "1", "--json", str(report)]
    assert main(["toy-evaluate", str(tmp_path), *arguments]) == 0
    result = json.loads(report.read_text())
    assert result["settings"]["schedule"] == schedule
    assert result["settings"]["step"] == read_settings(DEMO / "dit.safetensors").step


@pytest.mark.parametrize("compiled", [False, True])
def test_a_bidirectional_model_is_sampled_as_one_chunk_of_the_whole_video(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The graph as PyTorch runs it: code for it takes a minute to make, and is not this project's to test.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    data = MovingDigitsConfig(num_pixel_frames=9)
    checkpoint, settings = scoring.load_for_sampling(
        DEMO / "dit.safetensors", {"causal": False, "cfg": 2.0, "schedule": "6", "step": "euler"}
    )
    vae = toy_teacher.autoencoder.load_autoencoder(DEMO / "vae.safetensors")
    prompts = ["a red 3 circles", "a blue 7 circles"]
    encode = DemoTextEncoder().encode
    model = WanDiT(checkpoint.config).eval()
    model.load_state_dict(checkpoint.model.state_dict())
    with torch.no_grad():
        latents = generate(
            model, encode(prompts), settings.diagonal_schedule(), noise=SeededNoise(5), num_latent_frames=3, height=8,
            width=8, cache=CacheConfig(None, 0), chunk_frames=3, step="euler", cfg=2.0, negative=encode(["", ""]),
        )  # fmt: skip
        expected = vae.decode(latents)
    torch._dynamo.utils.counters.clear()
    pixels = scoring.sampler_of(checkpoint, settings, vae, data, compiled=compiled)(prompts, 5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    assert pixels.shape == (2, 3, 9, 64, 64)
    off = (pixels - expected).abs()  # by bfloat16
    assert (off > 0.15).float().mean() < 0.002 and off.mean() < 0.01 < (pixels[0] - pixels[1]).abs().mean()


def test_a_causal_checkpoint_is_not_compiled(capsys) -> None:
    assert main(["toy-evaluate", str(DEMO), "--prompts", "2", "--compiled"]) == 2
    assert "a causal checkpoint is not compiled" in capsys.readouterr().err


def test_errors_are_one_line(tmp_path: Path, capsys) -> None:
    assert main(["toy-evaluate", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
