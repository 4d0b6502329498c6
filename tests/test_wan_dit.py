"""The DiT: noise levels a frame, padding of prompts, guards, back ends, stock-shaped models and sharded ones."""

from __future__ import annotations

import os
import socket
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from goldens_reader import small_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from diag_core import CacheConfig, DiagonalSchedule, SeededNoise, WanConfig, WanDiT, generate
from diag_core.attention import NAMES, attention_backend, sdpa
from diag_core.kv_cache import KVCache
from diag_core.layers import block_forward
from diag_core.wan_dit import forward_impl


def inputs(batch: int = 2, frames: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, 16, frames, 4, 6, generator=generator)
    return latents, torch.linspace(100, 900, batch), torch.randn(batch, 5, 8, generator=generator)


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [(WanConfig.wan_1_3b(), 1_418_996_800, 825), (WanConfig.wan_14b(), 14_288_491_584, 1095)],
)
def test_published_sizes(config, parameters, tensors):
    with torch.device("meta"):
        model = WanDiT(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors


def test_a_timestep_a_sample_equals_the_same_timestep_for_each_frame():
    model = small_model()
    latents, t, context = inputs()
    with torch.no_grad():
        assert torch.allclose(model(latents, t, context), model(latents, t[:, None].expand(2, 3), context), atol=1e-5)


def test_each_frame_has_its_own_timestep():
    model = small_model(num_layers=1)
    latents, _, context = inputs(batch=1, frames=2)
    mask = torch.block_diag(torch.ones(6, 6), torch.ones(6, 6)).bool()  # frames do not see each other
    with torch.no_grad():
        both = model(latents, torch.tensor([[200.0, 800.0]]), context, mask=mask)
        for f, t in enumerate((200.0, 800.0)):
            alone = model(latents[:, :, f : f + 1], torch.tensor([t]), context, frame_positions=(f,))
            assert torch.allclose(both[:, :, f : f + 1], alone, atol=1e-5)


def test_samples_of_a_batch_are_independent():
    model = small_model()
    latents, t, context = inputs()
    with torch.no_grad():
        both = model(latents, t, context)
        assert torch.allclose(both[1:], model(latents[1:], t[1:], context[1:]), atol=1e-5)


def test_short_prompts_are_padded_with_zeros_and_long_ones_used_whole():
    model = small_model()
    latents, t, context = inputs()
    padded = torch.nn.functional.pad(context, (0, 0, 0, 1))
    long = torch.randn(2, 9, 8)
    with torch.no_grad():
        assert torch.equal(model(latents, t, context), model(latents, t, padded))
        assert not torch.allclose(model(latents, t, long), model(latents, t, long[:, :6]), atol=1e-4)


def test_bf16_is_close_to_float32():
    model = small_model()
    latents, t, context = inputs()
    with torch.no_grad():
        exact, low = model(latents, t, context), model.to(torch.bfloat16)(latents, t, context)
    assert low.dtype == latents.dtype
    assert (exact - low).norm() / exact.norm() < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(latents=torch.randn(2, 15, 3, 4, 6)), r"latents must be \[B,16,F,H,W\]"),
        (dict(latents=torch.randn(2, 16, 3, 5, 6)), "must be even, got 5x6"),
        (dict(timestep=torch.zeros(3)), "timestep must be"),
        (dict(context=torch.randn(2, 5, 9)), r"context must be \[B,L,8\]"),
        (dict(context=torch.randn(1, 5, 8)), "with B = 2"),
        (dict(frame_positions=(0, 1)), "2 frame_positions for 3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    latents, timestep, context = inputs()
    with pytest.raises(ValueError, match=message):
        small_model()(**(dict(latents=latents, timestep=timestep, context=context) | change))


@pytest.mark.parametrize("sizes", [dict(dim=25), dict(freq_dim=15), dict(num_layers=0), dict(ffn_dim=2.0)])
def test_sizes_that_no_model_has_are_refused(sizes):
    with pytest.raises(ValueError, match="WanConfig"):
        WanConfig(**(dict(dim=24, ffn_dim=24, num_heads=2, num_layers=1) | sizes))


def test_a_missing_attention_back_end_is_named_when_asked_for():
    missing = []
    for name in NAMES:
        try:
            attend = attention_backend(name)
        except ValueError as error:
            missing.append(name)
            assert name in str(error) and "it needs" in str(error)
        else:
            q = torch.randn(1, 4, 2, 8)
            if name in ("auto", "sdpa"):
                assert attend(q, q, q).shape == q.shape
    assert "auto" not in missing and "sdpa" not in missing
    with pytest.raises(ValueError, match="choose one of auto, sdpa"):
        attention_backend("magic")


def test_kernels_for_half_precision_are_left_out_where_a_cache_is_float32(monkeypatch):
    """As that of float32 weights is, which training samples under autocast."""

    def flash_attn_func(q, k, v):
        used.append(q.shape[1])
        if {q.dtype, k.dtype, v.dtype} != {torch.bfloat16}:
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        return sdpa(q, k, v)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=flash_attn_func))
    latents, timestep, context = inputs()
    made = []
    for attend in (sdpa, attention_backend("flash2")):
        model, used = small_model(), []
        model.attend = attend
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            model(latents, timestep, context)  # bidirectional, in bfloat16
            made.append(
                generate(
                    model, context, DiagonalSchedule.parse("1"), noise=SeededNoise(0), num_latent_frames=6, height=4,
                    width=6,
                )
            )  # fmt: skip
    assert 3 * 2 * 3 in used
    torch.testing.assert_close(*made, atol=2e-2, rtol=2e-2)


