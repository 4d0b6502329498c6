"""Small random models under the names that the example workflows ask for, for a ComfyUI's models folder.

The DiT has the layout of Wan 2.1 1.3B in small, the tiny VAE that of taew2_1. The Wan VAE has its full size, which
ComfyUI fixes. The text encoder is a umT5 of 24 narrow layers, for a ComfyUI with `small_umt5`.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from diag_core import WanConfig, WanDiT
from diag_core.vae import TinyVAE, WanVAE

CONFIG = WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2)
WIDTH, LAYERS, INNER, FEED_FORWARD = 4096, 24, 8, 16  # of the text encoder
VOCABULARY = 384


def write_models(models: Path) -> None:
    """All files, below `models`."""
    torch.manual_seed(0)
    for folder in ("diffusion_models", "loras", "text_encoders", "vae", "vae_approx"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    dit = random_dit()
    save_file(dit, models / "diffusion_models" / "wan_small.safetensors")
    wrapped = {"generator_ema": {f"model.{name}": tensor for name, tensor in dit.items()}}
    torch.save(wrapped, models / "diffusion_models" / "self_forcing_dmd.pt")
    image_to_video = {**dit, "patch_embedding.weight": torch.randn(CONFIG.dim, 36, 1, 2, 2) * 0.03}
    save_file(image_to_video, models / "diffusion_models" / "wan_i2v.safetensors")
    (models / "diffusion_models" / "page.safetensors").write_text("<!doctype html><html>not found</html>")
    save_file(random_lora(), models / "loras" / "small.safetensors")
    (models / "diffusion_models" / "nested").mkdir(exist_ok=True)
    save_file(random_lora(), models / "diffusion_models" / "nested" / "lora.safetensors")
    save_file(random_text_encoder(), models / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    vae = {name: tensor.to(torch.bfloat16) for name, tensor in WanVAE(dim=96).state_dict().items()}
    save_file(vae, models / "vae" / "wan_2.1_vae.safetensors")
    torch.save(random_tiny_vae(), models / "vae_approx" / "taew2_1.pth")
    write_wrong_models(models, dit, vae)


def write_wrong_models(models: Path, dit: dict[str, Tensor], vae: dict[str, Tensor]) -> None:
    """Whole files in folders where they do not belong, and a model of another family that ComfyUI does load."""
    save_file(vae, models / "diffusion_models" / "vae_among_models.safetensors")
    save_file(dit, models / "vae_approx" / "model_among_vaes.safetensors")
    save_file(vae, models / "vae_approx" / "full_vae.safetensors")
    # What ComfyUI tells an LTX-Video model by; the rest of its weights may be absent.
    ltxv = {
        "adaln_single.emb.timestep_embedder.linear_1.bias": torch.zeros(64),
        "transformer_blocks.0.attn2.to_k.weight": torch.zeros(64, 32),
    }
    save_file(ltxv, models / "diffusion_models" / "ltxv.safetensors")


def random_dit() -> dict[str, Tensor]:
    model = WanDiT(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def random_tiny_vae() -> dict[str, Tensor]:
    """Its pictures have contrast: as it is initialised they are nearly black, and all decoders would agree on that."""
    tensors = dict(TinyVAE().state_dict())
    last = max((name for name in tensors if name.startswith("decoder.")), key=lambda name: int(name.split(".")[1]))
    weight, bias = (f"{last.rsplit('.', 1)[0]}.{part}" for part in ("weight", "bias"))
    tensors[weight] = tensors[weight] * 20
    tensors[bias] = torch.full_like(tensors[bias], 0.5)
    return tensors


def random_lora(rank: int = 4) -> dict[str, Tensor]:
    """A LoRA for any model of `CONFIG`'s width, strong enough to be seen."""
    tensors = {}
    for block in range(CONFIG.num_layers):
        for part in ("self_attn.q", "self_attn.v", "cross_attn.k"):
            key = f"diffusion_model.blocks.{block}.{part}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, CONFIG.dim) * 0.3
            tensors[f"{key}.lora_B.weight"] = torch.randn(CONFIG.dim, rank) * 0.3
    return tensors


def random_text_encoder() -> dict[str, Tensor]:
    def weight(*shape: int) -> Tensor:
        return torch.randn(*shape).mul_(shape[-1] ** -0.5).to(torch.bfloat16)

    def ones() -> Tensor:
        return torch.ones(WIDTH, dtype=torch.bfloat16)

    tensors = {
        "shared.weight": weight(VOCABULARY, WIDTH) * WIDTH**0.5,
        "encoder.final_layer_norm.weight": ones(),
        "spiece_model": torch.frombuffer(bytearray(vocabulary()), dtype=torch.uint8),
    }
    for block in range(LAYERS):
        attention, feed_forward = (f"encoder.block.{block}.layer.{part}" for part in (0, 1))
        for name in "qkv":
            tensors[f"{attention}.SelfAttention.{name}.weight"] = weight(INNER, WIDTH)
        tensors[f"{attention}.SelfAttention.o.weight"] = weight(WIDTH, INNER)
        tensors[f"{attention}.SelfAttention.relative_attention_bias.weight"] = weight(32, 1)
        tensors[f"{attention}.layer_norm.weight"] = ones()
        for name in ("wi_0", "wi_1"):
            tensors[f"{feed_forward}.DenseReluDense.{name}.weight"] = weight(FEED_FORWARD, WIDTH)
        tensors[f"{feed_forward}.DenseReluDense.wo.weight"] = weight(WIDTH, FEED_FORWARD)
        tensors[f"{feed_forward}.layer_norm.weight"] = ones()
    return tensors


def vocabulary() -> bytes:
    """A SentencePiece model of bytes and a few letters, with umT5's special tokens."""
    import sentencepiece

    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a corgi runs along a wide beach at sunset, waves behind it, warm light"] * 20),
        model_writer=model,
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()
