"""Names of the Wan 2.1 VAE's weights: the original ones and those of diffusers' AutoencoderKLWan, both ways.

The tensors are the same in both, whatever their width; only the names of the layers differ, one to one.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_RESAMPLE = {"resample.1": "resample.1", "time_conv": "time_conv"}
_ATTENTION = {"norm": "norm", "to_qkv": "to_qkv", "proj": "proj"}


def _layer_names() -> dict[str, str]:
    """Every layer that holds parameters, original name -> diffusers name."""
    names = {"conv1": "quant_conv", "conv2": "post_quant_conv"}

    def add(original: str, diffusers: str, inner: Mapping[str, str]) -> None:
        names.update({f"{original}.{old}": f"{diffusers}.{new}" for old, new in inner.items()})

    for side in ("encoder", "decoder"):
        add(side, side, {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"})
        add(f"{side}.middle.0", f"{side}.mid_block.resnets.0", _RESIDUAL)
        add(f"{side}.middle.1", f"{side}.mid_block.attentions.0", _ATTENTION)
        add(f"{side}.middle.2", f"{side}.mid_block.resnets.1", _RESIDUAL)
    # Both count the encoder's layers through: two residual blocks and a halving, the last level without one.
    for i in range(11):
        add(f"encoder.downsamples.{i}", f"encoder.down_blocks.{i}", _RESAMPLE if i % 3 == 2 else _RESIDUAL)
    # The original counts the decoder's layers through too (three residual blocks and a doubling); diffusers by level.
    for i in range(15):
        level, place = divmod(i, 4)
        if place == 3:
            add(f"decoder.upsamples.{i}", f"decoder.up_blocks.{level}.upsamplers.0", _RESAMPLE)
        else:
            add(f"decoder.upsamples.{i}", f"decoder.up_blocks.{level}.resnets.{place}", _RESIDUAL)
    return names


_TO_DIFFUSERS = _layer_names()
_FROM_DIFFUSERS = {new: old for old, new in _TO_DIFFUSERS.items()}


def vae_to_diffusers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original keys -> diffusers keys. Tensors are shared, not copied. Raises ValueError for keys unknown."""
    return _rename(state_dict, _TO_DIFFUSERS, "original")


def vae_from_diffusers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Diffusers keys -> original keys. Tensors are shared, not copied. Raises ValueError for keys unknown."""
    return _rename(state_dict, _FROM_DIFFUSERS, "diffusers")


def is_diffusers_vae(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys look like those of diffusers' Wan VAE; vae_from_diffusers then checks every one."""
    return "decoder.conv_in.weight" in state_dict and "post_quant_conv.weight" in state_dict


def _rename(state_dict: Mapping[str, Tensor], names: Mapping[str, str], layout: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in state_dict.items():
        layer, _, parameter = key.rpartition(".")
        if layer in names and parameter in ("weight", "bias", "gamma"):
            renamed[f"{names[layer]}.{parameter}"] = tensor
        else:
            unknown.append(key)
    if unknown:
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise ValueError(f"not keys of a Wan 2.1 VAE in its {layout} layout: {', '.join(unknown[:10])}{more}")
    return renamed
