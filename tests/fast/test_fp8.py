"""FP8 linear layers, emulated on a CPU: how far they are off, and where they are refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from goldens_reader import small_model

from diag_core import CacheConfig, DiagonalSchedule, SeededNoise, generate
from diag_core.fast import FastDiT, accelerated, torch_ops
from diag_core.fast.fp8 import Fp8Linear


def wide_model():
    return small_model(dim=256, ffn_dim=512, num_heads=2, num_layers=4).to(torch.bfloat16)


def test_a_linear_layer():
    torch.manual_seed(0)
    linear = torch.nn.Linear(256, 128).to(torch.bfloat16)
    # Tokens and outputs of very different sizes: each has a scale of its own.
    x = torch.randn(2, 24, 256) * torch.logspace(-3, 3, 24)[None, :, None]
    linear.bias.data.mul_(1e-6)  # beside tiny tokens it would be all there is to see
    linear.weight.data *= torch.logspace(-2, 2, 128)[:, None]
    x = x.to(torch.bfloat16)
    ours = Fp8Linear(linear.weight, linear.bias, torch_ops)(x)
    right = F.linear(x.double(), linear.weight.double(), linear.bias.double())
    assert ours.dtype == torch.bfloat16 and ours.shape == right.shape
    # Against the size that a sum of so many products has, whatever cancels in it.
    size = x.double().norm(dim=-1, keepdim=True) * linear.weight.double().norm(dim=-1) / 256**0.5
    error = ((ours.double() - right) / size).square()
    assert error.mean((0, 2)).max() < 0.06**2 and error.mean((0, 1)).max() < 0.06**2


def test_quantised_rows():
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 448.0], [1e-3, 5e-4, -1e-3]])
    rows, scale = torch_ops.quantise(x)
    assert rows.dtype == torch.float8_e4m3fn and scale.shape == (3, 1)
    torch.testing.assert_close(rows.float() * scale, x, rtol=2**-4, atol=0)


def test_a_forward_is_off_by_a_few_hundredths():
    plain = wide_model()
    right = video(plain)
    error = float((video(FastDiT(copy.deepcopy(plain), fp8=True)) - right).norm() / right.norm())
    assert 1e-4 < error < 0.1


def video(model) -> torch.Tensor:
    prompt = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    return generate(
        model, prompt, DiagonalSchedule.parse("1"), noise=SeededNoise(0), num_latent_frames=3, height=4, width=6,
        cache=CacheConfig(9, 3),
    )  # fmt: skip


def test_changed_weights_are_quantised_anew():
    model = wide_model()
    fast = FastDiT(model, fp8=True)
    before = video(fast)
    for block in model.blocks:
        block.ffn[0].weight = torch.nn.Parameter(block.ffn[0].weight * 1.5, requires_grad=False)
    assert not torch.equal(video(fast), before)
    assert torch.equal(video(fast), video(FastDiT(copy.deepcopy(model), fp8=True)))


def test_it_is_refused_where_it_cannot_run():
    with pytest.raises(ValueError, match="no multiples of 16"):
        FastDiT(small_model(), fp8=True)
    with pytest.raises(ValueError, match="must be on"):
        accelerated(wide_model(), "auto", fp8=True)
