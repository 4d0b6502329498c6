"""Seeded renderer of moving handwritten digits.

Real 8x8 scans (scikit-learn's `load_digits`), smoothly upsampled, coloured, moving over a coloured ground at
sub-pixel positions. The scans are split before anything is rendered. Clip `index` of a data set depends on the seed
and the index alone, not on batching.

Motion is fixed within a clip up to translation, so a frame is a separable resampling of the glyph: rows @ glyph @
columns, with tent weights. That renders a few hundred videos a second on one core.

Shapes: B clips, T pixel frames, H and W pixels, G glyph raster; pixels [B,3,T,H,W] in -1..1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from .prompts import COLOURS, DIRECTIONS, GROUNDS, Scene, sample_scene

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class MovingDigitsConfig:
    """Sizes and motion of the rendered videos. Lengths in pixels, times in pixel frames."""

    size: int = 64
    """height and width"""
    num_pixel_frames: int = 81
    fps: int = 16
    digit_size: float = 28.0
    """side of the square that the 8x8 scan fills"""
    glyph_raster: int = 40
    """side of the upsampled glyph that frames are resampled from"""
    slow: float = 0.6
    """pixels a frame"""
    fast: float = 1.4
    speed_jitter: float = 0.08
    """relative, uniform to both sides"""
    start_jitter: float = 5.0
    """how far from its edge a digit may start, uniform"""
    edge_margin: float = 14.0
    """closest distance of the digit's centre to the edge"""
    rotation: float = 10.0
    """degrees to both sides, training scans only"""
    scale: float = 0.08
    """relative, to both sides, training scans only"""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video before rendering: what the prompt says and what it leaves open."""

    scene: Scene
    scan: int
    """index into load_digits"""
    start: float
    """distance along the direction from the closest allowed start, pixels"""
    across: float
    """0..1 over the free range of the other axis"""
    pace: float
    """pixels a frame"""
    rotation: float
    """degrees"""
    scale: float
    """relative size"""


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


def draw_clip(
    index: int,
    *,
    split: str,
    seed: int,
    config: MovingDigitsConfig,
    scene: Scene | None = None,
    held_out: bool | None = False,
) -> Clip:
    """Clip `index` of the data set (split, seed); `scene` fixes what the prompt says, `held_out` is as in
    `sample_scene`."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene = scene or sample_scene(rng, held_out=held_out)
    scans = scans_of(split, scene.digit)
    augment = 1.0 if split == "train" else 0.0
    base = config.fast if scene.speed == "fast" else config.slow
    u = rng.random(5)
    return Clip(
        scene=scene,
        scan=scans[int(rng.integers(len(scans)))],
        start=float(u[0] * config.start_jitter),
        across=float(u[1]),
        pace=float(base * (1 + config.speed_jitter * (2 * u[2] - 1))),
        rotation=float(augment * config.rotation * (2 * u[3] - 1)),
        scale=float(1 + augment * config.scale * (2 * u[4] - 1)),
    )


def draw_clips(
    indices: Sequence[int],
    *,
    split: str,
    seed: int,
    config: MovingDigitsConfig,
    scenes: Sequence[Scene] | None = None,
    held_out: bool | None = False,
) -> list[Clip]:
    """`draw_clip` for several indices; `scenes`, when given, has one entry an index."""
    given: Sequence[Scene | None] = [None] * len(indices) if scenes is None else scenes
    if len(given) != len(indices):
        raise ValueError(f"{len(indices)} indices but {len(given)} scenes; give one scene for each index")
    return [
        draw_clip(i, split=split, seed=seed, config=config, scene=scene, held_out=held_out)
        for i, scene in zip(indices, given, strict=True)
    ]


def centres(clips: Sequence[Clip], frames: np.ndarray, config: MovingDigitsConfig) -> np.ndarray:
    """Centres of the digits in pixels, [B,T,2] as (x, y); `frames` [B,T] or [T] are pixel-frame numbers (fractions
    are fine)."""
    low, high = config.edge_margin, config.size - config.edge_margin
    span = high - low
    frames = np.broadcast_to(frames, (len(clips), frames.shape[-1]))
    out = np.empty((*frames.shape, 2))
    for b, clip in enumerate(clips):
        travelled = clip.start + clip.pace * frames[b]
        if clip.scene.edge == "stops":
            along = np.minimum(travelled, span)
        else:
            along = span - np.abs(np.mod(travelled, 2 * span) - span)
        step = DIRECTIONS[clip.scene.direction]
        axis = 0 if step[0] else 1
        out[b, :, axis] = low + along if step[axis] > 0 else high - along
        out[b, :, 1 - axis] = low + clip.across * span
    return out


