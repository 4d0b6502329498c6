"""The fast path on a CPU: the plain path's videos, its weights in one place, and stepping aside where it must."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import gc
import itertools
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from goldens_reader import small_model

from diag_core import (
    CacheConfig,
    ContextPolicy,
    DiagonalSchedule,
    SamplerState,
    SeededNoise,
    SwitchPolicy,
    Timeline,
    generate,
    stream_chunks,
)
from diag_core.attention import Uncaptured, attention_backend, sdpa
from diag_core.fast import FastDiT, accelerated, graphs, why_not
from diag_core.fast.attention_choice import fastest_attention
from diag_core.fast.decoder import PieceGraphs
from diag_core.fast.forward import ChunkInputs
from diag_core.fast.weights import fused
from diag_core.kv_cache import KVCache
from diag_core.kv_storage import KVStorage

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


def video(model, name: str, seed: int = 5, **more) -> torch.Tensor:
    options = {
        "noise": SeededNoise(seed), "num_latent_frames": 21, "height": 4, "width": 6, "cache": CacheConfig(9, 3),
        "context": context(), **VIDEOS[name], **more,
    }  # fmt: skip
    return generate(model, options.pop("context"), DiagonalSchedule.parse("3212"), **options)


@pytest.mark.parametrize("name", VIDEOS)
def test_it_makes_the_plain_paths_video(model, name):
    torch.testing.assert_close(video(FastDiT(model), name), video(model, name), atol=2e-4, rtol=2e-4)


def test_the_fused_weights_are_the_models_own(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    FastDiT(model)
    for block in model.blocks:
        attn, (weight, bias) = block.self_attn, fused(block)
        assert attn.q.weight.data_ptr() == weight.data_ptr()
        assert attn.v.weight.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
        assert attn.k.bias.untyped_storage().data_ptr() == bias.untyped_storage().data_ptr()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    where = fused(model.blocks[0])[0].data_ptr()
    FastDiT(model)
    assert fused(model.blocks[0])[0].data_ptr() == where
    with torch.no_grad():
        model.blocks[0].self_attn.k.weight.add_(1.0)  # a LoRA, say, is seen at once
    assert torch.equal(fused(model.blocks[0])[0][24:48], model.blocks[0].self_attn.k.weight)


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
    mended = copy.deepcopy(model)
    mended.blocks[0].forward = mended.blocks[0].forward  # as ComfyUI takes a patch back
    assert why_not(mended) is None
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


class RerunGraph:
    """Stands for a CUDA graph on a CPU: a replay computes the forward anew, over the tensors of its capture."""

    made = 0

    def __init__(self, run, inputs, memory, attended):
        self.forward = lambda: run(inputs, memory, attended)
        self.out = self.forward()
        RerunGraph.made += 1

    def replay(self):
        self.out.copy_(self.forward())


@pytest.fixture
def graphs_on_cpu(monkeypatch):
    def capture(self, inputs, memory, attended):
        still = ChunkInputs(*(getattr(inputs, field.name).clone() for field in dataclasses.fields(inputs)))
        graph = RerunGraph(self.run_eagerly, still, memory, attended)
        return graphs._Captured(graph, still, graph.out)

    monkeypatch.setattr(graphs.StorageGraphs, "_capture", capture)
    monkeypatch.setattr(RerunGraph, "made", 0)


@pytest.mark.parametrize("name", VIDEOS)
def test_graphs_are_given_what_each_forward_needs(model, graphs_on_cpu, name):
    """Twice each: the second video uses the graphs of the first, in the first one's storage."""
    fast = FastDiT(model)
    fast.graphs = True
    plain = video(model, name)
    for _ in range(2):
        torch.testing.assert_close(video(fast, name), plain, atol=2e-4, rtol=2e-4)
    assert RerunGraph.made


def test_graphs_are_captured_once(model, graphs_on_cpu):
    fast = FastDiT(model)
    fast.graphs = True
    video(fast, "last-step commits and eviction")
    made = RerunGraph.made
    assert made == 3  # 3, 6 and 9 latent frames attended to
    plain = video(model, "a prompt switch", seed=6)
    torch.testing.assert_close(video(fast, "a prompt switch", seed=6), plain, atol=2e-4, rtol=2e-4)
    assert RerunGraph.made == made
    fast.release()
    video(fast, "last-step commits and eviction")
    assert RerunGraph.made == 2 * made


def test_new_weights_are_not_run_by_old_graphs(model, graphs_on_cpu):
    fast = FastDiT(model)
    fast.graphs = True
    video(fast, "clean commits, no window")
    made = RerunGraph.made
    for block in model.blocks:  # as ComfyUI does with a LoRA: other parameters in the place of the old ones
        block.self_attn.q.weight = torch.nn.Parameter(block.self_attn.q.weight + 0.1, requires_grad=False)
    plain = video(model, "clean commits, no window")
    torch.testing.assert_close(video(fast, "clean commits, no window"), plain, atol=2e-4, rtol=2e-4)
    assert RerunGraph.made == 2 * made