def test_the_forward_runs_over_a_model_that_is_not_ours():
    """As ComfyUI's stock model: same submodules, blocks run by our function rather than by their own forward."""
    model = small_model()
    latents, t, context = inputs()
    calls = []

    def run_block(block, x, **rest):
        calls.append(block)
        return block_forward(block, x, **rest)

    with torch.no_grad():
        theirs = forward_impl(model, latents, t, context, run_block=run_block, attend=attention_backend())
        assert torch.equal(theirs, model(latents, t, context))
    assert calls == list(model.blocks)


def test_a_float32_patch_embedding_does_not_decide_what_is_computed_in():
    """ComfyUI's stock model keeps its patch embedding in float32 beside bf16 blocks."""
    model = small_model()
    latents, t, context = inputs()
    with torch.no_grad():
        exact = model(latents, t, context)
        model.to(torch.bfloat16).patch_embedding.float()
        mixed = forward_impl(
            model, latents, t, context, run_block=block_forward, attend=attention_backend(), dtype=torch.bfloat16
        )
    assert (exact - mixed).norm() / exact.norm() < 0.03


def test_prompts_are_padded_to_the_length_asked_for():
    model = small_model()
    latents, t, context = inputs()
    with torch.no_grad():
        run = lambda c, n: forward_impl(  # noqa: E731
            model, latents, t, c, run_block=block_forward, attend=attention_backend(), text_len=n
        )
        padded = torch.nn.functional.pad(context, (0, 0, 0, 4))
        assert torch.equal(run(context, 9), run(padded, 9))
        assert not torch.allclose(run(context, 9), run(context, 5), atol=1e-4)


def _sharded(rank: int, port: int, checkpointing: bool) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        torch.set_num_threads(1)
        latents, t, context = inputs(batch=1, seed=rank)
        reference, model = small_model(), small_model()
        for i, block in enumerate(model.blocks):
            model.blocks[i] = checkpoint_wrapper(block) if checkpointing else block
            fully_shard(model.blocks[i])
        fully_shard(model)
        assert all(isinstance(p, DTensor) for p in model.parameters())

        cache = KVCache(reference.config, CacheConfig(), batch=1, rows=2, columns=3)
        with torch.no_grad():
            reference(latents, t, context, cache=cache)
        cache.advance()
        past = cache.snapshot(3, 3)
        outputs = [m(latents, t, context, cache=past, start_frame=3) for m in (reference, model)]
        assert torch.allclose(*outputs, atol=1e-5)
        for output in outputs:
            output.square().mean().backward()
        for p in reference.parameters():
            dist.all_reduce(p.grad, op=dist.ReduceOp.SUM)
            p.grad /= 2
        sharded = {name.replace("_checkpoint_wrapped_module.", ""): p for name, p in model.named_parameters()}
        for name, p in reference.named_parameters():
            assert torch.allclose(sharded[name].grad.full_tensor(), p.grad, atol=1e-5), name
    finally:
        dist.destroy_process_group()
    os._exit(0)  # as `training.distributed.leave`: taken down under the group's threads, an interpreter may abort


@pytest.mark.parametrize("checkpointing", [False, True])
def test_sharded_over_two_processes_forward_and_gradients_are_the_same(checkpointing):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_sharded, args=(port, checkpointing), nprocs=2)


def test_a_model_is_sampled_in_bf16_too():
    model = small_model().to(torch.bfloat16)
    latents = generate(
        model, torch.randn(1, 5, 8).bfloat16(), DiagonalSchedule.parse("21"), noise=SeededNoise(0),
        num_latent_frames=6, height=4, width=4, cache=CacheConfig(window_frames=6),
    )  # fmt: skip
    assert latents.dtype == torch.float32 and torch.isfinite(latents).all()
