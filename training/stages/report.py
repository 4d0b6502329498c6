"""What a distillation of moving digits led to: its stages' videos side by side, their scores, and the training curves.
Needs Pillow."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diag_core.bench.meter import describe_machine
from diag_core.geometry import DEFAULT_FPS

from ..canvas import BLUE, GREEN, ORANGE, Colour
from ..data.paths import MovingDigitsConfig
from ..data.prompts import Scene, held_out_scenes, to_prompt
from ..distillation_pictures import Curve, Panel, draw_curves, draw_playing, draw_stages
from ..io import save_json
from ..logbook import FILE, read_log
from . import autoencoder
from .score_table import forwards, load_reports, score_table, seconds_of
from .scoring import load_for_sampling, sampler_of

log = logging.getLogger(__name__)

STAGES = {
    "teacher": "teacher.safetensors",
    "ODE init": "ode_init.safetensors",
    "stage 1": "stage1.safetensors",
    "stage 2": "stage2.safetensors",
}
_SCORED = {**STAGES, "stage 2": "dit.safetensors"}  # its weights as they are exported
_TRAINED: dict[str, tuple[str, Colour]] = {
    "ODE init": ("ode_init", GREEN), "stage 1": ("stage1", BLUE), "stage 2": ("stage2", ORANGE)
}  # fmt: skip
_SEED = 40_000
"""of prompts and noise: neither the evaluation's nor those watched in training"""


def report(folder: Path, pictures: Path, *, prompts: int = 3, data: MovingDigitsConfig | None = None) -> None:
    """Draws `distillation-frames.png`, `distillation.webp` (which plays) and `distillation-curves.png` into the folder
    `pictures`, and writes `distillation-scores.md` there: a table, with seconds of a video as they are on this machine,
    which go into `scores/seconds.json` of `folder` too.

    Args:
        folder: the output folder of `python -m training toy`, finished.
        prompts: held-out ones of one digit that are shown; one of two digits follows them.

    Raises:
        ValueError: a stage has not been run.
        OSError: they cannot be written.
    """
    panels = _panels({name: _logged(folder / stage) for name, (stage, _) in _TRAINED.items()}, _teacher(folder))
    drawn = held_out_scenes(20 * (prompts + 1), seed=_SEED)
    alone, pairs = ([scene for scene in drawn if len(scene.movers) == count] for count in (1, 2))
    scenes = [*alone[:prompts], *pairs[:1]]
    shown = [to_prompt(scene) for scene in scenes]
    reports = load_reports(folder, _SCORED)
    videos, forwards_of, seconds = _sample(folder, scenes, data or autoencoder.data_of(folder / "vae.safetensors"))
    pictures.mkdir(parents=True, exist_ok=True)
    notes = {name: f"{count} forwards" for name, count in forwards_of.items()}
    draw_stages(videos, shown, notes).save(pictures / "distillation-frames.png")
    first, *others = draw_playing(videos, shown, notes)
    first.save(
        pictures / "distillation.webp", save_all=True, append_images=others, duration=1000 / DEFAULT_FPS, loop=0,
        quality=70, method=4,
    )  # fmt: skip
    save_json(
        folder / "scores" / "seconds.json",
        {"seconds": seconds, "forwards": forwards_of, "machine": describe_machine(torch.device("cpu"))},
    )
    lines = score_table(reports, forwards_of, seconds)
    (pictures / "distillation-scores.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw_curves(panels).save(pictures / "distillation-curves.png")


def _sample(
    folder: Path, scenes: list[Scene], data: MovingDigitsConfig
) -> tuple[dict[str, list[Tensor]], dict[str, int], dict[str, float]]:
    """Of each stage: videos [3,T,H,W] from the same noise, forwards of one, and seconds of one."""
    vae = autoencoder.load_autoencoder(folder / "vae.safetensors")
    videos, forwards_of, seconds = {}, {}, {}
    prompts = [to_prompt(scene) for scene in scenes]
    for name, file in STAGES.items():
        if not (folder / file).exists():
            raise ValueError(f"{folder / file} is missing: run all stages first")
        loaded, settings = load_for_sampling(folder / file, {})
        sample = sampler_of(loaded, settings, vae, data)
        videos[name] = list(sample(prompts, _SEED))
        forwards_of[name] = forwards(settings)
        seconds[name] = seconds_of(partial(sample, prompts[:1], _SEED))
        log.info("%s: %d forwards, %.2f s a video", name, forwards_of[name], seconds[name])
    return videos, forwards_of, seconds


Log = dict[str, list[tuple[float, float]]]
"""name -> (iteration, value)"""


def _logged(folder: Path) -> Log:
    if not (folder / FILE).exists():
        raise ValueError(f"{folder / FILE} is missing: run all stages in this folder first")
    log: Log = {}
    for entry in read_log(folder):
        for name, value in entry.items():
            if name != "step":
                log.setdefault(name, []).append((float(entry["step"]), float(value)))
    return log


def _teacher(folder: Path) -> dict[str, float]:
    """What the teacher's sample videos read, on the prompts that the stages are watched with."""
    path = folder / "stage2" / "teacher.json"
    values: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _panels(logs: dict[str, Log], teacher: dict[str, float]) -> list[Panel]:
    def over_stages(title: str, key: str, *, percent: bool = False, watched: bool = True) -> Panel:
        name = f"sample/{key}" if watched else key
        curves = [Curve(stage, _TRAINED[stage][1], log[name]) for stage, log in logs.items() if name in log]
        return Panel(title, curves, reference=teacher.get(key) if watched else None, percent=percent)

    return [
        over_stages("digits read right", "digit", percent=True),
        over_stages("directions right", "direction", percent=True),
        over_stages("motion amplitude, pixels a frame", "amplitude"),
        over_stages("saturation", "saturation"),
        over_stages("contrast", "contrast"),
        over_stages("ODE loss", "ode", watched=False),
        over_stages("generator loss", "generator", watched=False),
        over_stages("critic loss", "critic", watched=False),
        over_stages("gradient norm of the generator", "generator_norm", watched=False),
    ]
