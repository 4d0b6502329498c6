"""The cache keeps the sink and the ring that METHOD names, in place, and rotates a relative sink where it belongs."""

from __future__ import annotations

import pytest
import torch
from goldens_reader import small_model
from hypothesis import given
from hypothesis import strategies as st

from diag_core import CacheConfig, ContextPolicy, DiagonalSchedule, SeededNoise, WanConfig, generate
from diag_core.kv_cache import KVCache
from diag_core.rope import rotate, rotation
from training.block_causal import causal_blocks

SIZES = WanConfig(dim=12, ffn_dim=12, num_heads=1, num_layers=1, text_dim=4, freq_dim=4, text_len=2)


def cache_of(window, sink, positions="absolute", total=0):
    config = CacheConfig(window_frames=window, sink_frames=sink, positions=positions)
    return KVCache(SIZES, config, batch=1, rows=1, columns=1, total_frames=total)


def write(cache: KVCache, start: int, frames: int) -> list[int]:
    """Writes a chunk whose values are its latent-frame numbers; returns the frame numbers that it attends to."""
    values = torch.arange(start, start + frames, dtype=torch.float32).view(1, frames, 1, 1).expand(1, frames, 1, 12)
    turn = rotation(tuple(range(start, start + frames)), 1, 1, 12, torch.device("cpu"))
    cache.place(start, frames)
    _, v = cache.join(0, torch.ones(1, frames, 1, 12), values, turn)
    return sorted(int(x) for x in v[0, :, 0, 0])


@given(
    sink=st.integers(0, 5), ring=st.integers(1, 8), spans=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    origin=st.integers(0, 40),
)  # fmt: skip
def test_a_chunk_attends_to_the_sink_and_the_most_recent_frames(sink, ring, spans, origin):
    cache = cache_of(sink + ring, sink)
    start = origin
    for frames in spans:
        if frames - max(0, sink - (start - origin)) > ring:
            with pytest.raises(ValueError, match="does not fit a window"):
                cache.place(start, frames)
            return
        seen = write(cache, start, frames)
        end = start + frames
        sunk = set(range(origin, min(origin + sink, end)))
        recent = set(range(max(origin + sink, end - ring), end))
        assert set(seen) == sunk | recent and len(seen) == len(set(seen))
        assert write(cache, start, frames) == seen  # every denoising step overwrites the same slots
        cache.advance()
        start = end


def test_storage_is_written_in_place_and_never_grows():
    cache = cache_of(6, 2)
    assert not cache.k  # nothing is held before it is needed
    write(cache, 0, 2)
    cache.advance()
    before = [(t.data_ptr(), t.shape) for t in (*cache.k, *cache.v)]
    assert before
    for start in range(2, 60, 2):
        write(cache, start, 2)
        cache.advance()
    assert [(t.data_ptr(), t.shape) for t in (*cache.k, *cache.v)] == before


def test_attention_reads_a_view_of_the_storage():
    cache = cache_of(6, 2)
    cache.place(0, 2)
    k, v = cache.join(0, torch.ones(1, 2, 1, 12), torch.ones(1, 2, 1, 12), torch.ones(2, 1, 6, dtype=torch.complex64))
    assert k.data_ptr() == cache.k[0].data_ptr() and v.data_ptr() == cache.v[0].data_ptr()


def test_chunks_must_follow_each_other():
    cache = cache_of(6, 2)
    write(cache, 0, 2)
    cache.advance()
    with pytest.raises(ValueError, match="continues at latent frame 2, not at 3"):
        cache.place(3, 2)


def test_a_cache_without_window_refuses_frames_beyond_its_length():
    cache = cache_of(None, 3, total=4)
    write(cache, 0, 3)
    cache.advance()
    with pytest.raises(ValueError, match="latent frame 6 is beyond the 4"):
        cache.place(3, 3)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize(("window", "branches"), [(12, 1), (12, 2), (None, 1)])
def test_bytes_are_known_beforehand(positions, window, branches):
    model = small_model()
    config = CacheConfig(window_frames=window, sink_frames=3, positions=positions)
    from diag_core import SamplerState

    state = SamplerState()
    context = torch.randn(2, 6, 8)
    generate(
        model, context, DiagonalSchedule.parse("1"), noise=SeededNoise(0), num_latent_frames=9, height=4, width=6,
        cache=config, state=state, cfg=2.0 if branches == 2 else 1.0, negative=context,
    )  # fmt: skip
    held = 0
    for cache in state.caches:
        held += sum(t.numel() * 4 for t in (*cache.k, *cache.v, *cache.sink_k, cache.text))
        held += sum(t.numel() * 4 for pair in cache.cross for t in pair)
    expected = config.bytes(
        model.config, tokens_per_frame=6, total_frames=9, batch=2, element_size=4, branches=branches
    )
    assert held == expected


