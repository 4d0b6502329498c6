from __future__ import annotations

import shutil

import pytest

from diag_core import WanConfig, WanDiT
from training.compilation import forward_of

WAN = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=1, in_dim=4, out_dim=4, freq_dim=16, text_dim=8, text_len=5)


def test_without_a_compiler_the_recipe_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"install one, or set compiled=false"):
        forward_of(WanDiT(WAN), compiled=True)


def test_a_model_is_its_own_forward_unless_asked() -> None:
    model = WanDiT(WAN)
    assert forward_of(model, compiled=False) is model
