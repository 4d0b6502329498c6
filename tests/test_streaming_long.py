"""A stream's hundredth chunk costs what its tenth does, wherever in time it lies."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from long_stream import CACHE, CYCLE, NoiseFrom, pictures, prompt, stream, tensors_held, tiny_dit, tiny_vae
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diag_core import SamplerState, WanDiT
from diag_core.chunk_loop import Chunk
from diag_core.kv_cache import KVCache
from diag_core.live import LivePrompts, LiveTimeline, follow
from diag_core.pictures import to_uint8
from diag_core.pipeline import OnForward, VideoPipeline
from diag_core.rope import rotate, rotation


@pytest.fixture(scope="module")
def model() -> WanDiT:
    return tiny_dit()


class Watch(TorchDispatchMode):
    """How many operators run in its thread, and how large their largest result is, storage included."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += 1
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel(), tensor.untyped_storage().nbytes() // 4)
        return out


# -- memory and work --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [False, True], ids=["one prompt", "a new prompt every 20 chunks"])
def test_what_is_held_does_not_grow_over_300_chunks(model: WanDiT, live: bool) -> None:
    prompts = LivePrompts(lambda text: prompt(int(text)))
    timeline, state = LiveTimeline([(0, prompt())]), SamplerState()
    decoder = tiny_vae().streaming_decoder()
    held: dict[int, tuple[int, int]] = {}
    objects: dict[int, int] = {}
    for chunk in follow(stream(model, 301, context=timeline, state=state), prompts, [timeline], state, 3):
        frames = to_uint8(decoder.push(chunk.latents)).shape[0]
        assert frames == (9 if chunk.index == 0 else 12) and torch.isfinite(chunk.latents).all()
        if live and chunk.index % 20 == 19:
            prompts.say(str(chunk.index // 20 % 3 + 1))  # three of them, all seen by chunk 60
        if chunk.index in (60, 300):
            held[chunk.index], objects[chunk.index] = tensors_held(), len(gc.get_objects())
    assert len(prompts.log) == (15 if live else 0)
    assert held[300] == held[60]
    # A log of the switches is kept; nothing is of a chunk without one.
    assert objects[300] - objects[60] <= (100 if live else 10)


def test_no_tensor_is_as_long_as_the_video_and_no_chunk_takes_more_operators_than_another(model: WanDiT) -> None:
    def run(chunks: int) -> tuple[int, int, list[int]]:
        sampling, decoding = Watch(), Watch()
        operators: list[int] = []

        def watched(on_forward: OnForward) -> Iterator[Chunk]:
            with sampling:
                before = 0
                for chunk in stream(model, chunks, on_forward=on_forward):
                    operators.append(sampling.count - before)
                    yield chunk
                    before = sampling.count

        class Decoder:
            def streaming_decoder(self) -> Decoder:
                self.stream = tiny_vae().streaming_decoder()
                return self

            def push(self, latents: Tensor) -> Tensor:
                with decoding:
                    return self.stream.push(latents)

        frames = sum(f.pixels.shape[0] for f in VideoPipeline(watched, Decoder()).frames())
        assert frames == 12 * chunks - 3
        return sampling.largest, decoding.largest, operators

    short, long = run(20), run(200)
    assert short[0] == long[0] > 0 and short[1] == long[1] > 0
    work = long[2]
    # From the second round of the schedule on the window is full.
    assert all(work[i] == work[CYCLE + i % CYCLE] for i in range(CYCLE, 200))


def test_the_watch_sees_a_tensor_that_grows() -> None:
    watch, kept = Watch(), torch.zeros(0, 100)
    with watch:
        for _ in range(50):
            kept = torch.cat([kept, torch.ones(1, 100)])
    assert watch.largest == 5000 and watch.count == 100


# -- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["relative", "absolute"])
@pytest.mark.parametrize("first_frame", [999, 30_000])
def test_a_stream_does_not_depend_on_where_in_time_it_begins(model: WanDiT, first_frame: int, positions: str) -> None:
    """Attention sees differences of positions alone. Neither end of Wan's table of 1024 nor float32, which cannot tell
    positions near 30,000 apart finely enough, may come between."""
    cache = dataclasses.replace(CACHE, positions=positions)

    def latents(first: int) -> Tensor:
        noise = NoiseFrom(first)
        return torch.cat([c.latents for c in stream(model, 30, first_frame=first, noise=noise, cache=cache)], dim=2)

    early, late = latents(0), latents(first_frame)
    assert early.shape[2] == 90 and early.std() > 0.3
    torch.testing.assert_close(late, early, rtol=0, atol=2e-4)


def test_a_window_beyond_1024_is_the_same_window_placed_early(model: WanDiT) -> None:
    """The keys of a stream 1035 latent frames long, turned back to latent frame 45, go on to the same video."""
    state = SamplerState()
    for _ in stream(model, 345, state=state):
        pass
    early = _placed_earlier(model, state, 990)
    assert (state.frame, early.frame) == (1035, 45)
    noises = {1035: NoiseFrom(0), 45: NoiseFrom(-990)}
    late_latents, early_latents = (
        torch.cat([c.latents for c in stream(model, chunks, state=s, noise=noises[s.frame])], dim=2)
        for s, chunks in ((state, 357), (early, 27))
    )
    assert late_latents.shape[2] == early_latents.shape[2] == 36
    torch.testing.assert_close(late_latents, early_latents, rtol=0, atol=2e-4)


def test_positions_matter_to_this_model(model: WanDiT) -> None:
    """Without this the tests above would prove nothing."""
    one, other = (
        torch.cat([c.latents for c in stream(model, 10, cache=dataclasses.replace(CACHE, positions=p))], dim=2)
        for p in ("relative", "absolute")
    )
    assert torch.equal(one[:, :, :12], other[:, :, :12])  # until the window leaves the sink behind
    assert (one - other).abs().max() > 5e-3


def _placed_earlier(model: WanDiT, state: SamplerState, frames: int) -> SamplerState:
    """The same state `frames` latent frames ago: all stored keys turned back by as many positions."""
    (cache,) = state.caches
    assert frames % cache.ring == 0, "else the slots would be others"
    back = rotation((frames,), cache.rows, cache.columns, cache.head_dim, cache.device)
    still = rotation((0,), cache.rows, cache.columns, cache.head_dim, cache.device)
    turn = (back.conj() * still).repeat(cache.capacity, 1, 1)
    saved = cache.state_dict()
    saved["tensors"] = {n: rotate(t, turn) if n.startswith("k.") else t.clone() for n, t in saved["tensors"].items()}
    for name in ("held", "sink_at"):
        saved["counters"][name] -= frames
    earlier = KVCache(model.config, CACHE, batch=1, rows=cache.rows, columns=cache.columns)
    earlier.load_state_dict(saved)
    return dataclasses.replace(
        state, frame=state.frame - frames, handed_out=state.handed_out - frames, caches=[earlier], history=[]
    )


# -- threads ----------------------------------------------------------------------------------------------------------


def test_the_threads_of_a_stream_do_not_grow_in_number(model: WanDiT) -> None:
    running = {f.chunk.index: threading.active_count() for f in pictures(model, tiny_vae(), 60).frames()}
    assert max(running.values()) <= threading.active_count() + 2
