"""Training over a whole video at once: which tokens a chunk would have seen had it been sampled."""

from __future__ import annotations

from diag_core import CacheConfig
from diag_core.attention import Blocks
from diag_core.geometry import chunk_spans


def causal_blocks(frames: int, tokens_per_frame: int, chunk_frames: int, cache: CacheConfig) -> Blocks:
    """For the tokens of `frames` latent frames: a chunk attends to itself in both directions, to the sink, and to the
    recent frames that the window leaves room for."""

    def tokens(first: int, end: int) -> slice:
        return slice(first * tokens_per_frame, end * tokens_per_frame)

    runs = []
    for span in chunk_spans(frames, chunk_frames):
        end, sink = span.start + span.length, cache.sink_frames
        recent = 0 if cache.window_frames is None else max(0, end - (cache.window_frames - sink))
        parts = [(0, end)] if recent <= sink else [(0, sink), (recent, end)]
        seen = tuple(tokens(first, last) for first, last in parts if last > first)
        runs.append((tokens(span.start, end), seen))
    return Blocks(tuple(runs))
