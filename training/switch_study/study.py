"""The study itself: sample, read, sum up.

Shapes: P pairs, T pixel frames; pixels [P,3,T,H,W] in -1..1.
"""

from __future__ import annotations

import logging
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diag_core.bench.meter import describe_machine

from ..classifier import load_classifier
from ..io import save_json
from ..stages.autoencoder import load_autoencoder
from ..stages.scoring import load_for_sampling
from .pairs import prompts_of, switch_pairs
from .readings import Readings, differences, joined, read_videos, summary
from .sampling import CONTROL, StudyConfig, SwitchSampler
from .tables import tables

log = logging.getLogger(__name__)

_OWN = "no switch, against its own prompt"
_SEEDS = 100_003
"""videos of one study seed never share noise with those of another"""


@dataclass(frozen=True)
class Study:
    """What a study found, and what to draw of it."""

    result: dict[str, Any]
    """for JSON"""
    shown: dict[str, Tensor]
    """variant (and control) -> [P,3,T,H,W] of the first batch"""
    prompts: list[tuple[str, str]]
    """of all pairs"""


def run(
    folder: Path, config: StudyConfig, *, file: str = "dit.safetensors", overrides: dict[str, Any] | None = None
) -> Study:
    """Samples every pair in every variant with the checkpoint `file` of a folder, and scores the videos.

    Args:
        overrides: sampling settings instead of the checkpoint's.

    Raises:
        ValueError: a checkpoint without settings, or a bidirectional one.
        OSError: a file that is not there.
    """
    checkpoint, settings = load_for_sampling(folder / file, overrides or {})
    sampler = SwitchSampler(checkpoint, settings, load_autoencoder(folder / "vae.safetensors"), config)
    classifier = load_classifier(folder / "classifier.safetensors")
    pairs = switch_pairs(config.pairs, seed=config.seed, motions=config.motions)
    prompts = prompts_of(pairs, seed=config.seed)
    where: dict[str, Any] = {
        "first_chunk": config.switch_chunk,
        "chunk_frames": settings.chunk_frames,
        "data": config.data,
    }
    batches: dict[str, list[Readings]] = {}
    shown: dict[str, Tensor] = {}
    forwards: dict[str, int] = {}
    began = time.monotonic()
    for start in range(0, config.pairs, config.batch):
        part = slice(start, min(start + config.batch, config.pairs))
        seeds = [config.seed * _SEEDS + p for p in range(part.start, part.stop)]
        sampled = sampler.sample(prompts[part], seeds)
        forwards, shown = sampled.forwards, shown or sampled.pixels
        old, new = (list(scenes) for scenes in zip(*pairs[part], strict=True))
        for name, pixels in sampled.pixels.items():
            batches.setdefault(name, []).append(read_videos(pixels, new, classifier, before=old, **where))
        own = read_videos(sampled.pixels[CONTROL], old, classifier, since=0, **where)
        batches.setdefault(_OWN, []).append(own)
        log.info("prompt switches: %d of %d pairs, %.0f s", part.stop, config.pairs, time.monotonic() - began)
    readings = {name: joined(parts) for name, parts in batches.items()}
    control = readings[CONTROL]
    variants = {
        variant.name: {
            "recache": variant.recache,
            "extra_steps": variant.extra_steps,
            "schedule": sampler.schedule_of(variant).text(),
            "forwards_after_switch": forwards[variant.name],
            **summary(readings[variant.name], control),
        }
        for variant in config.variants
    }
    result = {
        "pairs": config.pairs,
        "seed": config.seed,
        "chunks": config.chunks,
        "switch_chunk": config.switch_chunk,
        "variants": variants,
        "control": {
            "forwards_after_switch": forwards[CONTROL],
            "against_new_prompt": summary(control, control),
            "against_own_prompt": summary(readings[_OWN], control),
        },
        "differences": differences({v.name: readings[v.name] for v in config.variants}),
        "settings": settings.to_dict(),
        "seconds": round(time.monotonic() - began),
        "machine": describe_machine(sampler.model.device),
    }
    return Study(result, shown, prompts)


def report(
    folder: Path,
    config: StudyConfig,
    *,
    file: str = "dit.safetensors",
    overrides: dict[str, Any] | None = None,
    json: Path | None = None,
    pictures: Path | None = None,
    example: int = 0,
) -> dict[str, Any]:
    """`run`, with its results written to `json`, drawn into the folder `pictures` and told in the log.

    Args:
        example: the pair whose frames are drawn, of the first batch.
    """
    if pictures is not None:
        # Before the long work: drawing needs Pillow.
        try:
            from .pictures import draw_frames, draw_shares
        except ImportError as error:
            raise ValueError("drawing needs Pillow: pip install pillow, or leave --plot out") from error
    if not 0 <= example < min(config.pairs, config.batch):
        raise ValueError(f"the example must be of the first batch, 0 to {min(config.pairs, config.batch) - 1}")
    study = run(folder, config, file=file, overrides=overrides)
    study.result["command"] = _command(folder, config, file, overrides or {})
    if json is not None:
        save_json(json, study.result)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        draw_shares(study.result).save(pictures / "prompt-switch.png")
        videos = {name: pixels[example] for name, pixels in study.shown.items()}
        draw_frames(videos, study.prompts[example], study.result).save(pictures / "prompt-switch-frames.png")
        written = "\n".join(tables(study.result)) + "\n"
        (pictures / "prompt-switch-tables.md").write_text(written, encoding="utf-8")
    for name, found in study.result["variants"].items():
        shares = ", ".join(
            f"{aspect} {100 * chunks[0]['value']:.0f}% to {100 * chunks[-1]['value']:.0f}%"
            for aspect, chunks in found["share"].items()
            if chunks[0]["value"] is not None
        )
        log.info("%s: new %s, first chunk to last; jump %.2f pixels", name, shares, found["jump"]["value"])
    return study.result


def _command(folder: Path, config: StudyConfig, file: str, overrides: dict[str, Any]) -> str:
    """What repeats the study."""
    sizes = {name: getattr(config, name) for name in ("pairs", "seed", "chunks", "switch_chunk", "batch")}
    given = sizes | {"file": file} | {name: value for name, value in overrides.items() if value is not None}
    options = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given.items()]
    return " ".join(["python -m training switch-study", shlex.quote(str(folder)), *options])