def test_weights_may_move_while_a_video_is_made(model, graphs_on_cpu):
    """As ComfyUI moves them to make room for a text encoder and brings them back."""
    name = "last-step commits and eviction"
    plain, fast = video(model, name), FastDiT(model)
    fast.graphs = True
    video(fast, name)
    run, forwards = fast._forward, []

    def forward(*arguments):
        forwards.append(1)
        if len(forwards) == 5:
            for parameter in model.parameters():
                moved = parameter.data.clone()
                parameter.data.fill_(float("nan"))
                parameter.data = moved
            fast.take_weights()
        return run(*arguments)

    fast._forward = forward
    torch.testing.assert_close(video(fast, name), plain, atol=2e-4, rtol=2e-4)
    assert len(forwards) > 5


class _Cuda:
    """What a capture asks of CUDA, and what it finds current."""

    def __init__(self, monkeypatch):
        self.pools, self.current, self.fails, self.device = 0, "the caller's", False, 0
        self.captured_on, streams = [], itertools.count()
        for name in ("graph_pool_handle", "current_stream", "set_stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", type("CUDAGraph", (), {}))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.device)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream {next(streams)} of {device}")
        monkeypatch.setattr(graphs, "_capture_stream", functools.cache(graphs._capture_stream.__wrapped__))

    def graph_pool_handle(self):
        self.pools += 1
        return self.pools

    def current_stream(self):
        return self.current

    def set_stream(self, stream):
        self.current = stream

    @contextlib.contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        graph.pool, self.current = pool, stream
        self.captured_on.append(stream)
        yield
        if self.fails:
            raise RuntimeError("the capture did not end")
        self.current = "the caller's"


def test_a_pool_without_graphs_is_not_used_again(monkeypatch):
    cuda, capturing = _Cuda(monkeypatch), graphs.Capturing("sampling")
    first, _ = capturing.capture(lambda: torch.zeros(1))
    second, _ = capturing.capture(lambda: torch.zeros(1))
    assert first.pool == second.pool
    del first
    assert capturing.capture(lambda: torch.zeros(1))[0].pool == second.pool
    old = second.pool
    del second
    assert capturing.capture(lambda: torch.zeros(1))[0].pool != old and cuda.pools == 2


def test_each_role_has_one_stream_a_gpu_to_capture_on(monkeypatch):
    """PyTorch has 32 of them, so that the 33rd is one that is in use."""
    cuda = _Cuda(monkeypatch)
    for cuda.device, role in ((0, "sampling"), (0, "decoding"), (1, "sampling"), *[(0, "sampling")] * 40):
        graphs.Capturing(role).capture(lambda: torch.zeros(1))
    assert cuda.captured_on == ["stream 0 of 0", "stream 1 of 0", "stream 2 of 1", *["stream 0 of 0"] * 40]
    assert graphs.SharedPool().capturing.role == "sampling"
    assert PieceGraphs(None)._capturing.role == "decoding"


def test_a_failed_capture_leaves_the_callers_stream_current(monkeypatch):
    cuda = _Cuda(monkeypatch)
    cuda.fails = True
    with pytest.raises(RuntimeError, match="did not end"):
        graphs.Capturing("sampling").capture(lambda: torch.zeros(1))
    assert cuda.current == "the caller's"


def test_a_capture_that_fails_is_done_without(model, monkeypatch, caplog):
    def fail(*arguments):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs.StorageGraphs, "_capture", fail)
    fast = FastDiT(model)
    fast.graphs = True
    plain = video(model, "euler")
    torch.testing.assert_close(video(fast, "euler"), plain, atol=2e-4, rtol=2e-4)
    assert "without CUDA graphs: operation not permitted" in caplog.text and not fast.captured


def test_attention_that_a_capture_may_miss_goes_without_graphs(model, monkeypatch, caplog):
    def sageattn(q, k, v, tensor_layout):
        return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    monkeypatch.setitem(sys.modules, "sageattention", SimpleNamespace(sageattn=sageattn))
    right = video(model, "euler")
    torch.testing.assert_close(video(FastDiT(model, attention="sage"), "euler"), right, atol=2e-4, rtol=2e-4)
    assert not caplog.text  # on a CPU there are no graphs anyway
    monkeypatch.setattr(FastDiT, "device", torch.device("cuda"))
    for attention in ("sage", attention_backend("sage"), Uncaptured(sdpa, "its kernels are SageAttention's")):
        caplog.clear()
        assert not FastDiT(model, attention=attention, kernels="torch").graphs
        assert "without CUDA graphs" in caplog.text and "SageAttention" in caplog.text
    for attention in ("sdpa", "auto", sdpa):
        caplog.clear()
        assert FastDiT(model, attention=attention, kernels="torch").graphs and not caplog.text