def test_a_relative_sink_equals_rotating_the_whole_window_from_zero():
    """LongLive's way: the window's keys, unrotated, turned at 0 .. n-1. Only differences of positions matter."""
    torch.manual_seed(0)
    sink, ring, frames = 2, 4, 2
    cache = cache_of(sink + ring, sink, "relative")
    raw = torch.randn(40, 1, 12)
    queries = torch.randn(frames, 1, 12)
    for start in range(0, 40, frames):
        cache.place(start, frames)
        positions = tuple(range(start, start + frames))
        turn = rotation(positions, 1, 1, 12, torch.device("cpu"))
        k, _ = cache.join(0, raw[None, start : start + frames], raw[None, start : start + frames], turn)
        mine = torch.einsum("nhd,bmhd->nm", rotate(queries[None], turn)[0], k).sort(dim=1).values
        end = start + frames
        kept = [*range(min(sink, end)), *range(max(sink, end - ring), end)]
        zero = rotation(tuple(range(len(kept))), 1, 1, 12, torch.device("cpu"))
        theirs_k = rotate(raw[None, kept], zero)
        theirs_q = rotate(queries[None], zero[-frames:])
        theirs = torch.einsum("nhd,bmhd->nm", theirs_q[0], theirs_k).sort(dim=1).values
        assert torch.allclose(mine, theirs, atol=1e-4)
        cache.advance()


def test_positions_stay_exact_far_into_a_video():
    turn = rotation((30_000, 30_001), 1, 1, 12, torch.device("cpu"))
    exact = torch.tensor([30_000.0, 30_001.0], dtype=torch.float64)
    assert torch.allclose(turn[:, 0, 0].real.double(), exact.cos(), atol=1e-6)


@pytest.mark.parametrize(("window", "sink"), [(None, 3), (6, 3), (9, 3), (5, 0), (7, 3)])
def test_cached_chunks_equal_one_block_causal_forward(window, sink):
    """At one noise level, chunk by chunk with a cache is the whole video in the blocks that training uses."""
    model = small_model()
    config = CacheConfig(window_frames=window, sink_frames=sink)
    torch.manual_seed(1)
    latents, context = torch.randn(2, 16, 15, 4, 6), torch.randn(2, 6, 8)
    timestep = torch.tensor([300.0, 700.0])
    cache = KVCache(model.config, config, batch=2, rows=2, columns=3, total_frames=15)
    with torch.no_grad():
        whole = model(latents, timestep, context, mask=causal_blocks(15, 6, 3, config))
        parts = []
        for start in range(0, 15, 3):
            parts.append(model(latents[:, :, start : start + 3], timestep, context, cache=cache, start_frame=start))
            cache.advance()
    assert torch.allclose(torch.cat(parts, 2), whole, atol=1e-4)


def test_each_frame_influences_exactly_the_chunks_that_attend_to_it():
    """One layer, so that influence is attention: a frame changes its own chunk and those whose window holds it."""
    model = small_model(num_layers=1)
    config = CacheConfig(window_frames=9, sink_frames=3)
    torch.manual_seed(2)
    latents, context = torch.randn(1, 16, 21, 4, 4), torch.randn(1, 6, 8)

    def run(x):
        cache = KVCache(model.config, config, batch=1, rows=2, columns=2)
        outputs = []
        with torch.no_grad():
            for start in range(0, 21, 3):
                chunk = x[:, :, start : start + 3]
                outputs.append(model(chunk, torch.tensor([500.0]), context, cache=cache, start_frame=start))
                cache.advance()
        return outputs

    base = run(latents)
    for frame in range(21):
        changed = latents.clone()
        changed[:, :, frame] += 1.0
        moved = {i for i, (a, b) in enumerate(zip(base, run(changed), strict=True)) if not torch.equal(a, b)}
        own = frame // 3
        expected = set(range(own, 7)) if frame < 3 else {own, own + 1} & set(range(7))
        assert moved == expected, frame


def test_a_snapshot_gives_the_cached_forward_and_writes_nothing():
    model = small_model()
    config = CacheConfig(window_frames=6, sink_frames=3)
    torch.manual_seed(3)
    latents, context, t = torch.randn(1, 16, 12, 4, 4), torch.randn(1, 6, 8), torch.tensor([400.0])
    cache = KVCache(model.config, config, batch=1, rows=2, columns=2)
    with torch.no_grad():
        for start in range(0, 9, 3):
            model(latents[:, :, start : start + 3], t, context, cache=cache, start_frame=start)
            cache.advance()
    past = cache.snapshot(9, 3)
    before = [tensor.clone() for tensor in (*cache.k, *cache.v)]
    last = latents[:, :, 9:].clone().requires_grad_()
    with_gradient = model(last, t, context, cache=past, start_frame=9)
    with_gradient.sum().backward()
    assert last.grad is not None and last.grad.abs().sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(before, (*cache.k, *cache.v), strict=True))
    with torch.no_grad():
        cached = model(latents[:, :, 9:], t, context, cache=cache, start_frame=9)
    assert torch.allclose(with_gradient, cached, atol=1e-5)
    with pytest.raises(ValueError, match="past of 3 latent frames from 9"):
        past.place(12, 3)


@pytest.mark.parametrize(
    "wrong", [{"window_frames": 12.5}, {"sink_frames": 2.5}, {"window_frames": 3}, {"positions": "x"}]
)
def test_windows_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=r"CacheConfig\."):
        CacheConfig(**wrong)


@pytest.mark.parametrize("sigma", ["a", True, 1.5, float("nan")])
def test_levels_that_cannot_be_are_refused(sigma):
    with pytest.raises(ValueError, match="ContextPolicy: sigma"):
        ContextPolicy.noised(sigma)
