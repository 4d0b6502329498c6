"""The stages up to the teacher fit together, and what is there is not made again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

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


def test_every_stage_runs_and_leaves_a_checkpoint_that_carries_its_settings(tmp_path: Path) -> None:
    recipe = toy_smoke()

    def run() -> None:
        toy_teacher.prepare(recipe, tmp_path)
        for part in recipe.parts:
            toy_teacher.train_part(recipe, tmp_path, part)

    run()
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
    run()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "latents").iterdir()} == before
    # Another recipe is refused for a part that is finished, and for one that is not.
    other = replace(recipe, motion=replace(recipe.motion, learning_rate=1.0))
    for _ in range(2):
        with pytest.raises(ValueError, match="motion was begun with another recipe: learning_rate was"):
            toy_teacher.train_part(other, tmp_path, "motion")
        (tmp_path / "motion.safetensors").unlink(missing_ok=True)
    # What is neither moving nor coloured is told.
    strict = replace(recipe, motion=replace(recipe.motion, limits=HealthLimits(patience=1)))
    shutil.rmtree(tmp_path / "motion")
    with pytest.raises(Collapse, match=r"collapsed at iteration 2, .* of real videos', "):
        toy_teacher.train_part(strict, tmp_path, "motion")
    assert not (tmp_path / "motion.safetensors").exists()


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
