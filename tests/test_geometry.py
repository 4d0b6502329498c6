"""Frame counts and indices against the VAE's grouping of pixel frames, and chunk spans that tile a video."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diag_core import geometry as g

counts = st.integers(1, 5000)


def grouped(num_pixel_frames: int) -> list[list[int]]:
    """Pixel frames by latent frame, spelled out: the first alone, then by fours."""
    frames = list(range(num_pixel_frames))
    return [frames[:1]] + [frames[i : i + 4] for i in range(1, num_pixel_frames, 4)]


def test_known_sizes():
    assert g.latent_frames(81) == 21 and g.pixel_frames(21) == 81
    assert g.tokens_per_frame(*g.latent_size(480, 832)) == 1560
    assert g.latent_frames_for(5.0, fps=16) == 21


@given(st.integers(1, 300))
def test_counts_and_indices_follow_the_grouping(num_pixel_frames):
    groups = grouped(num_pixel_frames)
    assert g.latent_frames(num_pixel_frames) == len(groups)
    for latent, members in enumerate(groups):
        assert g.first_pixel_frame_of(latent) == members[0]
        assert {g.latent_frame_of(pixel) for pixel in members} == {latent}


@given(counts)
def test_latent_counts_round_trip(latent):
    assert g.latent_frames(g.pixel_frames(latent)) == latent
    assert g.latent_frame_of(g.first_pixel_frame_of(latent)) == latent


@given(st.integers(0, 100_000), st.sampled_from([8, 12.5, 16, 23.976, 24, 25, 29.97, 30, 60, 100]))
def test_seconds_round_trip_at_every_frame_rate(index, fps):
    assert g.pixel_frame_at(index / fps, fps) == index
    assert g.latent_frame_at(g.seconds_at(index, fps), fps) == index


def test_a_binary_fraction_does_not_lose_a_frame():
    assert int(0.29 * 100) == 28  # the trap
    assert g.pixel_frame_at(0.29, fps=100) == 29


def spans_reference(total: int, chunk: int, given_frames: int) -> list[tuple[int, int]]:
    spans, start = [], 0
    if given_frames % chunk == 1 and chunk > 1:
        spans.append((0, 1))
        start = 1
    while start < max(total, given_frames):
        spans.append((start, chunk))
        start += chunk
    return spans


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 40))
def test_spans_tile_the_video(total, chunk, given_frames):
    if given_frames % chunk > 1 or total < given_frames:
        with pytest.raises(ValueError):
            g.chunk_spans(total, chunk, given_frames)
        return
    spans = g.chunk_spans(total, chunk, given_frames)
    assert spans == spans_reference(total, chunk, given_frames)
    assert g.given_spans(given_frames, chunk) == [span for span in spans if span.start < given_frames]
    assert g.chunk_count(total - given_frames, chunk) == len([span for span in spans if span.start >= given_frames])


def test_a_single_given_image_makes_a_short_first_span():
    assert g.chunk_spans(7, 3, given_frames=1) == [(0, 1), (1, 3), (4, 3)]
    assert g.chunk_spans(9, 3, given_frames=4) == [(0, 1), (1, 3), (4, 3), (7, 3)]
    assert g.chunk_spans(2, 1, given_frames=1) == [(0, 1), (1, 1)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: g.latent_frames(0),
        lambda: g.pixel_frames(0),
        lambda: g.latent_frame_of(-1),
        lambda: g.first_pixel_frame_of(-1),
        lambda: g.pixel_frame_at(-0.1),
        lambda: g.pixel_frame_at(float("nan")),
        lambda: g.pixel_frame_at(float("inf")),
        lambda: g.pixel_frame_at(1.0, fps=0),
        lambda: g.seconds_at(3, fps=float("nan")),
        lambda: g.latent_size(481, 832),
        lambda: g.latent_size(0, 832),
        lambda: g.tokens_per_frame(3, 4),
        lambda: g.chunk_count(3, 0),
        lambda: g.chunk_spans(0, 3),
        lambda: g.chunk_spans(3, 0),
        lambda: g.given_spans(-3, 3),
    ],
)
def test_impossible_sizes_are_refused(call):
    with pytest.raises(ValueError):
        call()


def test_a_wrong_size_is_told_what_to_use():
    with pytest.raises(ValueError, match="height must be a multiple of 16 pixels, got 481; use 480 or 496"):
        g.latent_size(481, 832)


@pytest.mark.parametrize(
    ("count", "used"), [(1, 1), (8, 1), (9, 9), (12, 9), (13, 13), (17, 9), (20, 9), (21, 21), (25, 25), (30, 21)]
)
def test_a_clip_that_does_not_fit_is_cut_to_whole_chunks(count, used):
    assert g.usable_pixel_frames(count, 3) == used


@pytest.mark.parametrize("chunk_frames", [1, 2, 3, 5])
def test_what_is_used_can_be_given_and_less_than_a_chunk_is_lost(chunk_frames):
    for count in range(1, 60):
        used = g.usable_pixel_frames(count, chunk_frames)
        assert 1 <= used <= count and (used - 1) % 4 == 0
        g.given_spans(g.latent_frames(used), chunk_frames)  # raises where it cannot
        assert count - used < 4 * chunk_frames


def test_no_more_latent_frames_than_fit_are_used():
    assert [g.usable_pixel_frames(200, 3, most) for most in (2, 3, 12, 13, 60, None)] == [9, 9, 45, 45, 189, 189]
