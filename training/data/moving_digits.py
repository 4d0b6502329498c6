"""Seeded renderer of moving handwritten digits.

Real 8x8 scans (scikit-learn's `load_digits`), smoothly upsampled, coloured, one or two a video, moving over a coloured
ground at sub-pixel positions. The scans are split before anything is rendered. Clip `index` of a data set depends on
the seed and the index alone, not on batching. Where digits move is in `paths.py`.

A digit does not change within a clip but for its place, so a frame is a separable resampling of the glyph: rows @ glyph
@ columns, with tent weights. That renders a few hundred videos a second on one core.

Shapes: B clips, M digits of all clips together, T pixel frames, H and W pixels, G glyph raster; pixels [B,3,T,H,W] in
-1..1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from .paths import Body, Clip, MovingDigitsConfig, draw_bodies, path
from .prompts import COLOURS, GROUNDS, PAIR_FRACTION, Mover, Scene, sample_scene

SPLITS = ("train", "validation", "test")


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images.astype(np.float32) / 16.0, data.target.astype(np.int64)


@cache
def scans_of(split: str, digit: int) -> tuple[int, ...]:
    """Indices of the scans of `digit` in a split: 80% train, 10% validation, 10% test of each digit, ordered by a hash.

    Raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
    _, labels = _digits()
    order = sorted(
        (int(i) for i in np.flatnonzero(labels == digit)), key=lambda i: hashlib.sha256(f"scan {i}".encode()).digest()
    )
    tenth = len(order) // 10
    parts = {"test": order[:tenth], "validation": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
    return tuple(parts[split])


def scan_label(scan: int) -> int:
    """The digit of a scan, by its index in load_digits."""
    return int(_digits()[1][scan])


def draw_clip(
    index: int,
    *,
    split: str,
    seed: int,
    config: MovingDigitsConfig,
    scene: Scene | None = None,
    held_out: bool | None = False,
    pairs: float = PAIR_FRACTION,
) -> Clip:
    """Clip `index` of the data set (split, seed); `scene` fixes what the prompt says, `held_out` and `pairs` are as in
    `sample_scene`. Training scans are rotated and scaled a little, the others are shown as they are."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene = scene or sample_scene(rng, held_out=held_out, pairs=pairs)
    scans = [scans_of(split, mover.digit) for mover in scene.movers]
    chosen = [part[int(rng.integers(len(part)))] for part in scans]
    return Clip(scene=scene, bodies=draw_bodies(rng, scene, chosen, config, augmented=split == "train"))


def draw_clips(
    indices: Sequence[int],
    *,
    split: str,
    seed: int,
    config: MovingDigitsConfig,
    scenes: Sequence[Scene] | None = None,
    held_out: bool | None = False,
    pairs: float = PAIR_FRACTION,
) -> list[Clip]:
    """`draw_clip` for several indices; `scenes`, when given, has one entry an index."""
    given: Sequence[Scene | None] = [None] * len(indices) if scenes is None else scenes
    if len(given) != len(indices):
        raise ValueError(f"{len(indices)} indices but {len(given)} scenes; give one scene for each index")
    return [
        draw_clip(i, split=split, seed=seed, config=config, scene=scene, held_out=held_out, pairs=pairs)
        for i, scene in zip(indices, given, strict=True)
    ]


def centres(clips: Sequence[Clip], frames: np.ndarray, config: MovingDigitsConfig) -> np.ndarray:
    """Centres of all digits in pixels, [M,T,2] as (x, y), clip by clip; `frames` [B,T] or [T] are pixel-frame numbers
    (fractions are fine)."""
    frames = np.broadcast_to(frames, (len(clips), frames.shape[-1]))
    return np.stack([path(m, body, frames[b], config) for b, m, body in _movers(clips)])


def render(clips: Sequence[Clip], config: MovingDigitsConfig, *, frames: np.ndarray | None = None) -> torch.Tensor:
    """Pixels [B,3,T,H,W] in -1..1, float32. `frames` ([T], or [B,T] for one window a clip) defaults to the whole
    video. The second digit of a clip passes in front of the first."""
    if frames is None:
        frames = np.arange(config.num_pixel_frames)
    movers = _movers(clips)
    mask_MTHW = _masks([body for _, _, body in movers], centres(clips, frames, config), config)
    colour_M = _rgb([COLOURS[mover.colour] for _, mover, _ in movers])
    first = torch.tensor([m for m, (b, _, _) in enumerate(movers) if m == 0 or movers[m - 1][0] != b])
    second = torch.tensor([m for m in range(len(movers)) if m not in set(first.tolist())], dtype=torch.long)
    ground = _rgb([GROUNDS[clip.scene.ground] for clip in clips])
    pixels = torch.addcmul(ground, mask_MTHW[first][:, None], colour_M[first] - ground)
    if len(second):
        clip_of = torch.tensor([movers[m][0] for m in second.tolist()])
        behind = pixels[clip_of]
        pixels[clip_of] = torch.addcmul(behind, mask_MTHW[second][:, None], colour_M[second] - behind)
    return pixels


def _movers(clips: Sequence[Clip]) -> list[tuple[int, Mover, Body]]:
    """All digits with the number of their clip."""
    return [
        (b, mover, body)
        for b, clip in enumerate(clips)
        for mover, body in zip(clip.scene.movers, clip.bodies, strict=True)
    ]


def _rgb(values: Sequence[tuple[int, int, int]]) -> torch.Tensor:
    return (torch.tensor(values, dtype=torch.float32) / 127.5 - 1)[:, :, None, None, None]


def _masks(bodies: Sequence[Body], xy_MT2: np.ndarray, config: MovingDigitsConfig) -> torch.Tensor:
    """How much of each pixel each digit covers, [M,T,H,W] in 0..1."""
    glyph_MGG = _glyphs(bodies, config)
    centre_MT2 = torch.from_numpy(xy_MT2).float()
    side_M = torch.tensor([body.side for body in bodies])
    columns_MTWG = _tent_weights(centre_MT2[..., 0], side_M, config)
    rows_MTHG = _tent_weights(centre_MT2[..., 1], side_M, config)
    m, t, size, raster = rows_MTHG.shape
    half = torch.bmm(rows_MTHG.reshape(m, t * size, raster), glyph_MGG).reshape(m * t, size, raster)
    return torch.bmm(half, columns_MTWG.reshape(m * t, size, raster).transpose(1, 2)).reshape(m, t, size, size)


def _glyphs(bodies: Sequence[Body], config: MovingDigitsConfig) -> torch.Tensor:
    """Rotated, upsampled coverage masks [M,G,G] in 0..1. The scan's size is applied when frames are resampled."""
    images, _ = _digits()
    scans = torch.from_numpy(images[[body.scan for body in bodies]])[:, None]
    # A ring of empty cells keeps strokes at the scan's edge from being cut or smeared; _tent_weights knows of it.
    fine = F.interpolate(
        F.pad(scans, (1, 1, 1, 1)), size=(config.glyph_raster,) * 2, mode="bicubic", align_corners=False
    )
    angle = torch.tensor([body.rotation for body in bodies]) * (np.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, -sin, zero], -1), torch.stack([sin, cos, zero], -1)], 1)
    grid = F.affine_grid(theta, list(fine.shape), align_corners=False)
    turned = F.grid_sample(fine, grid, mode="bilinear", align_corners=False)
    # A steeper edge than the scan's grey levels give: strokes stay full when moved by fractions of a pixel.
    return ((turned[:, 0] - 0.15) / 0.55).clamp(0, 1)


def _tent_weights(centre_MT: torch.Tensor, side_M: torch.Tensor, config: MovingDigitsConfig) -> torch.Tensor:
    """Weights [M,T,pixels,G] that resample the glyph raster along one axis around a centre: tents one output pixel
    wide."""
    raster = config.glyph_raster
    side = side_M * (10 / 8)  # the glyph's ring of empty cells
    cell_MG = side[:, None] * ((torch.arange(raster) + 0.5) / raster - 0.5)
    pixel_P = torch.arange(config.size) + 0.5
    offset = (pixel_P - centre_MT[:, :, None])[..., None] - cell_MG[:, None, None, :]
    weights = offset.abs_().neg_().add_(1).clamp_min_(0)
    # Sums differ by a few per cent with the sub-pixel shift; beyond the glyph they fall to nothing and must not be
    # blown up.
    return weights.div_(weights.sum(-1, keepdim=True).clamp_min_(0.5))