def render(
    clips: Sequence[Clip],
    config: MovingDigitsConfig,
    *,
    frames: np.ndarray | None = None,
) -> torch.Tensor:
    """Pixels [B,3,T,H,W] in -1..1, float32. `frames` ([T], or [B,T] for one window a clip) defaults to the whole
    video."""
    if frames is None:
        frames = np.arange(config.num_pixel_frames)
    xy_BT2 = torch.from_numpy(centres(clips, frames, config)).float()
    glyph_BGG = _glyphs(clips, config)
    side_B = torch.tensor([config.digit_size * clip.scale for clip in clips])
    columns_BTWG = _tent_weights(xy_BT2[..., 0], side_B, config)
    rows_BTHG = _tent_weights(xy_BT2[..., 1], side_B, config)
    b, t, size, raster = rows_BTHG.shape
    half = torch.bmm(rows_BTHG.reshape(b, t * size, raster), glyph_BGG).reshape(b * t, size, raster)
    mask_BTHW = torch.bmm(half, columns_BTWG.reshape(b * t, size, raster).transpose(1, 2)).reshape(b, t, size, size)
    ground = _rgb([GROUNDS[clip.scene.ground] for clip in clips])
    colour = _rgb([COLOURS[clip.scene.colour] for clip in clips])
    return torch.addcmul(ground, mask_BTHW[:, None], colour - ground)


def scan_label(scan: int) -> int:
    """The digit of a scan, by its index in load_digits."""
    return int(_digits()[1][scan])


def _rgb(values: Sequence[tuple[int, int, int]]) -> torch.Tensor:
    return (torch.tensor(values, dtype=torch.float32) / 127.5 - 1)[:, :, None, None, None]


def _glyphs(clips: Sequence[Clip], config: MovingDigitsConfig) -> torch.Tensor:
    """Rotated, upsampled coverage masks [B,G,G] in 0..1. The scan's size is applied when frames are resampled."""
    images, _ = _digits()
    scans = torch.from_numpy(images[[clip.scan for clip in clips]])[:, None]
    # A ring of empty cells keeps strokes at the scan's edge from being cut or smeared; _tent_weights knows of it.
    fine = F.interpolate(
        F.pad(scans, (1, 1, 1, 1)), size=(config.glyph_raster,) * 2, mode="bicubic", align_corners=False
    )
    angle = torch.tensor([clip.rotation for clip in clips]) * (np.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, -sin, zero], -1), torch.stack([sin, cos, zero], -1)], 1)
    grid = F.affine_grid(theta, list(fine.shape), align_corners=False)
    turned = F.grid_sample(fine, grid, mode="bilinear", align_corners=False)
    # A steeper edge than the scan's grey levels give: strokes stay full when moved by fractions of a pixel.
    return ((turned[:, 0] - 0.15) / 0.55).clamp(0, 1)


def _tent_weights(centre_BT: torch.Tensor, side_B: torch.Tensor, config: MovingDigitsConfig) -> torch.Tensor:
    """Weights [B,T,pixels,G] that resample the glyph raster along one axis around a centre: tents one output pixel
    wide."""
    raster = config.glyph_raster
    side = side_B * (10 / 8)  # the glyph's ring of empty cells
    cell_BG = side[:, None] * ((torch.arange(raster) + 0.5) / raster - 0.5)
    pixel_P = torch.arange(config.size) + 0.5
    offset = (pixel_P - centre_BT[:, :, None])[..., None] - cell_BG[:, None, None, :]
    weights = offset.abs_().neg_().add_(1).clamp_min_(0)
    # Sums differ by a few per cent with the sub-pixel shift; beyond the glyph they fall to nothing and must not be
    # blown up.
    return weights.div_(weights.sum(-1, keepdim=True).clamp_min_(0.5))
