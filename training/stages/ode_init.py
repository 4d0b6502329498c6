"""ODE initialisation (CausVid, arXiv 2412.07772): the causal student, begun as the bidirectional teacher, learns to
jump from any point of the teacher's trajectories to their end.

A whole video is one forward in which every chunk attends to what it will see when the student is sampled. Every chunk
stands at a stored point of its own, drawn at random.

Legend: B samples, C latent channels, F latent frames, K chunks, P stored points, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diag_core import CacheConfig, WanDiT
from diag_core.geometry import tokens_per_frame

from ..block_causal import causal_blocks
from ..compilation import compile_blocks
from ..distributed import own_parts
from ..ema import EMA
from ..losses import ode_loss
from ..optimize import Losses, Optimizer, warming_up
from ..parallelize import parallelize
from ..precision import flow_of, precision_of
from ..recipes.distillation import OdeInitRecipe
from ..roles import trained
from .ode_pairs import Encode, OdePairs


class OdeInit:
    """The task of the trainer.

    Args:
        student: begun as the teacher; trained in place, and sharded in place over the processes there are.
        pairs: trajectories.
        encode: prompts -> [B,L,text_dim].

    Raises:
        ValueError: videos of no whole number of chunks; a batch that does not divide over processes and micro batches.
    """

    def __init__(self, recipe: OdeInitRecipe, student: WanDiT, pairs: OdePairs, encode: Encode) -> None:
        frames, height, width = pairs.points.shape[3:]
        if frames % recipe.chunk_frames:
            raise ValueError(f"recipe: chunk_frames must divide the videos' {frames} latent frames")
        self.recipe, self.student, self.pairs, self.encode = recipe, trained(student), pairs, encode
        self.parts = own_parts(recipe.batch, recipe.micro_batch)
        self.precision = precision_of(recipe.precision, student.device)
        parallelize(self.student, precision=self.precision, checkpointing=recipe.checkpointing)
        if recipe.compiled:
            compile_blocks(self.student)
        self.optimizer = Optimizer(
            self.student,
            learning_rate=warming_up(recipe.learning_rate, recipe.warmup_steps),
            betas=(0.9, 0.99),
            weight_decay=recipe.weight_decay,
            clip=recipe.clip,
        )
        self.ema = EMA(self.student, recipe.ema)
        cache = CacheConfig(recipe.window_frames, recipe.sink_frames)
        self.seen = causal_blocks(frames, tokens_per_frame(height, width), recipe.chunk_frames, cache)

    def update(self, step: int) -> dict[str, Tensor]:
        means, norm = self.optimizer.step(map(self._losses, self._draws(step)), len(self.parts))
        self.ema.update(self.student)
        return means | {"gradient_norm": norm}

    def _draws(self, step: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Numbers of trajectories [B] and of their points [B,K], of this process's micro batches."""
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, step])
        index = rng.integers(len(self.pairs.prompts), size=recipe.batch)
        points, frames = self.pairs.points.shape[1], self.pairs.points.shape[3]
        pick_BK = draw_picks(rng, recipe.batch, frames // recipe.chunk_frames, points)
        for part in self.parts:
            yield index[part], pick_BK[part]

    def _losses(self, draw: tuple[np.ndarray, Tensor]) -> Losses:
        recipe, device = self.recipe, self.student.device
        index, pick_BK = draw
        points_BPCFHW = self.pairs.points[torch.from_numpy(index)].float()
        point_BCFHW, sigma_BF = points_at(points_BPCFHW, self.pairs.sigmas, recipe.chunk_frames, pick_BK)
        context = self.encode([self.pairs.prompts[i] for i in index]).to(device)
        point, sigma = point_BCFHW.to(device), sigma_BF.to(device)
        flow = flow_of(self.student, point, sigma, context, precision=self.precision, mask=self.seen)
        loss = ode_loss(flow, point, sigma[:, None, :, None, None], points_BPCFHW[:, -1].to(device))
        return loss, {"ode": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "updates": self.ema.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load(state["ema"], state["updates"])


def draw_picks(rng: np.random.Generator, batch: int, chunks: int, points: int) -> Tensor:
    """The number of a stored point for every chunk, not of the end: [B,K]."""
    return torch.from_numpy(rng.integers(points - 1, size=(batch, chunks)))


def points_at(points_BPCFHW: Tensor, sigmas_P: Tensor, chunk_frames: int, pick_BK: Tensor) -> tuple[Tensor, Tensor]:
    """The picked point of every chunk: latents [B,C,F,H,W] and their levels [B,F]."""
    batch, _, _, frames = points_BPCFHW.shape[:4]
    pick_BF = pick_BK.repeat_interleave(chunk_frames, 1)
    by_frame = points_BPCFHW.transpose(2, 3).transpose(1, 2)  # [B,F,P,C,H,W]
    chosen = by_frame[torch.arange(batch)[:, None], torch.arange(frames)[None], pick_BF]  # [B,F,C,H,W]
    return chosen.transpose(1, 2).contiguous(), sigmas_P[pick_BF]
