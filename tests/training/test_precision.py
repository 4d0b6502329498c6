"""Which precision a stage computes in, where a device is slow in half of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diag_core import WanConfig, WanDiT
from diag_core.checkpoint import CheckpointSettings, save_dit
from training.precision import autocast, flow_of, precision_of
from training.sampling import sample_whole
from training.stages.scoring import load_for_sampling

CONFIG = WanConfig(dim=128, ffn_dim=32, num_heads=1, num_layers=1, text_len=32)
LATENTS = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
CONTEXT = torch.randn(1, 32, 4096, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["AVX2", "AVX512", "SVE256"])
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A CPU of that kind: whether it multiplies bfloat16 in hardware of its own."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    return "AVX512" in request.param


def linear_dtype(model: WanDiT, run: Callable[[], object]) -> torch.dtype:
    """Of what the model's first linear layer gives while `run()` runs."""
    seen: list[torch.dtype] = []
    hook = model.blocks[0].self_attn.q.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    run()
    hook.remove()
    return seen[0]


def test_auto_is_what_the_device_is_quick_in(quick: bool) -> None:
    half = torch.bfloat16
    assert precision_of("auto", "cpu") == (half if quick else torch.float32)
    assert precision_of("auto", "cuda") == half
    assert precision_of("bf16", "cpu") == half and precision_of("fp32", "cuda") == torch.float32
    with autocast("cpu"):
        assert torch.is_autocast_enabled("cpu") == quick


def test_what_a_recipe_says_is_done(quick: bool) -> None:
    model = WanDiT(CONFIG)
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        precision = precision_of(name, "cpu")
        assert linear_dtype(model, lambda p=precision: flow_of(model, LATENTS, 0.5, CONTEXT, precision=p)) == dtype


def test_a_teacher_is_sampled_in_what_the_device_is_quick_in(quick: bool, tmp_path: Path) -> None:
    settings = CheckpointSettings(schedule="2", causal=False, step="euler", cfg=3.0, text_encoder="demo-clauses")
    save_dit(tmp_path / "dit.safetensors", WanDiT(CONFIG), CONFIG, settings, dtype=torch.bfloat16)
    stored = load_for_sampling(tmp_path / "dit.safetensors", {})[0].model
    assert stored.dtype == (torch.bfloat16 if quick else torch.float32)
    levels = settings.diagonal_schedule().sigmas(0)
    for model in (stored, WanDiT(CONFIG)):
        used = linear_dtype(model, lambda m=model: sample_whole(m, LATENTS, CONTEXT, CONTEXT[:1], levels, cfg=3.0))
        assert used == (torch.bfloat16 if quick else torch.float32)
