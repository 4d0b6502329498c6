"""The fast path over ComfyUI's own model, in a process of its own: where it runs it changes nothing, elsewhere it
steps aside and says why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FORWARDS = 3 + 2 + 1 + 2 + 3  # steps, and commits of all chunks but the one that is the last step's


@pytest.fixture(scope="module")
def found(comfyui: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("fast_in_process.py")
    done = subprocess.run([sys.executable, script, comfyui], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize(
    "name", ["plain model", "guidance", "relative positions", "two samples", "LoRA", "loaded again"]
)
def test_the_same_video(found: dict[str, Any], name: str) -> None:
    case = found[name]
    assert case["fast_forwards"] > 0 and case["said"] == ""
    assert case["difference"] < 2e-4 * case["size"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a replaced block", "another pack has set patches_replace"),
        ("another attention", "another pack has set optimized_attention_override"),
        ("a patched module", "another pack has changed block 1"),
        ("partial offload", "blocks.0.ffn.0 is offloaded or patched while it runs"),
        ("fp8", "its weights are torch.float8_e4m3fn"),
    ],
)
def test_it_steps_aside(found: dict[str, Any], name: str, reason: str) -> None:
    case = found[name]
    assert case["fast_forwards"] == 0 and reason in case["said"]
    assert case["difference"] == 0


def test_it_can_be_left_out(found: dict[str, Any]) -> None:
    case = found["left out"]
    assert case["fast_forwards"] == 0 and case["said"] == "" and case["difference"] == 0
    assert found["left out, storage"]


def test_it_steps_aside_for_weights_on_another_device(found: dict[str, Any]) -> None:
    assert found["weights elsewhere"]
    assert "WARNING" in found["said of weights elsewhere"]
    assert "its weights are on cpu and not on cuda:0" in found["said of weights elsewhere"]


def test_graphs_are_for_pytorchs_attention(found: dict[str, Any]) -> None:
    assert found["attention_pytorch"] == found["attention_xformers"] == "auto"
    assert "not PyTorch's" in found["attention_sub_quad"]


def test_it_lives_as_long_as_the_loaded_weights(found: dict[str, Any]) -> None:
    assert found["kept from run to run"]
    assert found["before unloading"] and found["after unloading"]
    assert found["gone with its model"]


def test_a_cache_that_the_device_can_never_hold_is_refused(found: dict[str, Any]) -> None:
    said = {name: text for name, text in found.items() if name.startswith("room")}
    refusal = said.pop("room, window None, 1 too many")
    assert "241 latent frames" in refusal and "the preset longlive" in refusal and "set window to 12" in refusal
    assert set(said.values()) == {""}


def test_it_follows_loras(found: dict[str, Any]) -> None:
    assert found["LoRA changes the video"] > 0.01
    assert found["without it again"] < 1e-4
