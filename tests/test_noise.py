"""Noise is keyed by what it is for, and by nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diag_core import SeededNoise

SHAPE = (2, 4, 3, 2, 2)


def test_every_use_has_noise_of_its_own():
    noise = SeededNoise(0)
    draws = [noise.initial(0, SHAPE), noise.initial(3, SHAPE), noise.renoise(0, 0, SHAPE), noise.renoise(0, 1, SHAPE)]
    draws += [noise.renoise(1, 0, SHAPE), *(noise.context(chunk, SHAPE) for chunk in (-2, -1, 0, 1, 2))]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert not torch.equal(a, b)


def test_it_is_normal_and_the_same_each_time():
    noise = SeededNoise(3).initial(0, (1, 16, 21, 16, 16))
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert torch.equal(noise, SeededNoise(3).initial(0, (1, 16, 21, 16, 16)))


def test_a_latent_frames_first_noise_does_not_depend_on_the_chunks():
    whole = SeededNoise(1).initial(0, (1, 4, 6, 2, 2))
    assert torch.equal(whole[:, :, 4:6], SeededNoise(1).initial(4, (1, 4, 2, 2, 2)))


def test_sample_b_is_that_of_its_seed():
    batch = SeededNoise(5).renoise(2, 1, SHAPE)
    assert torch.equal(batch[1:], SeededNoise(6).renoise(2, 1, (1, *SHAPE[1:])))
    assert torch.equal(batch, SeededNoise([5, 6]).renoise(2, 1, SHAPE))


def test_numpy_seeds_are_seeds_and_wrong_ones_are_refused():
    assert torch.equal(SeededNoise(np.int64(3)).context(0, SHAPE), SeededNoise(3).context(0, SHAPE))
    with pytest.raises(ValueError, match="a seed is 0 or more"):
        SeededNoise(-1)
    with pytest.raises(ValueError, match="3 seeds for a batch of 2"):
        SeededNoise([1, 2, 3]).initial(0, SHAPE)
