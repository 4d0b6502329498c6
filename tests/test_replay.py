"""Replayed chunks: the video goes on as one longer run, for one forward a chunk; and guides other than CFG."""

from __future__ import annotations

import pytest
import torch
from goldens_reader import small_model

from diag_core import CacheConfig, ContextPolicy, DiagonalSchedule, SeededNoise, Timeline, WanDiT, stream_chunks
from diag_core.sampler import ClassifierFree, stream_branches

SCHEDULE = DiagonalSchedule.parse("321")
WINDOW = CacheConfig(window_frames=9, sink_frames=3)


def context(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> WanDiT:
    return small_model(num_layers=2)


def run(model: WanDiT, frames: int, prompt: torch.Tensor | Timeline, **options):
    defaults = dict(noise=SeededNoise(5), num_latent_frames=frames, height=4, width=4, cache=WINDOW)
    return list(stream_chunks(model, prompt, SCHEDULE, **(defaults | options)))


def joined(chunks) -> torch.Tensor:
    return torch.cat([chunk.latents for chunk in chunks], dim=2)


A, B = context(1), context(2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"policy": ContextPolicy.clean()},
        {"policy": ContextPolicy.noised(0.3)},
        {"cfg": 2.0, "negative": context(3)},
        {"step": "euler"},
        {"cache": CacheConfig(None, 0)},
        {"cache": CacheConfig(9, 3, "relative")},
        {"initial_latents": torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1))},
    ],
)
@pytest.mark.parametrize("prompt", [A, Timeline([(0, A), (6, B)])], ids=["one prompt", "a switch"])
def test_a_replayed_beginning_leads_to_the_video_of_one_longer_run(model, options, prompt):
    whole = run(model, 18, prompt, **options)
    takes = [chunk.take for chunk in run(model, 11, prompt, **options) if chunk.take]  # trimmed by one latent frame
    again = run(model, 18, prompt, replay=takes, **options)
    assert torch.equal(joined(again), joined(whole))


def test_a_replayed_chunk_costs_one_forward(model):
    takes = [chunk.take for chunk in run(model, 9, A)]
    forwards = []
    chunks = run(model, 12, A, replay=takes, on_forward=forwards.append)
    assert [f.kind for f in forwards] == ["commit"] * 3 + ["step"]
    assert [chunk.steps for chunk in chunks] == [0, 0, 0, 1]


def test_the_window_may_be_another_one_when_replayed(model):
    takes = [chunk.take for chunk in run(model, 12, A)]
    wider = run(model, 18, A, cache=CacheConfig(None, 0), replay=takes)
    assert torch.equal(joined(wider)[:, :, :12], joined(run(model, 12, A)))
    assert not torch.equal(joined(wider)[:, :, 12:], joined(run(model, 18, A))[:, :, 12:])


def test_takes_of_another_size_are_refused(model):
    takes = [chunk.take for chunk in run(model, 3, A, height=6)]
    with pytest.raises(ValueError, match="replay, chunk 0"):
        run(model, 6, A, replay=takes)


class Only:
    """A guide that lets the second branch act on the first chunk's first step alone."""

    cfg = 1.0

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x, sigma, flows, *, start_frame):
        self.calls += 1
        if self.calls == 1:
            flows[1](x)
        return flows[0](x)


def test_a_branch_that_a_guide_leaves_out_is_committed_all_the_same(model):
    def pairs(prompt):
        return [(model, Timeline([(0, prompt)])), (model, Timeline([(0, B)]))]

    options = dict(noise=SeededNoise(5), num_latent_frames=12, height=4, width=4, cache=WINDOW)
    alone = joined(run(model, 12, A))
    guided = joined(list(stream_branches(pairs(A), SCHEDULE, guide=Only(), **options)))
    assert torch.equal(guided, alone)


def test_classifier_free_is_what_stream_chunks_does(model):
    pairs = [(model, Timeline([(0, A)])), (model, Timeline([(0, B)]))]
    options = dict(noise=SeededNoise(5), num_latent_frames=9, height=4, width=4, cache=WINDOW)
    assert torch.equal(
        joined(list(stream_branches(pairs, SCHEDULE, guide=ClassifierFree(2.0), **options))),
        joined(run(model, 9, A, cfg=2.0, negative=B)),
    )
