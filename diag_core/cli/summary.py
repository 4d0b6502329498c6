"""What a plan comes to, in lines for the user."""

from __future__ import annotations

from collections.abc import Sequence

from ..geometry import first_pixel_frame_of
from ..noise_schedule import sigma_from_schedule_timestep
from .plan import Plan
from .request import VideoRequest


def summary(plan: Plan) -> list[str]:
    """Names in a column, then what is used, and in brackets who said so."""
    request, settings = plan.requests[0], plan.requests[0].settings
    rows = [
        ("model", f"{plan.checkpoint}{f' ({settings.title})' if settings.title else ''}", ()),
        ("video", _video(request), ()),
        ("schedule", f"{settings.schedule}, shift {settings.shift:g}: {_work(request)}", ("schedule", "shift")),
        ("steps", _steps(request), ("step", "cfg")),
    ]
    if settings.causal:
        rows += [
            ("KV noise", _kv_noise(request), ("kv_noise", "reuse_last_step")),
            ("attention", _attended(request), ("window_frames", "sink_frames", "positions")),
        ]
    rows += [
        ("seed", _seeds(plan.requests), ()),
        ("device", f"{plan.device}, {str(plan.dtype).removeprefix('torch.')}", ()),
    ]
    return [f"{name:<10} {text}{_sources(plan, fields)}" for name, text, fields in rows]


def _sources(plan: Plan, fields: Sequence[str]) -> str:
    sources = list(dict.fromkeys(plan.sources[field] for field in fields))
    return f"  [{', '.join(sources)}]" if sources else ""


def _video(request: VideoRequest) -> str:
    chunks = len(request.spans())
    text = (
        f"{request.width}x{request.height}, {request.pixel_frames} pixel frames at {request.fps:g} FPS "
        f"({request.pixel_frames / request.fps:.2f} s): {request.latent_frames} latent frames, {chunks} "
        f"chunk{'s' * (chunks != 1)}"
    )
    if request.given_frames:
        text += f", {first_pixel_frame_of(request.given_frames)} of the pixel frames given"
    return text


def _work(request: VideoRequest) -> str:
    work = request.work()
    commits = f" and {work.commits} commits" if work.commits else ""
    return f"{work.steps} denoising forwards{commits}{', each twice for guidance' * request.guided}"


def _steps(request: VideoRequest) -> str:
    settings = request.settings
    return settings.step if not request.guided else f"{settings.step}, CFG {settings.cfg:g}"


def _kv_noise(request: VideoRequest) -> str:
    settings = request.settings
    true = 1000 * sigma_from_schedule_timestep(settings.kv_noise, settings.shift)
    reuse = "a last step there is reused" if settings.reuse_last_step else "a forward commits each chunk"
    return f"{settings.kv_noise:g} (true timestep {true:.1f}), {reuse}"


def _attended(request: VideoRequest) -> str:
    settings = request.settings
    if settings.window_frames is None:
        return "all latent frames so far"
    return f"window {settings.window_frames} latent frames, sink {settings.sink_frames}, {settings.positions} positions"


def _seeds(requests: Sequence[VideoRequest]) -> str:
    seeds = list(dict.fromkeys(request.seed for request in requests))
    return f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
