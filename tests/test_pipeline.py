"""Chunks to pictures while the next one is sampled: equality, order, back-pressure, and every way to end."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from goldens_reader import small_model

from diag_core import CacheConfig, DiagonalSchedule, SeededNoise, generate, stream_chunks
from diag_core.chunk_loop import Chunk, Forward
from diag_core.pictures import to_uint8
from diag_core.pipeline import Frames, OnForward, VideoPipeline
from diag_core.vae import TinyVAE, TinyVAEConfig, WanVAE

SAMPLING = dict(noise=SeededNoise(5), num_latent_frames=14, height=4, width=4, cache=CacheConfig(9, 3))
SCHEDULE = DiagonalSchedule.parse("21")


def context() -> torch.Tensor:
    return torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return small_model(num_layers=2)


@pytest.fixture(scope="module", params=["tiny", "wan"])
def vae(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    return WanVAE(dim=8) if request.param == "wan" else TinyVAE(TinyVAEConfig())


class EachFrameIsItsLatent:
    """Decodes latent frame f to as many pictures as it stands for, all of its first value; counts what it is given."""

    def __init__(self, *, slow: float = 0.0, fails_at: int | None = None) -> None:
        self.decoded, self.slow, self.fails_at = 0, slow, fails_at

    def streaming_decoder(self) -> EachFrameIsItsLatent:
        return self

    def push(self, latents: torch.Tensor) -> torch.Tensor:
        time.sleep(self.slow)
        if self.decoded == self.fails_at:
            raise RuntimeError("no memory left to decode in")
        counts = [1 if self.decoded == 0 and f == 0 else 4 for f in range(latents.shape[2])]
        self.decoded += 1
        values = latents[0, 0, :, 0, 0].repeat_interleave(torch.tensor(counts))
        return values[None, None, :, None, None].expand(1, 3, -1, 16, 16)


def made_up(count: int, made: list[int], *, fails_at: int | None = None) -> Callable[[OnForward], Iterator[Chunk]]:
    """Chunks of one value each, which count up; three forwards a chunk."""

    def chunks(on_forward: OnForward) -> Iterator[Chunk]:
        for number in range(count):
            if number == fails_at:
                raise ValueError("the model is broken")
            for step in range(3):
                on_forward(Forward("step", number, step + 1, 3))
            made.append(number)
            yield Chunk(number, 3 * number, torch.full((1, 16, 3, 2, 2), number / 100), 3)

    return chunks


def no_thread_is_left() -> bool:
    end = time.monotonic() + 10
    while any(t.name.startswith("diagdistill") for t in threading.enumerate()):
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def test_streamed_pictures_equal_the_whole_decode(model, vae) -> None:
    latents = generate(model, context(), SCHEDULE, **SAMPLING)
    with torch.no_grad():
        whole = to_uint8(vae.decode(latents))
    pipeline = VideoPipeline(lambda f: stream_chunks(model, context(), SCHEDULE, on_forward=f, **SAMPLING), vae)
    frames = list(pipeline.frames())
    assert [f.start_pixel_frame for f in frames] == [0, 9, 21, 33, 45]
    streamed = torch.cat([f.pixels for f in frames])
    assert streamed.dtype == torch.uint8 and streamed.shape == whole.shape
    # Sums in another order may fall on the other side of a rounding step.
    assert (streamed.int() - whole.int()).abs().max() <= 1
    assert (streamed != whole).float().mean() < 1e-3
    assert no_thread_is_left()


def test_the_first_pictures_are_made_before_the_second_chunk_is_begun() -> None:
    forwards: list[Forward] = []
    seen: list[int] = []

    class Decoder(EachFrameIsItsLatent):
        def push(self, latents: torch.Tensor) -> torch.Tensor:
            pixels = super().push(latents)
            seen.append(len(forwards))
            return pixels

    frames = list(VideoPipeline(made_up(4, []), Decoder(slow=0.05), on_forward=forwards.append).frames())
    assert [f.chunk.index for f in frames] == [0, 1, 2, 3]
    assert seen[0] == 3  # the three of the first chunk


def test_sampling_goes_on_while_a_chunk_is_decoded() -> None:
    """But for the first, whose pictures are to come as soon as they can."""
    sampled = [threading.Event() for _ in range(8)]

    def chunks(on_forward: OnForward) -> Iterator[Chunk]:
        for chunk, event in zip(made_up(8, [])(on_forward), sampled, strict=True):
            event.set()
            yield chunk

    class Decoder(EachFrameIsItsLatent):
        def push(self, latents: torch.Tensor) -> torch.Tensor:
            following = len(meanwhile) + 1
            if following < len(sampled):
                meanwhile.append(sampled[following].wait(0.1 if following == 1 else 10))
            return super().push(latents)

    meanwhile: list[bool] = []
    list(VideoPipeline(chunks, Decoder()).frames())
    assert meanwhile == [False] + 6 * [True]


def test_a_slow_reader_slows_the_sampling_down() -> None:
    made: list[int] = []
    frames = VideoPipeline(made_up(50, made), EachFrameIsItsLatent()).frames()
    next(frames)
    time.sleep(0.3)
    # One read; one waiting on either side of the decoder, and one in the hands of either thread.
    assert len(made) <= 6
    assert len(list(frames)) == 49 and no_thread_is_left()


def test_no_more_pictures_than_asked_for() -> None:
    made: list[int] = []
    frames = list(VideoPipeline(made_up(9, made), EachFrameIsItsLatent(), pixel_frames=14).frames())
    assert [f.pixels.shape[0] for f in frames] == [9, 5] and no_thread_is_left()
    assert len(made) < 9


@pytest.mark.parametrize("how", ["close", "forget", "raise"])
def test_a_reader_that_stops_leaves_nothing_behind(how: str) -> None:
    made: list[int] = []
    frames = VideoPipeline(made_up(10_000, made), EachFrameIsItsLatent()).frames()
    next(frames)
    if how == "close":
        frames.close()
    elif how == "forget":
        del frames
    else:
        with pytest.raises(KeyError):
            for _ in frames:
                raise KeyError
        del frames
    gc.collect()
    assert no_thread_is_left() and len(made) < 100


def test_errors_come_after_the_pictures_before_them() -> None:
    for pipeline, error, kind in (
        (VideoPipeline(made_up(5, [], fails_at=3), EachFrameIsItsLatent()), "the model is broken", ValueError),
        (VideoPipeline(made_up(5, []), EachFrameIsItsLatent(fails_at=3)), "no memory left", RuntimeError),
    ):
        seen: list[Frames] = []
        with pytest.raises(kind, match=error):
            for frames in pipeline.frames():
                seen.append(frames)
        assert [f.chunk.index for f in seen] == [0, 1, 2] and no_thread_is_left()


def test_what_a_report_raises_ends_the_video() -> None:
    """As Ctrl-C and ComfyUI's cancel do: between two forwards."""

    def cancel(forward: Forward) -> None:
        if (forward.chunk, forward.step) == (2, 2):
            raise KeyboardInterrupt

    seen, made = [], []
    with pytest.raises(KeyboardInterrupt):
        for frames in VideoPipeline(made_up(5, made), EachFrameIsItsLatent(), on_forward=cancel).frames():
            seen.append(frames.chunk.index)
    assert seen == [0, 1] and made == [0, 1] and no_thread_is_left()


def test_many_videos_leave_no_memory_behind(model) -> None:
    torch.manual_seed(0)
    vae = TinyVAE(TinyVAEConfig())
    gc.collect()
    before = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    for _ in range(5):
        frames = VideoPipeline(
            lambda f: stream_chunks(model, context(), SCHEDULE, on_forward=f, **SAMPLING), vae
        ).frames()
        next(frames)
        frames.close()
    del frames
    gc.collect()
    assert sum(isinstance(o, torch.Tensor) for o in gc.get_objects()) <= before + 2
