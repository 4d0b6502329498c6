"""Which tokens a chunk sees in a forward over a whole video."""

from __future__ import annotations

import pytest
import torch
from masks import dense

from diag_core import CacheConfig
from diag_core.attention import sdpa
from training.block_causal import causal_blocks


def seen_by(frame: int, cache: CacheConfig, *, frames: int = 15, tokens: int = 2) -> set[int]:
    """Latent frames that the tokens of a latent frame attend to, whole."""
    mask = dense(causal_blocks(frames, tokens, 3, cache), frames * tokens)
    by_frame = mask.unflatten(1, (frames, tokens)).unflatten(0, (frames, tokens))[frame]
    assert torch.equal(by_frame.any(2), by_frame.all(2)) and torch.equal(by_frame[0], by_frame[-1])
    return set(by_frame[0].any(1).nonzero()[:, 0].tolist())


def test_a_chunk_is_trained_on_the_window_it_will_be_sampled_with() -> None:
    cache = CacheConfig(window_frames=9, sink_frames=3)
    assert seen_by(0, cache) == {0, 1, 2}
    assert seen_by(4, cache) == {0, 1, 2, 3, 4, 5}
    assert seen_by(9, cache) == {0, 1, 2, 6, 7, 8, 9, 10, 11}
    assert seen_by(14, cache) == {0, 1, 2, 9, 10, 11, 12, 13, 14}
    assert seen_by(14, CacheConfig(None, 3)) == set(range(15))
    assert seen_by(14, CacheConfig(window_frames=6, sink_frames=0)) == set(range(9, 15))
    assert seen_by(9, CacheConfig(window_frames=7, sink_frames=2), frames=10) == {0, 1, 7, 8, 9}  # a chunk cut short


@pytest.mark.parametrize("cache", [CacheConfig(9, 3), CacheConfig(6, 0), CacheConfig(None, 3)], ids=str)
def test_blocks_are_their_mask_and_have_its_gradients(cache: CacheConfig) -> None:
    blocks = causal_blocks(15, 2, 3, cache)
    generator = torch.Generator().manual_seed(0)
    q, k, v, out = (torch.randn(2, 30, 2, 8, generator=generator) for _ in range(4))
    results = []
    for attend in (lambda *qkv: blocks.attend(sdpa, *qkv), lambda *qkv: sdpa(*qkv, dense(blocks, 30))):
        given = [x.clone().requires_grad_() for x in (q, k, v)]
        result = attend(*given)
        result.backward(out)
        results.append([result, *(x.grad for x in given)])
    for own, masked in zip(*results, strict=True):
        torch.testing.assert_close(own, masked)
