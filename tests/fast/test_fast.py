"""The fast path on a CPU: the plain path's videos, its weights in one place, and stepping aside where it must."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from goldens_reader import small_model

from diag_core import CacheConfig, ContextPolicy, DiagonalSchedule, SeededNoise, SwitchPolicy, Timeline, generate
from diag_core.fast import FastDiT, why_not
from diag_core.fast.attention_choice import fastest_attention
from diag_core.kv_cache import KVCache

ROOT = Path(__file__).parents[2]


def context(batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 6, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model():
    return small_model(num_layers=2)


VIDEOS = {
    "last-step commits and eviction": {},
    "noised commits": {"policy": ContextPolicy.noised(0.1)},
    "clean commits, no window": {"policy": ContextPolicy.clean(), "cache": CacheConfig(None)},
    "relative positions": {"cache": CacheConfig(9, 3, "relative"), "num_latent_frames": 30},
    "no sink": {"cache": CacheConfig(6, 0)},
    "a sink that is no whole chunk": {"cache": CacheConfig(8, 2)},
    "two at once with guidance": {"context": context(2), "negative": context(2, 9), "cfg": 3.0},
    "a prompt switch": {"context": Timeline([(0, context()), (9, context(seed=1))]), "switch": SwitchPolicy("chunks")},
    "a joint recomputation": {
        "context": Timeline([(0, context()), (9, context(seed=1))]), "switch": SwitchPolicy("joint")
    },
    "given frames": {"initial_latents": torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(3))},
    "euler": {"step": "euler"},
}  # fmt: skip


@pytest.mark.parametrize("name", VIDEOS)
def test_it_makes_the_plain_paths_video(model, name):
    options = {
        "noise": SeededNoise(5), "num_latent_frames": 21, "height": 4, "width": 6, "cache": CacheConfig(9, 3),
        "context": context(), **VIDEOS[name],
    }  # fmt: skip
    prompt = options.pop("context")
    plain = generate(model, prompt, DiagonalSchedule.parse("3212"), **options)
    fast = generate(FastDiT(model), prompt, DiagonalSchedule.parse("3212"), **options)
    torch.testing.assert_close(fast, plain, atol=2e-4, rtol=2e-4)


def test_the_fused_weights_are_the_models_own(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = FastDiT(model)
    for block, fused in zip(model.blocks, fast.blocks, strict=True):
        attn = block.self_attn
        assert attn.q.weight.data_ptr() == fused.qkv_weight.data_ptr()
        assert attn.v.weight.untyped_storage().data_ptr() == fused.qkv_weight.untyped_storage().data_ptr()
        assert attn.k.bias.untyped_storage().data_ptr() == fused.qkv_bias.untyped_storage().data_ptr()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    again = FastDiT(model)
    assert again.blocks[0].qkv_weight.data_ptr() == fast.blocks[0].qkv_weight.data_ptr()
    with torch.no_grad():
        model.blocks[0].self_attn.k.weight.add_(1.0)  # a LoRA, say, is seen at once
    assert torch.equal(fast.blocks[0].qkv_weight[24:48], model.blocks[0].self_attn.k.weight)


def test_the_prompts_keys_are_computed_once(model, monkeypatch):
    fast, calls = FastDiT(model), []
    from diag_core.fast import model as module

    keys = module.prompt_keys
    monkeypatch.setattr(module, "prompt_keys", lambda *a: calls.append(1) or keys(*a))
    switch = Timeline([(0, context()), (9, context(seed=1))])
    generate(
        fast, switch, DiagonalSchedule.parse("2"), noise=SeededNoise(0), num_latent_frames=18, height=4, width=4,
        cache=CacheConfig(9, 3),
    )  # fmt: skip
    assert len(calls) == 2


def test_it_says_why_it_cannot_run_a_model(model):
    assert why_not(model) is None
    hooked, patched, mixed, wrapped = (copy.deepcopy(model) for _ in range(4))
    hooked.blocks[1].ffn.register_forward_hook(lambda *a: None)
    assert "blocks.1.ffn is patched or hooked" in (why_not(hooked) or "")
    patched.blocks[0].cross_attn.forward = lambda *a: None
    assert "blocks.0.cross_attn" in (why_not(patched) or "")
    mixed.blocks[0].to(torch.bfloat16)
    assert "several types" in (why_not(mixed) or "")
    wrapped.blocks[0].self_attn.q = torch.nn.Sequential(wrapped.blocks[0].self_attn.q)
    assert "self_attn.q is a Sequential" in (why_not(wrapped) or "")
    with pytest.raises(ValueError, match=r"cannot run this model: .*hooked"):
        FastDiT(hooked)


def test_whole_videos_and_levels_a_frame_go_to_the_plain_path(model):
    x, prompt = torch.randn(1, 16, 6, 4, 4), context()
    fast = FastDiT(model)
    with torch.no_grad():
        for timestep in (torch.tensor([500.0]), torch.full((1, 6), 300.0)):
            assert torch.equal(fast(x, timestep, prompt), model(x, timestep, prompt))


def test_the_cache_tells_where_a_chunk_goes():
    cache = KVCache(small_model().config, CacheConfig(6, 2), batch=1, rows=2, columns=2)
    seen = []
    for start in range(0, 24, 2):
        cache.place(start, 2)
        slots, attended = cache.placement()
        seen.append(slots.tolist())
        assert attended == 4 * min(start + 2, 6)
        cache.advance()
    assert seen[:4] == [[0, 1], [2, 3], [4, 5], [2, 3]]


def test_the_kernels_equal_plain_pytorch_in_tritons_interpreter():
    pytest.importorskip("triton", reason="Triton is part of PyTorch on Linux only: its kernels are not tested here")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("kernels_in_interpreter.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("write_qkv k") == 4


def test_attention_is_chosen_by_measurement():
    choice = fastest_attention(
        queries=8, keys=32, num_heads=2, head_dim=16, batch=1, dtype=torch.float32, device=torch.device("cpu")
    )
    assert choice.name in choice.seconds and choice.seconds[choice.name] == min(choice.seconds.values())
    assert "sdpa" in choice.seconds and not set(choice.seconds) & set(choice.refused)
    q = torch.randn(1, 4, 2, 16)
    torch.testing.assert_close(choice.attend(q, q, q), torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), q.transpose(1, 2), q.transpose(1, 2)).transpose(1, 2))  # fmt: skip
    assert f"attention: {choice.name}" in choice.text()
