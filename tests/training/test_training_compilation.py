from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

from diag_core import WanConfig, WanDiT
from diag_core.attention import sdpa
from training.compilation import _plain_attention, compile_blocks

WAN = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=1, in_dim=4, out_dim=4, freq_dim=16, text_dim=8, text_len=5)


def test_without_a_compiler_the_recipe_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"install one, or set compiled=false"):
        compile_blocks(WanDiT(WAN))


def test_blocks_are_compiled_once_for_all_and_for_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that runs all stages meets more shapes than PyTorch compiles unasked."""
    compiled: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    model = WanDiT(replace(WAN, num_layers=3))
    plain = WanDiT(model.config)
    plain.load_state_dict(model.state_dict())
    compile_blocks(model)
    for frames in range(1, 13):
        given = torch.randn(1, 4, frames, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 8)
        torch.testing.assert_close(model(*given), plain(*given))
        assert len(compiled) == frames
    model(*given)
    assert len(compiled) == frames


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_matrix_products_is_attention(masked: bool) -> None:
    q, k, v = (torch.randn(2, n, 3, 8, requires_grad=True) for n in (5, 7, 7))
    mask = torch.ones(5, 7, dtype=torch.bool).tril() if masked else None
    outs = [attend(q, k, v, mask) for attend in (_plain_attention, sdpa)]
    torch.testing.assert_close(*outs)
    weight = torch.randn(outs[0].shape)
    for own, theirs in zip(*(torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in outs), strict=True):
        torch.testing.assert_close(own, theirs)
