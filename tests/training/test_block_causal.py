from __future__ import annotations

import torch

from diag_core import CacheConfig
from training.block_causal import frame_mask


def test_a_chunk_is_trained_on_the_window_it_will_be_sampled_with() -> None:
    mask = frame_mask(15, 3, CacheConfig(window_frames=9, sink_frames=3))
    seen = {row: set(torch.nonzero(mask[row])[:, 0].tolist()) for row in (0, 4, 9, 14)}
    assert seen[0] == {0, 1, 2}
    assert seen[4] == {0, 1, 2, 3, 4, 5}
    assert seen[9] == {0, 1, 2, 6, 7, 8, 9, 10, 11}
    assert seen[14] == {0, 1, 2, 9, 10, 11, 12, 13, 14}
