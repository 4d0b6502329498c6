"""From the weights of a video autoencoder to the module: which one it is, and how wide, is read off their shapes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .diffusers_keys import is_diffusers_vae, vae_from_diffusers
from .tiny import Three, TinyVAE, TinyVAEConfig
from .wan import LATENT_CHANNELS, SPATIAL_STRIDE, WanVAE

# Metadata of a safetensors file that says which stages of a TinyVAE change the size.
KIND, TINY_VAE, CONFIG = "kind", "tiny_vae", "config"


def vae_from_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
) -> WanVAE | TinyVAE:
    """The autoencoder these weights belong to, with them loaded (shared, not copied; their dtype is kept).

    Knows the Wan 2.1 VAE, in original or diffusers keys, and TAEHV's layout for Wan 2.1 latents: 16 channels, a
    spatial stride of 8. Strides leave no trace in the weights: without metadata that tells, what patches do not make of
    the 8 is taken to be done by the first stages of encoder and decoder, as in the published files, whose encoder looks
    ahead (see TinyVAE).

    metadata: of the file; ours holds `kind` and `config`.

    Raises ValueError for anything else, with the keys missing, extra or misshapen (ten at most).
    """
    if is_diffusers_vae(state_dict):
        state_dict = vae_from_diffusers(state_dict)
    with torch.device("meta"):
        if "encoder.conv1.weight" in state_dict and "decoder.head.2.weight" in state_dict:
            vae: WanVAE | TinyVAE = WanVAE(_dimension(state_dict, "encoder.conv1.weight", 0))
        elif "encoder.0.weight" in state_dict and "decoder.1.weight" in state_dict:
            if metadata is not None and metadata.get(KIND) == TINY_VAE:
                vae = TinyVAE(TinyVAEConfig.from_json(metadata.get(CONFIG, "")))
            else:
                vae = TinyVAE(_published_config(state_dict))
        else:
            start = ", ".join(list(state_dict)[:5]) or "no keys at all"
            raise ValueError(
                "neither a Wan 2.1 VAE (original or diffusers keys) nor a TAEHV file for it (taew2_1); "
                f"the keys begin with: {start}"
            )
    _check(vae, state_dict)
    vae.load_state_dict(dict(state_dict), assign=True)
    return vae


def _dimension(state_dict: Mapping[str, Tensor], key: str, axis: int) -> int:
    if key not in state_dict:
        raise ValueError(f"this file lacks {key}, which every autoencoder of its kind has")
    shape = state_dict[key].shape
    if len(shape) <= axis or shape[axis] == 0:
        raise ValueError(f"{key} has shape {tuple(shape)}, which no autoencoder known here has")
    return shape[axis]


def _published_config(state_dict: Mapping[str, Tensor]) -> TinyVAEConfig:
    latent_channels = _dimension(state_dict, "decoder.1.weight", 1)
    if latent_channels != LATENT_CHANNELS:
        raise ValueError(
            f"a TAEHV file for {latent_channels} latent channels; Wan 2.1 has {LATENT_CHANNELS} (its file is taew2_1)"
        )
    folded = _dimension(state_dict, "encoder.0.weight", 1)
    patch_size = round((folded / 3) ** 0.5)
    halvings = {1: 3, 2: 2, 4: 1, 8: 0}.get(patch_size)
    if halvings is None or folded != 3 * patch_size**2:
        raise ValueError(
            f"encoder.0.weight takes {folded} channels: not 3 times a square of 1, 2, 4 or {SPATIAL_STRIDE} pixels"
        )

    def pools(layer: int) -> bool:
        key = f"encoder.{layer}.conv.weight"
        return _dimension(state_dict, key, 1) > _dimension(state_dict, key, 0)

    def grows(layer: int) -> bool:
        key = f"decoder.{layer}.conv.weight"
        return _dimension(state_dict, key, 0) > _dimension(state_dict, key, 1)

    space: Three = (halvings > 0, halvings > 1, halvings > 2)
    return TinyVAEConfig(
        latent_channels=latent_channels,
        patch_size=patch_size,
        encoder_width=_dimension(state_dict, "encoder.0.weight", 0),
        decoder_widths=(
            _dimension(state_dict, "decoder.1.weight", 0),
            _dimension(state_dict, "decoder.8.weight", 0),
            _dimension(state_dict, "decoder.14.weight", 0),
            _dimension(state_dict, "decoder.20.weight", 0),
        ),
        encoder_space=space,
        encoder_time=(pools(2), pools(7), pools(12)),
        decoder_space=space,
        decoder_time=(grows(7), grows(13), grows(19)),
        encoder_lookahead=True,
    )


def _check(vae: WanVAE | TinyVAE, state_dict: Mapping[str, Tensor]) -> None:
    wanted = vae.state_dict()
    faults = [f"missing {key}" for key in wanted if key not in state_dict]
    faults += [f"extra {key}" for key in state_dict if key not in wanted]
    faults += [
        f"{key} is {tuple(state_dict[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state_dict and state_dict[key].shape != tensor.shape
    ]
    if faults:
        more = f" and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError(f"this looks like a {type(vae).__name__} but does not fit one: {'; '.join(faults[:10])}{more}")
