"""Bootstrap intervals of values whose statistics are known."""

from __future__ import annotations

import math

import pytest
import torch

from training.scores.interval import bootstrap_mean, bootstrap_median


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    found = bootstrap_mean(torch.tensor([1.0] * 60 + [0.0] * 40))
    spread = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert found.value == pytest.approx(0.6) and found.videos == 100
    assert found.lower == pytest.approx(0.6 - spread, abs=0.015)
    assert found.upper == pytest.approx(0.6 + spread, abs=0.015)


def test_equal_values_have_no_spread_and_unknown_ones_are_left_out() -> None:
    found = bootstrap_mean(torch.tensor([0.5, torch.nan, 0.5]))
    assert (found.value, found.lower, found.upper, found.videos) == (0.5, 0.5, 0.5, 2)
    nothing = bootstrap_mean(torch.full((3,), torch.nan)).to_dict()
    assert nothing == {"value": None, "lower": None, "upper": None, "videos": 0}


def test_a_median_of_what_may_never_come() -> None:
    mostly = bootstrap_median(torch.tensor([1.0] * 30 + [torch.inf] * 10))
    assert (mostly.value, mostly.lower, mostly.upper) == (1, 1, 1)
    rarely = bootstrap_median(torch.tensor([1.0] * 10 + [torch.inf] * 30))
    assert rarely.value == math.inf
    assert rarely.to_dict()["value"] is None
    half = bootstrap_median(torch.tensor([1.0, 3.0, torch.inf, torch.inf]))
    assert half.value == 3 and half.lower == 1 and half.upper == math.inf


def test_what_is_no_list_of_values_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        bootstrap_mean(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_mean(torch.zeros(2), confidence=1.0)
