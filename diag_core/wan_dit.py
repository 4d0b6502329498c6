"""The Wan 2.1 text-to-video DiT, teacher and causal student in one.

Legend: B batch, C latent channels, F latent frames, H and W latent rows and columns, N tokens, L text tokens, D width.
Without a cache every latent frame attends to every other (the teacher); with one, the frames given attend to
themselves and to the cached ones (the student).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .attention import Attention, Blocks, attention_backend
from .config import PATCH, WanConfig
from .kv_cache import KVCache
from .layers import Block, Head, head_forward, pad_text, sinusoids
from .rope import rotation


class RunBlock(Protocol):
    """Runs one transformer block: as a module, so that hooks fire, or as a function over a stock one."""

    def __call__(self, block: Any, x: Tensor, **inputs: Any) -> Tensor: ...


def run_as_module(block: Any, x: Tensor, **inputs: Any) -> Tensor:
    return block(x, **inputs)


def forward_impl(
    model: Any,
    latents: Tensor,
    timestep: Tensor,
    context: Tensor,
    *,
    cache: Any = None,
    start_frame: int = 0,
    run_block: RunBlock,
    attend: Attention,
    mask: Tensor | Blocks | None = None,
    frame_positions: tuple[int, ...] | None = None,
    dtype: torch.dtype | None = None,
    text_len: int | None = None,
) -> Tensor:
    """The forward of `WanDiT`, over any model of Wan's shape (ours, or ComfyUI's stock one); arguments as there.

    Args:
        dtype: what to compute in, where the patch embedding's does not tell: ComfyUI keeps that one in float32.
        text_len: length to pad prompts to; ComfyUI's model knows 512 only, whatever the checkpoint was trained with.
    """
    frames, rows, columns = latents.shape[2] // PATCH[0], latents.shape[3] // PATCH[1], latents.shape[4] // PATCH[2]
    positions = frame_positions or tuple(range(start_frame, start_frame + frames))
    patch = model.patch_embedding
    dtype = dtype or patch.weight.dtype
    x = patch(latents.to(patch.weight.dtype)).to(dtype).flatten(2).transpose(1, 2)
    head_dim = x.shape[-1] // model.num_heads

    time = model.time_embedding(sinusoids(timestep, model.freq_dim).to(dtype))
    time = time.unsqueeze(1) if timestep.dim() == 1 else time  # [B,1,D] or [B,F,D]
    modulation = model.time_projection(time).unflatten(-1, (6, -1))

    keys = cache if isinstance(cache, KVCache) else None  # a snapshot keeps nothing: its forward has gradients
    text = None if keys is None else keys.text
    if text is None:
        text = model.text_embedding(pad_text(context, text_len or model.text_len).to(dtype))
        if keys is not None:
            keys.text = text
    if cache is not None:
        cache.place(start_frame, frames)
    turn = rotation(positions, rows, columns, head_dim, x.device)
    for layer, block in enumerate(model.blocks):
        x = run_block(
            block,
            x,
            modulation=modulation,
            text=text,
            rotation=turn,
            layer=layer,
            past=cache,
            keys=keys,
            mask=mask,
            attend=attend,
        )
    x = head_forward(model.head, x, time)
    x = x.unflatten(-1, (*PATCH, -1)).unflatten(1, (frames, rows, columns))  # [B,F,h,w,1,2,2,C]
    x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.reshape(latents.shape[0], -1, *latents.shape[2:]).to(latents.dtype)


class WanDiT(nn.Module):
    """The DiT of Wan 2.1 (arXiv 2503.20314) with its original state-dict keys.

    Args:
        config: sizes.
        attention: name of an attention back end (`diag_core.attention.NAMES`).
    """

    def __init__(self, config: WanConfig, *, attention: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.num_heads, self.freq_dim, self.text_len = config.num_heads, config.freq_dim, config.text_len
        self.attend: Attention = attention_backend(attention)
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, kernel_size=PATCH, stride=PATCH)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            Block(dim, config.ffn_dim, config.num_heads, config.eps) for _ in range(config.num_layers)
        )
        self.head = Head(dim, config.out_dim * PATCH[0] * PATCH[1] * PATCH[2], config.eps)

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        cache: Any = None,
        start_frame: int = 0,
        *,
        mask: Tensor | Blocks | None = None,
        frame_positions: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Flow (velocity, noise - x0) of noisy latents.

        Args:
            latents: [B,C,F,H,W], H and W even.
            timestep: [B], or [B,F] for a noise level per latent frame; 1000 x sigma, 0..1000.
            context: prompt embeddings [B,L,text_dim]; zero-padded to `text_len` when shorter, used as it is when
                longer.
            cache: a `KVCache` (keys and values of these frames are written into it; the caller advances it), a
                snapshot of one (nothing is written), or None for attention over the given frames alone.
            start_frame: position of the first given latent frame in the whole video.
            mask: [N,N] bool, True where a token (row) attends, or blocks; for training on whole videos, without a
                cache.
            frame_positions: position of each given latent frame, where they are not consecutive.

        Returns:
            [B,C,F,H,W] in the dtype of `latents`.

        Raises:
            ValueError: shapes that do not fit the model.
        """
        config = self.config
        if latents.dim() != 5 or latents.shape[1] != config.in_dim:
            raise ValueError(f"latents must be [B,{config.in_dim},F,H,W], got {list(latents.shape)}")
        if latents.shape[3] % PATCH[1] or latents.shape[4] % PATCH[2]:
            raise ValueError(
                f"latent height and width must be even, got {latents.shape[3]}x{latents.shape[4]}: "
                "use a video size in multiples of 16 pixels"
            )
        if timestep.shape not in ((latents.shape[0],), (latents.shape[0], latents.shape[2])):
            raise ValueError(
                f"timestep must be [B] or [B,F] = [{latents.shape[0]}] or [{latents.shape[0]}, {latents.shape[2]}], "
                f"got {list(timestep.shape)}"
            )
        if context.dim() != 3 or context.shape[0] != latents.shape[0] or context.shape[2] != config.text_dim:
            raise ValueError(
                f"context must be [B,L,{config.text_dim}] with B = {latents.shape[0]}, got {list(context.shape)}"
            )
        if frame_positions is not None and len(frame_positions) != latents.shape[2]:
            raise ValueError(f"{len(frame_positions)} frame_positions for {latents.shape[2]} latent frames")
        return forward_impl(
            self,
            latents,
            timestep,
            context,
            cache=cache,
            start_frame=start_frame,
            run_block=run_as_module,
            attend=self.attend,
            mask=mask,
            frame_positions=frame_positions,
        )
