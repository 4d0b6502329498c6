"""The key map between the original layout and diffusers' AutoencoderKLWan, and agreement of the two models."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from diag_core.vae import WanVAE, vae_from_diffusers, vae_from_state_dict, vae_to_diffusers
from diag_core.vae.wan import LATENT_MEAN, LATENT_STD


def randomised(vae: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random in every parameter, the norms' and the attention's included, so that a mix-up shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1)
            else:
                parameter.normal_(std=(2 * parameter[0].numel()) ** -0.5)
    return vae


@torch.no_grad()
def assert_agree(ours: WanVAE, theirs: AutoencoderKLWan) -> None:
    mean, std = (torch.tensor(values).view(1, 16, 1, 1, 1) for values in (LATENT_MEAN, LATENT_STD))
    latents = 0.3 * torch.randn(2, 16, 3, 2, 3)
    decoded = ours.decode(latents)
    assert decoded.std() > 0.1 and decoded.abs().max() < 8
    # Theirs clamps; compare what is inside, and that both leave it at the same places.
    error = (decoded.clamp(-1, 1) - theirs.decode(latents * std + mean).sample).abs().max()
    assert error < 1e-4
    assert decoded.abs().lt(1).float().mean() > 0.5
    pixels = torch.rand(2, 3, 9, 16, 24) * 2 - 1
    encoded = ours.encode(pixels) * std + mean
    assert encoded.std() > 0.1
    assert (encoded - theirs.encode(pixels).latent_dist.mode()).abs().max() < 1e-4


@pytest.mark.parametrize("dim", [4, 12])
def test_ours_through_the_key_map_agrees_with_diffusers(dim):
    ours = randomised(WanVAE(dim), seed=dim)
    theirs = AutoencoderKLWan(base_dim=dim)
    theirs.load_state_dict(vae_to_diffusers(ours.state_dict()))
    assert_agree(ours, theirs)


def test_theirs_through_the_key_map_agrees_with_ours():
    theirs = randomised(AutoencoderKLWan(base_dim=6), seed=1)
    ours = WanVAE(6)
    ours.load_state_dict(vae_from_diffusers(theirs.state_dict()))
    assert_agree(ours, theirs)


def test_a_diffusers_file_is_recognised():
    theirs = randomised(AutoencoderKLWan(base_dim=4), seed=2)
    ours = vae_from_state_dict(theirs.state_dict())
    assert isinstance(ours, WanVAE)
    assert_agree(ours, theirs)


def test_the_map_is_one_to_one_and_shares_tensors():
    weights = WanVAE(2).state_dict()
    there = vae_to_diffusers(weights)
    back = vae_from_diffusers(there)
    assert len(there) == len(weights) and list(back) == list(weights)
    assert all(back[key] is tensor for key, tensor in weights.items())


def test_unknown_keys_are_refused():
    weights = WanVAE(2).state_dict()
    for key in ("decoder.upsamples.15.residual.0.gamma", "encoder.conv1.scale", "model.conv1.weight", "weight"):
        with pytest.raises(ValueError, match=f"original layout: {key}"):
            vae_to_diffusers({**weights, key: torch.zeros(1)})
    with pytest.raises(ValueError, match="diffusers layout"):
        vae_from_diffusers(weights)
