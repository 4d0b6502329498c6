from __future__ import annotations

import pytest
import torch

from training.scores.paired import paired_difference


def test_equal_scores_do_not_differ() -> None:
    scores = torch.tensor([0.0, 1, 1, 0, 1])
    result = paired_difference(scores, scores)
    assert (result.mean, result.lower, result.prompts) == (0, 0, 5)


def test_a_constant_difference_is_certain() -> None:
    scores = torch.rand(100, generator=torch.Generator().manual_seed(0)).double()
    result = paired_difference(scores + 0.25, scores)
    assert result.mean == pytest.approx(0.25) and result.lower == pytest.approx(0.25)


def test_the_bound_is_that_of_a_normal_mean() -> None:
    noise = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    result = paired_difference(noise + 0.1, torch.zeros(2000))
    deviation = float(noise.std()) / 2000**0.5
    assert result.lower == pytest.approx(result.mean - 1.645 * deviation, abs=0.1 * deviation)


def test_pairing_takes_out_what_both_share() -> None:
    hard = (torch.rand(1000, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    a = hard.clone()
    a[:10] = 1 - a[:10]
    paired = paired_difference(a, hard)
    unpaired = paired_difference(a, hard.flip(0))
    assert paired.mean - paired.lower < 0.25 * (unpaired.mean - unpaired.lower)


def test_it_is_the_same_every_time_and_tighter_with_less_confidence() -> None:
    a, b = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    assert paired_difference(a, b) == paired_difference(a, b)
    assert paired_difference(a, b).lower < paired_difference(a, b, confidence=0.8).lower


@pytest.mark.parametrize(("a", "b", "confidence"), [((), (), 0.95), ((1.0,), (1.0, 2.0), 0.95), ((1.0,), (1.0,), 1.0)])
def test_wrong_input_is_refused(a: tuple, b: tuple, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"paired scores|confidence"):
        paired_difference(torch.tensor(a), torch.tensor(b), confidence=confidence)
