"""The shift against METHOD.md's numbers, and the maps between x0, noise, x and flow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diag_core.noise_schedule import (
    add_noise,
    shift_sigma,
    sigma_from_schedule_timestep,
    x0_from_flow,
)

shifts = st.floats(0.1, 20.0)
fractions = st.floats(0.0, 1.0)


def test_shift_5_gives_the_published_timesteps():
    timesteps = [1000 * sigma_from_schedule_timestep(t, 5.0) for t in (1000, 750, 500, 250, 100, 0)]
    assert timesteps == pytest.approx([1000, 937.5, 833.3333, 625, 357.1429, 0], abs=1e-4)


@given(fractions, shifts)
def test_shift_is_the_usual_formula(s, shift):
    sigma = shift_sigma(s, shift)
    assert 0.0 <= sigma <= 1.0
    assert sigma == pytest.approx(shift * s / (1 + (shift - 1) * s), abs=1e-12)


@given(shifts)
def test_the_ends_are_fixed_exactly(shift):
    for end in (0.0, 1.0):
        assert shift_sigma(end, shift) == end


def test_shift_takes_tensors_as_well():
    s = torch.tensor([0.0, 0.1, 0.75, 1.0], dtype=torch.float64)
    assert shift_sigma(s, 5.0).tolist() == [shift_sigma(value, 5.0) for value in s.tolist()]


@pytest.mark.parametrize("sigma", [0.3, torch.tensor([0.1, 0.9]).view(2, 1, 1, 1, 1), torch.rand(2, 1, 3, 1, 1) + 0.1])
def test_the_flow_of_a_noised_sample_leads_to_its_x0(sigma):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 4, 3, 2, 2, generator=generator).unbind()
    x = add_noise(x0, noise, sigma)
    torch.testing.assert_close(x, x0 + sigma * (noise - x0))
    torch.testing.assert_close(x0_from_flow(x, noise - x0, sigma), x0)


def test_the_ends_of_add_noise_are_exact():
    x0, noise = torch.randn(2, 1, 4, 1, 2, 2).unbind()
    assert torch.equal(add_noise(x0, noise, 0.0), x0)
    assert torch.equal(add_noise(x0, noise, 1.0), noise)


def test_bfloat16_is_computed_in_float32_and_rounded_once():
    generator = torch.Generator().manual_seed(1)
    x, flow = (torch.randn(2, 1, 16, 3, 4, 4, generator=generator)).bfloat16().unbind()
    sigma = torch.tensor(0.357, dtype=torch.bfloat16)
    exact = x.double() - sigma.double() * flow.double()
    got = x0_from_flow(x, flow, sigma)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, exact.float().bfloat16())
    assert not torch.equal(got, x - sigma * flow), "the case is too tame to tell the precisions apart"
    assert x0_from_flow(x.double(), flow.double(), 0.357).dtype == torch.float64
