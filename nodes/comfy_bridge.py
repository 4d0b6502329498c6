"""Where the nodes meet ComfyUI's machinery: loading, devices, memory, interrupts and the latent space.

Legend: B batch, F latent frames, h and w latent rows and columns.
"""

from __future__ import annotations

import inspect
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import torch
from torch import Tensor

from ..diag_core.checkpoint import CheckpointSettings
from ..diag_core.vae import VideoVAE, vae_from_state_dict

SETTINGS_KEY = "diagdistill_settings"
_VAE_KEY = "diagdistill_vae"
DTYPES = ("default", "bf16", "fp16", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")

_LATENT_FORMAT = comfy.latent_formats.Wan21()


def load_stock_model(tensors: dict[str, Tensor], dtype: str = "default") -> Any:
    """Weights by original Wan keys -> ComfyUI's own MODEL, whose LoRA, fp8 and offloading keep working.

    Args:
        dtype: one of `DTYPES`; "default" is ComfyUI's own choice for the weights and the card.

    Raises:
        ValueError: ComfyUI does not recognise the weights.
    """
    options: dict[str, Any] = {}
    if dtype == "bf16":
        options["dtype"] = torch.bfloat16
    elif dtype == "fp16":
        options["dtype"] = torch.float16
    elif dtype == "fp8_e5m2":
        options["dtype"] = torch.float8_e5m2
    elif dtype in ("fp8_e4m3fn", "fp8_e4m3fn_fast"):
        options["dtype"] = torch.float8_e4m3fn
        if dtype == "fp8_e4m3fn_fast":
            options["fp8_optimizations"] = True
    load = comfy.sd.load_diffusion_model_state_dict
    # Later versions bring weights to the GPU as they are used (DynamicVRAM), even where all of them fit: the fast path
    # needs them there, and such a model takes LoRA hooks only if it was loaded by its path.
    resident = {"disable_dynamic": True} if "disable_dynamic" in inspect.signature(load).parameters else {}
    # Without the file's metadata: later versions would build a model of their own for autoregressive checkpoints.
    model = load(tensors, model_options=options, **resident)
    if model is None:
        raise ValueError(
            "ComfyUI does not recognise this model: it takes Wan 2.1 models whose heads are 128 wide and whose text is "
            "4096 wide"
        )
    return model


def attach_settings(model: Any, settings: CheckpointSettings | None) -> Any:
    """A clone of the MODEL that knows how its checkpoint wants to be sampled."""
    model = model.clone()
    model.set_attachments(SETTINGS_KEY, settings)
    return model


def settings_of(model: Any) -> CheckpointSettings | None:
    """What `attach_settings` attached; None for a MODEL of another loader."""
    settings: CheckpointSettings | None = model.get_attachment(SETTINGS_KEY)
    return settings


def normalise(samples: Tensor) -> Tensor:
    """LATENT samples [B,16,F,h,w], in the VAE's own space -> normalised latents, as models and our VAEs use."""
    return _LATENT_FORMAT.process_in(samples)


def denormalise(latents: Tensor) -> Tensor:
    """The other way round."""
    return _LATENT_FORMAT.process_out(latents)


def check_latent(latent: dict[str, Any]) -> Tensor:
    """The samples [B,16,F,h,w] of a LATENT.

    Raises:
        ValueError: a LATENT of another kind of model.
    """
    samples = latent["samples"]
    if samples.ndim != 5 or samples.shape[1] != _LATENT_FORMAT.latent_channels:
        raise ValueError(
            f"this LATENT is {list(samples.shape)}; a Wan video latent is [batch, 16, latent frames, rows, columns]. "
            "Make one with Empty Diagonal Latent or Start Image Latent"
        )
    return samples


def vae_device() -> torch.device:
    return comfy.model_management.vae_device()


def offload_device() -> torch.device:
    return comfy.model_management.vae_offload_device()


def intermediate_device() -> torch.device:
    """Where LATENT and IMAGE are handed from node to node."""
    return comfy.model_management.intermediate_device()


def vae_dtype(device: torch.device) -> torch.dtype:
    """What ComfyUI computes a VAE in on this device, bfloat16 preferred where the card has it."""
    return comfy.model_management.vae_dtype(device, [torch.bfloat16, torch.float16, torch.float32])


def free_memory(needed: float, device: torch.device, keep: Any = None) -> None:
    """Unloads models, least used first, until `needed` bytes are free; `keep` is a MODEL that stays."""
    loaded = comfy.model_management.current_loaded_models
    kept = [m for m in loaded if keep is not None and m.model is not None and m.model.is_clone(keep)]
    comfy.model_management.free_memory(needed, device, keep_loaded=kept)


def total_memory(device: torch.device) -> int:
    """Bytes of the device."""
    return int(comfy.model_management.get_total_memory(device))


def load_model(model: Any, needed: float) -> None:
    """Brings a MODEL back to its device, with `needed` bytes free beside it."""
    comfy.model_management.load_models_gpu([model], memory_required=needed)


def check_interrupted() -> None:
    """Raises ComfyUI's own exception when the user has asked to stop; never swallow it."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def wan_vae_of(vae: Any, latent_shape: tuple[int, ...] | None = None) -> VideoVAE:
    """A VAE of the graph as a streaming one, on its device; no second copy is made of weights that are there.

    Args:
        vae: the Tiny VAE Loader's, or a stock VAE with Wan 2.1 weights.
        latent_shape: [B,16,F,h,w] of the largest piece to be decoded at once, for which memory is made free.

    Raises:
        ValueError: another kind of VAE.
    """
    if hasattr(vae, "on_device"):
        return vae.on_device()
    stock, patcher = getattr(vae, "first_stage_model", None), getattr(vae, "patcher", None)
    if stock is None or patcher is None:
        raise ValueError("this is no VAE that decodes video; load a Wan 2.1 VAE with Load VAE, or use Tiny VAE Loader")
    needed = vae.memory_used_decode(latent_shape, vae.vae_dtype) if latent_shape else 0
    comfy.model_management.load_models_gpu([patcher], memory_required=needed, force_full_load=True)
    try:
        # ComfyUI leaves weights on the CPU that it moves as they are used (--novram, DynamicVRAM); here nobody does.
        return vae_from_state_dict(stock.state_dict()).to(patcher.load_device).requires_grad_(False).eval()
    except ValueError as error:
        raise ValueError(
            f"Streaming Decode takes a Wan 2.1 VAE or a tiny one (taew2_1), and this is another: {error}"
        ) from error


def loaded_with(model: Any, vae: Any) -> Any:
    """A clone of the MODEL that is never loaded without the VAE: one decodes while the other samples.

    Raises ValueError for what is no VAE of Wan's. The Tiny VAE Loader's is not ComfyUI's to load.
    """
    if hasattr(vae, "on_device"):
        return model
    patcher = getattr(vae, "patcher", None)
    if patcher is None:
        raise ValueError("this is no VAE that decodes video; load a Wan 2.1 VAE with Load VAE, or use Tiny VAE Loader")
    model = model.clone()
    model.set_additional_models(_VAE_KEY, [patcher])
    return model


def decode_bytes(vae: Any, latent_shape: tuple[int, ...]) -> float:
    """Memory to decode a piece [B,16,F,h,w] with a VAE of the graph."""
    needed: float = vae.memory_used_decode(latent_shape, vae.vae_dtype)
    return needed


def unload_tiny(vae: Any) -> None:
    """Takes a VAE of the Tiny VAE Loader off its device again; ComfyUI sees to others."""
    if hasattr(vae, "offload"):
        vae.offload()
