"""Our DiT against diffusers' WanTransformer3DModel, through `convert` both ways."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from diag_core import WanConfig, WanDiT
from diag_core.checkpoint import convert, load_dit, save_dit
from diag_core.settings import PRESETS


def random_config(seed: int) -> WanConfig:
    draw = random.Random(seed)
    heads = draw.randint(1, 4)
    channels = draw.randint(1, 16)
    return WanConfig(
        dim=heads * 2 * draw.randint(6, 32),
        ffn_dim=draw.randint(8, 200),
        num_heads=heads,
        num_layers=draw.randint(1, 3),
        in_dim=channels,
        out_dim=channels,
        freq_dim=2 * draw.randint(4, 128),
        text_dim=draw.randint(8, 64),
    )


CONFIGS = [WanConfig(dim=256, ffn_dim=96, num_heads=2, num_layers=2), *map(random_config, range(5))]
TEXT_LEN = 512
SIZES = ((1, 4, 4), (3, 6, 10), (5, 8, 4))  # latent frames, rows, columns

pytestmark = pytest.mark.filterwarnings("ignore:ComfyUI will misread")


def inputs(config: WanConfig, size: tuple[int, int, int], batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    latents = torch.randn(batch, config.in_dim, *size)
    return latents, torch.rand(batch) * 1000, torch.randn(batch, TEXT_LEN, config.text_dim)


def randomize(model: torch.nn.Module) -> None:
    """Every parameter counts: freshly made, some are zero or one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.5 * parameter.shape[-1] ** -0.5))
            if parameter.dim() == 1:
                parameter.add_(0.5)


def agree(ours: WanDiT, theirs: WanTransformer3DModel, config: WanConfig) -> None:
    for size in SIZES:
        latents, timestep, context = inputs(config, size)
        with torch.no_grad():
            expected = theirs(latents, timestep, context, return_dict=False)[0]
            found = ours(latents, timestep, context)
        assert expected.std() > 0.05
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_ours_becomes_theirs(config: WanConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = WanDiT(config)
    randomize(ours)
    save_dit(tmp_path / "ours.safetensors", ours, config, PRESETS["diagdistill"])
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs", "diffusers")
    theirs, report = WanTransformer3DModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    agree(ours, theirs, config)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_theirs_becomes_ours(config: WanConfig, tmp_path: Path) -> None:
    torch.manual_seed(2)
    theirs = WanTransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_dim,
        out_channels=config.out_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
    ).eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")  # several shards and an index
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    convert(tmp_path / "theirs", tmp_path / "ours.safetensors")
    for path in (tmp_path / "theirs", tmp_path / "ours.safetensors"):
        loaded = load_dit(path)
        assert loaded.config == config
        agree(loaded.model, theirs, config)