def test_storage_goes_from_video_to_video(model):
    fast, gc_was_on = FastDiT(model), gc.isenabled()
    gc.disable()  # it comes back when the video is gone, not when Python's collector comes by
    try:
        video(fast, "two at once with guidance")
        waiting = fast.idle_bytes
        places = sorted(loan.storage.k[0].data_ptr() for loan in fast._lender._idle)
        assert len(places) == 2 and waiting == 2 * 2 * 2 * (9 * 6) * 24 * 2 * 4  # branches, samples, k and v, layers
        stream = stream_chunks(
            fast, context(2), DiagonalSchedule.parse("1"), noise=SeededNoise(0), num_latent_frames=None, height=4,
            width=6, cache=CacheConfig(9, 3), cfg=2.0, negative=context(2),
        )  # fmt: skip
        next(stream)
        assert fast.idle_bytes == 0
        stream.close()
        assert sorted(loan.storage.k[0].data_ptr() for loan in fast._lender._idle) == places
        video(fast, "euler")  # of other sizes
        assert 0 < fast.idle_bytes < waiting
        fast.release()
        assert fast.idle_bytes == 0
    finally:
        if gc_was_on:
            gc.enable()


def test_storage_that_was_released_meanwhile_does_not_come_back(model):
    fast, state = FastDiT(model), SamplerState()
    options = dict(noise=SeededNoise(0), num_latent_frames=None, height=4, width=6, cache=CacheConfig(9, 3))
    stream = stream_chunks(fast, context(), DiagonalSchedule.parse("2"), state=state, **options)
    expected = stream_chunks(model, context(), DiagonalSchedule.parse("2"), **options)
    for number in range(4):
        torch.testing.assert_close(next(stream).latents, next(expected).latents, atol=2e-4, rtol=2e-4)
        if number == 1:
            fast.release()
    stream.close()
    del stream, state
    gc.collect()
    assert fast.idle_bytes == 0


def test_a_saved_cache_outlives_its_storage(model):
    """What a cache is asked to save is its own, although the next video writes to the same storage."""
    fast, state = FastDiT(model), SamplerState()
    video(fast, "euler", state=state)
    saved = state.caches[0].state_dict()["tensors"]["k.0"]
    before = saved.clone()
    del state
    video(fast, "euler", seed=9)
    assert torch.equal(saved, before)


def test_storage_must_fit(model):
    def cache(rows: int) -> KVCache:
        return KVCache(model.config, CacheConfig(6, 2), batch=1, rows=rows, columns=2)

    storage = KVStorage(cache(2).layout)
    with pytest.raises(ValueError, match="has the layout"):
        cache(3).lend(storage)
    right = cache(2)
    right.lend(storage)
    with pytest.raises(ValueError, match="has storage already"):
        right.lend(storage)


# -- precision --------------------------------------------------------------------------------------------------------


def test_a_forward_in_bfloat16_is_within_a_hundredth():
    """Every forward of a video, on the same input and past."""
    plain = small_model(dim=256, ffn_dim=512, num_heads=2, num_layers=6).to(torch.bfloat16)
    fast = FastDiT(copy.deepcopy(plain))
    errors = []

    class Both:
        config, dtype, device = plain.config, plain.dtype, plain.device

        def __call__(self, latents, timestep, context, cache=None, start_frame=0):
            other = copy.deepcopy(cache)
            flow = plain(latents, timestep, context, cache=cache, start_frame=start_frame)
            ours = fast(latents, timestep, context, cache=other, start_frame=start_frame)
            errors.append(float((ours - flow).norm() / flow.norm()))
            return flow

    video(Both(), "noised commits")
    assert len(errors) == 14 + 7 and max(errors) < 1e-2


def test_videos_in_bfloat16_are_as_near_to_float32_as_the_plain_paths():
    exact = small_model(dim=256, ffn_dim=512, num_heads=2, num_layers=6)
    rounded = copy.deepcopy(exact).to(torch.bfloat16)
    fast = FastDiT(copy.deepcopy(rounded))
    exact = copy.deepcopy(rounded).float()
    errors = {"plain": 0.0, "fast": 0.0}
    for seed in range(3):
        right = video(exact, "last-step commits and eviction", seed=seed)
        for name, model in (("plain", rounded), ("fast", fast)):
            errors[name] += float((video(model, "last-step commits and eviction", seed=seed) - right).square().mean())
    assert errors["fast"] <= 1.1 * errors["plain"]


# -- choosing it ------------------------------------------------------------------------------------------------------


def test_it_is_taken_where_it_was_made_for(model, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    assert accelerated(model, "off") is model and accelerated(model, "auto") is model  # no GPU
    assert "plain path: the fast one is made for a GPU" in caplog.text
    assert isinstance(accelerated(model, "on"), FastDiT)
    model.blocks[0].register_forward_hook(lambda *a: None)
    with pytest.raises(ValueError, match=r"blocks\.0 is patched or hooked"):
        accelerated(model, "on")
    with pytest.raises(ValueError, match="one of auto, on, off"):
        accelerated(model, "yes")
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert accelerated(model, "auto") is model
    assert "plain path: blocks.0 is patched or hooked" in caplog.text


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
