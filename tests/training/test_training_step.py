"""The measurement of a training step runs, counts what the recipe's work says, and writes what a figure depends on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import training_step
from training.recipes.wan import VideoSize, WanDistilRecipe, stage1
from training.wan.work import DistilWork

SMALL = ["--student", "tiny", "--device", "cpu", "video.width=32", "video.height=32", "video.latent_frames=6"]


def test_a_step_is_measured_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.json"
    assert training_step.main([*SMALL, "--updates", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "an iteration: " in shown and f"saved: {out}" in shown
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["setting"]["weights"] == "random" and report["setting"]["recipe"]["schedule"] == "4322222"
    tiny = training_step.SIZES["tiny"]
    recipe = WanDistilRecipe(
        batch=1, checkpointing=False, video=VideoSize(width=32, height=32, latent_frames=6)
    )  # fmt: skip
    work = DistilWork(recipe=recipe, generator=tiny, critic=tiny, real_score=tiny, regression=stage1().settings())
    counts = {"generator": work.generator_update, "critic": work.critic_update}
    for kind, result in report["updates"].items():
        assert result["seconds"] > 0 and result["peak_memory_bytes"] > 0
        expected = sum(counts[kind](u) for u in (0.25, 0.75)) / 2 / 1e12
        assert result["tflop_on_each_device"] == pytest.approx(expected, abs=1e-6)
        assert result["with_what_is_computed_again"] >= result["model_tflop_per_second"]
        assert report["mfu"][kind]["matrix_products_here"] > 0 and report["mfu"][kind]["data_sheet"] is None
    critic, generator = (report["updates"][kind]["seconds"] for kind in ("critic", "generator"))
    assert report["seconds_of_an_iteration"] == pytest.approx(critic + generator / 5, abs=1e-5)


def test_names_of_gpus_and_files() -> None:
    assert training_step.data_sheet("NVIDIA H100 80GB HBM3") == 989.4
    assert training_step.data_sheet("NVIDIA H100 PCIe") == 756.0
    assert training_step.data_sheet("Radeon") is None
    report = {"date": "2026-01-02", "machine": {"gpu": "NVIDIA H200", "devices": 8}}
    assert training_step.file_name(report, "14b") == "2026-01-02-h200-x8-training-step-14b-teacher.json"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["lora.rank=4"], "a LoRA is not measured here"),
        (["--updates", "0"], "--updates must be at least 1"),
        (["precision=fp32"], "weights_precision must be fp32 where precision is fp32, got bf16"),
        (["batches=2"], "did you mean batch?"),
    ],
)
def test_what_cannot_be_measured_is_told(more: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert training_step.main([*SMALL, *more]) == 2
    assert told in capsys.readouterr().err
