"""Lengths in the units of the widgets, and what is refused before anything runs."""

from __future__ import annotations

import math

import pytest
from diagdistill_pack.diag_core.geometry import latent_frames
from diagdistill_pack.nodes.length import (
    MAX_LATENT_FRAMES,
    MAX_SIZE,
    UNITS,
    latent_length,
    size_fault,
)


@pytest.mark.parametrize(
    ("length", "unit"), [(5.0, "seconds"), (81.0, "pixel frames"), (21.0, "latent frames"), (7.0, "chunks")]
)
def test_the_units_of_the_tooltip_agree(length, unit):
    assert latent_length(length, unit, 16.0, 3) == 21


def test_seconds_go_by_the_rate_and_chunks_by_their_size():
    assert latent_length(2.0, "seconds", 24.0, 3) == latent_frames(48)
    assert latent_length(2.0, "chunks", 16.0, 5) == 10
    assert latent_length(0.01, "seconds", 16.0, 3) == 1


@pytest.mark.parametrize(
    ("length", "unit"), [(3.0, "seconds"), (48.0, "pixel frames"), (12.0, "latent frames"), (4.0, "chunks")]
)
def test_what_is_added_has_no_single_first_picture(length, unit):
    assert latent_length(length, unit, 16.0, 3, more=True) == 12


def test_adding_makes_up_for_a_part_of_a_latent_frame():
    assert latent_length(5.0, "pixel frames", 16.0, 3, more=True) == 2
    assert latent_length(0.01, "seconds", 16.0, 3, more=True) == 1
    assert latent_length(0.1 + 0.2, "seconds", 40.0, 3, more=True) == 3  # 12.000000000000002 pixel frames


@pytest.mark.parametrize("length", [0.0, -1.0, math.nan, math.inf])
def test_no_length(length):
    with pytest.raises(ValueError, match="above 0"):
        latent_length(length, "seconds", 16.0, 3)


@pytest.mark.parametrize("unit", UNITS[1:])
def test_only_seconds_have_parts(unit):
    with pytest.raises(ValueError, match=f"1.5 {unit} is no whole number"):
        latent_length(1.5, unit, 16.0, 3)


def test_an_unknown_unit_names_those_there_are():
    with pytest.raises(ValueError, match=r"weeks.*seconds, pixel frames, latent frames, chunks"):
        latent_length(1.0, "weeks", 16.0, 3)


def test_an_absurd_length():
    assert latent_length(MAX_LATENT_FRAMES, "latent frames", 16.0, 3) == MAX_LATENT_FRAMES
    with pytest.raises(ValueError, match="at most"):
        latent_length(MAX_LATENT_FRAMES, "chunks", 16.0, 3)


def test_sizes_and_lengths_that_can_be():
    assert size_fault(832, 480, 5.0, "seconds") is True
    assert size_fault(MAX_SIZE, 16, 1.0, "chunks") is True
    assert size_fault(None, 480, None, "seconds") is True  # the rest comes from other nodes
    # Too long at 16 pictures a second, but not at the one a second that the widget allows.
    assert size_fault(None, None, 300_000.0, "seconds") is True


@pytest.mark.parametrize(
    ("width", "height", "length", "unit", "said"),
    [
        (60, 64, 1.0, "seconds", "width must be a multiple of 16"),
        (64, 0, 1.0, "seconds", "height must be a multiple of 16"),
        (MAX_SIZE + 16, 64, 1.0, "seconds", "8192 pixels at most"),
        (64, 64, 0.0, "seconds", "length must be above 0"),
        (64, 64, 1.0, "weeks", "unit"),
        (64, 64, 1e9, "seconds", "at most"),
    ],
)
def test_sizes_and_lengths_that_cannot_be(width, height, length, unit, said):
    fault = size_fault(width, height, length, unit)
    assert isinstance(fault, str) and said in fault
