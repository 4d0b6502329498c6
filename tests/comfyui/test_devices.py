"""Where weights are that ComfyUI moves about, and what a preview does without memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def found(comfyui: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("devices_in_process.py")
    done = subprocess.run([sys.executable, script, comfyui], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_models_are_resident_where_comfyui_would_bring_their_weights_piece_by_piece(found: dict[str, Any]) -> None:
    assert found["resident"] is True


def test_a_vae_that_waits_elsewhere_is_used_on_its_device_and_stays_where_it_is(found: dict[str, Any]) -> None:
    assert found["vae"] == ["meta"] and found["left"] == ["cpu"]


def test_a_preview_without_memory_is_a_colour_estimate_from_then_on(found: dict[str, Any]) -> None:
    whole, *estimates = found["previews"]
    assert whole == [64, 64] and estimates == [[8, 8], [8, 8]]


def test_memory_is_counted_for_previews_by_the_tiny_vae_alone(found: dict[str, Any]) -> None:
    before, after = found["memory"]
    assert before > 0 and after == 0
