"""Frechet distance between two sets of features (as FID, arXiv 1706.08500, here on the digit classifier's features).

Shapes: N and K samples, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..classifier import DigitClassifier

# Every eighth pixel frame is plenty: neighbours look alike.
FRAME_STRIDE = 8


@torch.inference_mode()
def frame_features(classifier: DigitClassifier, cover_MTHW: torch.Tensor) -> torch.Tensor:
    """Features [N,256] of every eighth pixel frame of each digit: the classifier's, pooled to 2x2 places."""
    frames = cover_MTHW[:, ::FRAME_STRIDE].flatten(0, 1)
    features = torch.cat([classifier.embed(part) for part in frames.split(512)])
    return F.avg_pool2d(features.unflatten(1, (-1, 4, 4)), 2).flatten(1)


def frechet_distance(a_ND: torch.Tensor, b_KD: torch.Tensor) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)) with the covariances A and B: 0 for equal sets.

    It has a bias that falls with the number of samples; compare only distances from sets of the same sizes.

    Raises ValueError for sets of one sample or of different widths."""
    if min(len(a_ND), len(b_KD)) < 2 or a_ND.shape[1] != b_KD.shape[1]:
        raise ValueError(
            f"the Frechet distance needs two sets of at least 2 samples of one width, got {list(a_ND.shape)} and "
            f"{list(b_KD.shape)}"
        )
    a, b = a_ND.double(), b_KD.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # The eigenvalues of A B are those of the symmetric A^(1/2) B A^(1/2), which needs no complex numbers.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, float(distance))
