from __future__ import annotations

import shutil

import pytest
import torch

from diag_core import WanConfig, WanDiT
from diag_core.attention import sdpa
from training.compilation import _plain_attention, forward_of

WAN = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=1, in_dim=4, out_dim=4, freq_dim=16, text_dim=8, text_len=5)


def test_without_a_compiler_the_recipe_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"install one, or set compiled=false"):
        forward_of(WanDiT(WAN), compiled=True)


def test_a_model_is_its_own_forward_unless_asked() -> None:
    model = WanDiT(WAN)
    assert forward_of(model, compiled=False) is model


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_matrix_products_is_attention(masked: bool) -> None:
    q, k, v = (torch.randn(2, n, 3, 8, requires_grad=True) for n in (5, 7, 7))
    mask = torch.ones(5, 7, dtype=torch.bool).tril() if masked else None
    outs = [attend(q, k, v, mask) for attend in (_plain_attention, sdpa)]
    torch.testing.assert_close(*outs)
    weight = torch.randn(outs[0].shape)
    for own, theirs in zip(*(torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in outs), strict=True):
        torch.testing.assert_close(own, theirs)
