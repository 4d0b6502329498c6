from __future__ import annotations

import pytest
import torch

from training.classifier import DigitClassifier
from training.scores.frechet import frame_features, frechet_distance


def normal(count: int, mean: float, deviation: float, width: int = 3, seed: int = 0) -> torch.Tensor:
    return mean + deviation * torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()


def test_equal_sets_are_at_distance_0() -> None:
    features = normal(50, 1, 2)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features[torch.randperm(50)]) == pytest.approx(0, abs=1e-9)


def test_known_gaussians() -> None:
    # For N(m1, s1^2 I) and N(m2, s2^2 I) it is D ((m1 - m2)^2 + (s1 - s2)^2).
    distance = frechet_distance(normal(200_000, 0, 1), normal(200_000, 1, 3, seed=1))
    assert distance == pytest.approx(3 * (1 + 4), rel=0.02)
    features = normal(1000, 0, 1)
    assert frechet_distance(features, features + 2) == pytest.approx(3 * 4)
    # Correlations count: equal means and variances along the axes, other covariances.
    turned = normal(200_000, 0, 1, width=2)
    line = turned[:, :1].expand(-1, 2)
    assert frechet_distance(turned, line) == pytest.approx(4 - 2 * 2**0.5, rel=0.02)


def test_fewer_samples_than_features_will_do() -> None:
    assert frechet_distance(normal(5, 0, 1, width=20), normal(6, 0, 1, width=20, seed=1)) > 0


def test_sets_that_do_not_fit_are_refused() -> None:
    for a, b in ((normal(1, 0, 1), normal(5, 0, 1)), (normal(5, 0, 1), normal(5, 0, 1, width=2))):
        with pytest.raises(ValueError, match="at least 2 samples of one width"):
            frechet_distance(a, b)


def test_features_are_of_every_eighth_frame() -> None:
    torch.manual_seed(0)
    assert frame_features(DigitClassifier().eval(), torch.rand(2, 17, 64, 64)).shape == (2 * 3, 256)
