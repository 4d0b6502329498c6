"""From options to a plan: every fault that can be found without loading a model is found here."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from ..attention import attention_backend
from ..checkpoint import read_settings
from ..config import SwitchPolicy
from ..demo_text import DEMO_ENCODER
from ..geometry import DEFAULT_FPS, latent_frames, latent_frames_for, pixel_frames, usable_pixel_frames
from ..live import MAX_PREPARED
from ..settings import CheckpointSettings
from ..timeline_text import TimelineEntry, TimelineError, parse_timeline
from ..video_reader import count_frames
from .outputs import VBENCH_COUNT, check_writable, output_paths, vbench_paths
from .request import VideoRequest
from .saved import latents_path, read_request
from .settings import CHUNKWISE, OPTIONS, Resolved, resolve

DEMO = Path(__file__).resolve().parents[2] / "demo"
# What the models of each prompt encoder were trained on.
_SIZES = {"umt5": (832, 480), DEMO_ENCODER: (64, 64)}
_LATENT_FRAMES = 21
_INTERACTIVE_SECONDS = 3600.0

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `generate` will do."""

    requests: tuple[VideoRequest, ...]
    outputs: tuple[Path, ...]
    sources: Mapping[str, str]
    """field of the settings -> who set it"""
    checkpoint: Path
    vae: Path
    text_encoder: Path | None
    embedding_cache: Path | None
    lora: Path | None
    lora_strength: float
    attention: str
    fast: str
    """one of `diag_core.fast.MODES`"""
    fp8: bool
    compiled: bool
    device: torch.device
    dtype: torch.dtype
    image: Path | None
    video: Path | None
    """whose last frames the video goes on from"""
    save_state: Path | None
    resume: Path | None
    png: bool
    """folders of pictures instead of video files"""
    overwrite: bool
    interactive: bool
    """prompts come while the video is made"""
    slots: tuple[str, ...]
    """prompts encoded beforehand"""
    mark_generated: bool
    """files say that a model made them"""
    signing: tuple[Path, Path] | None
    """certificate and key that finished videos are signed with"""
    notes: tuple[str, ...]
    """what the user should know before waiting"""


def make_plan(options: argparse.Namespace) -> Plan:
    """Check the options of `generate` against each other, the files they name, and the checkpoint's own settings.

    Raises:
        ValueError, OSError: what is wrong, where, and what to do.
    """
    checkpoint = _checkpoint(options.checkpoint)
    device = _device(options.device)
    attention_backend(options.attention)
    resume = options.resume
    before = read_request(resume) if resume else None
    stored = before.settings if before else read_settings(checkpoint)
    given = _given(options)
    resolved = resolve(
        stored, options.preset, given, name=str(checkpoint), stored_by="saved video" if before else "checkpoint"
    )
    requests = _requests(options, resolved.settings, before)
    requests, outputs, kept = _outputs(options, requests)
    _check_interactive(options, requests)
    if (options.save_state or resume) and len(requests) > 1:
        raise ValueError(f"--save-state and --resume are for one video; these options make {len(requests)}")
    if sum(bool(given) for given in (resume, options.image, options.video)) > 1:
        raise ValueError("--image and --video begin a video, --resume goes on with one: leave all but one of them out")
    for name in ("fp8", "compile"):
        if getattr(options, name) and options.fast != "on":
            raise ValueError(f"--{name} is part of the fast path: give --fast on with it")
    if options.fp8 and options.compile:
        raise ValueError("--fp8 and --compile are for the same layers: leave one of them out")
    _check_files(options)
    return Plan(
        requests=tuple(requests),
        outputs=tuple(outputs),
        sources=resolved.sources,
        checkpoint=checkpoint,
        text_encoder=_text_encoder(options.text_encoder, resolved.settings),
        vae=_vae(options.vae, checkpoint),
        embedding_cache=options.embedding_cache,
        lora=options.lora,
        lora_strength=options.lora_strength,
        attention=options.attention,
        fast=options.fast,
        fp8=options.fp8,
        compiled=options.compile,
        device=device,
        dtype=_dtype(options.dtype, device),
        image=options.image,
        video=options.video,
        save_state=options.save_state,
        resume=resume,
        png=options.png,
        overwrite=options.overwrite,
        interactive=options.interactive,
        slots=tuple(options.slot or ()),
        mark_generated=options.mark_generated,
        signing=_signing(options),
        notes=(*_notes(options, requests[0], resolved, outputs[0]), *kept),
    )


def _outputs(
    options: argparse.Namespace, requests: list[VideoRequest]
) -> tuple[list[VideoRequest], list[Path], list[str]]:
    """The videos that are to be made, where they go, and what to say about others."""
    if options.layout is None:
        return requests, output_paths(options.out, requests, overwrite=options.overwrite, png=options.png), []
    if options.png or options.timeline is not None or options.interactive:
        raise ValueError("--layout vbench is for files of one prompt each: leave out --png, --timeline, --interactive")
    paths = vbench_paths(options.out, requests, _count(options))
    wanted = [i for i, path in enumerate(paths) if options.overwrite or not path.exists()]
    if not wanted:
        raise ValueError(f"all {len(paths)} videos are in {paths[0].parent} already; --overwrite makes them again")
    there = len(paths) - len(wanted)
    notes = [f"{there} of {len(paths)} videos are there already and stay (--overwrite replaces)"] if there else []
    return [requests[i] for i in wanted], [paths[i] for i in wanted], notes


def _count(options: argparse.Namespace) -> int:
    """Videos of each prompt."""
    return int(options.count or (1 if options.layout is None else VBENCH_COUNT))


def _checkpoint(path: Path | None) -> Path:
    if path is not None:
        if not path.exists():
            raise ValueError(
                f"--checkpoint {path}: there is no such file. Check the path, or download the weights first"
            )
        return path
    demo = DEMO / "dit.safetensors"
    if not demo.is_file():
        raise ValueError(
            f"{demo}: the demo's checkpoint is missing (it is part of the repository, not of the installed package); "
            "give --checkpoint"
        )
    return demo


def _vae(path: Path | None, checkpoint: Path) -> Path:
    beside = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "vae.safetensors"
    if path is None and not beside.is_file():
        raise ValueError(
            f"{beside} is missing: give --vae, the Wan VAE (Wan2.1_VAE.pth, wan_2.1_vae.safetensors) or taew2_1.pth"
        )
    if path is not None and not path.exists():
        raise ValueError(f"--vae {path}: there is no such file")
    return path or beside


def _text_encoder(path: Path | None, settings: CheckpointSettings) -> Path | None:
    if settings.text_encoder == DEMO_ENCODER:
        return None
    if path is None:
        raise ValueError("this checkpoint needs --text-encoder: umT5-XXL as a file or folder (`download` fetches one)")
    if not path.exists():
        raise ValueError(f"--text-encoder {path}: there is no such file or folder")
    return path


def _check_interactive(options: argparse.Namespace, requests: list[VideoRequest]) -> None:
    if not options.interactive:
        if options.slot:
            raise ValueError("--slot is a prompt for --interactive: give that too, or leave it out")
        return
    if len(requests) > 1:
        raise ValueError(f"--interactive is for one video; these options make {len(requests)}")
    if not requests[0].settings.causal:
        raise ValueError("this model makes the whole video at once: prompts cannot change it while it is made")
    if any(not slot.strip() for slot in options.slot or ()):
        raise ValueError("--slot: the prompt is empty; write what the video shows from there on")
    if len(options.slot or ()) > MAX_PREPARED:
        raise ValueError(f"{len(options.slot)} times --slot; at most {MAX_PREPARED}")


def _check_files(options: argparse.Namespace) -> None:
    for name in ("lora", "image", "video"):
        path = getattr(options, name)
        if path is not None and not path.exists():
            raise ValueError(f"--{name} {path}: there is no such file")
    if options.embedding_cache is not None:
        check_writable(options.embedding_cache)
    state = options.save_state
    if state is not None:
        check_writable(state.parent)
        if state.is_dir():
            raise ValueError(f"--save-state {state}: give the name of a file")
        if state != options.resume and not options.overwrite:
            for path in (state, latents_path(state)):
                if path.exists():
                    raise ValueError(f"--save-state {state}: {path} exists already; give another name, or --overwrite")


def _signing(options: argparse.Namespace) -> tuple[Path, Path] | None:
    certificate, key = options.c2pa_certificate, options.c2pa_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ValueError("--c2pa-certificate and --c2pa-key belong together: give both, or neither")
    if options.png:
        raise ValueError(
            "--c2pa-certificate signs MP4 files: leave out --png, or leave out the certificate and its key"
        )
    from ..c2pa_signing import check_signing

    check_signing(certificate, key)
    return certificate, key


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: there is no such device; use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices here; use cpu")
    return device


def _dtype(name: str | None, device: torch.device) -> torch.dtype:
    """What is asked for, else what the device is fast in.

    Cards before Ampere (capability 8.0) only emulate bfloat16. Wan's DiT and both VAEs also run in float16; umT5, which
    would overflow in it, is encoded in bfloat16 everywhere.
    """
    if name is not None:
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cpu":
        return torch.float32
    emulated = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    return torch.float16 if emulated else torch.bfloat16


def _given(options: argparse.Namespace) -> dict[str, object]:
    """The options given, by field of the settings."""
    given = {field: value for field in OPTIONS if (value := getattr(options, field)) is not None}
    return {field: None if value == "all" and field == "window_frames" else value for field, value in given.items()}


def _requests(
    options: argparse.Namespace, settings: CheckpointSettings, before: VideoRequest | None
) -> list[VideoRequest]:
    """One for each prompt and seed."""
    fps = _first_of(options.fps, before.fps if before else DEFAULT_FPS)
    width, height = options.size or ((before.width, before.height) if before else _SIZES[settings.text_encoder])
    timelines = _timelines(options, fps, settings.chunk_frames)
    if before and not timelines:
        timelines = [before.entries]
    if not timelines:
        raise ValueError("there is nothing to show: give --prompt, --prompt-file or --timeline")
    given_frames = before.given_frames if before else 0
    if options.image:
        given_frames = settings.chunk_frames if options.image_mode == "repeat" else 1
    if options.video:
        count = count_frames(options.video)
        given_frames = latent_frames(usable_pixel_frames(count, settings.chunk_frames, settings.window_frames))
    first_seed = options.seed if options.seed is not None else before.seed if before else 0
    return [
        VideoRequest(
            entries=entries,
            settings=settings,
            seed=seed,
            width=width,
            height=height,
            fps=fps,
            pixel_frames=_pixel_frames(options, fps, before),
            given_frames=given_frames,
            blend_chunks=_first_of(options.blend_chunks, before.blend_chunks if before else 0),
            switch=SwitchPolicy(
                _first_of(options.recache, before.switch.recache if before else "chunks"),
                _first_of(options.recache_sink, before.switch.sink if before else False),
            ),
        )
        for entries in timelines
        for seed in range(first_seed, first_seed + _count(options))
    ]


def _first_of(value: _T | None, otherwise: _T) -> _T:
    return otherwise if value is None else value


def _pixel_frames(options: argparse.Namespace, fps: float, before: VideoRequest | None) -> int:
    if options.frames is not None:
        return int(options.frames)
    if options.latent_frames is not None:
        return pixel_frames(options.latent_frames)
    if options.seconds is not None:
        if options.seconds <= 0:
            raise ValueError(f"--seconds must be above 0, got {options.seconds:g}")
        return pixel_frames(latent_frames_for(options.seconds, fps))
    if options.interactive:
        return pixel_frames(latent_frames_for(_INTERACTIVE_SECONDS, fps))
    return before.pixel_frames if before else pixel_frames(_LATENT_FRAMES)


def _timelines(options: argparse.Namespace, fps: float, chunk_frames: int) -> list[tuple[TimelineEntry, ...]]:
    """A timeline for each prompt; [] when there is none."""
    if options.timeline is not None:
        if options.prompt or options.prompt_file:
            raise ValueError("--timeline holds all prompts of one video: leave out --prompt and --prompt-file")
        text, where = options.timeline, "--timeline"
        if text.startswith("@"):
            where = f"--timeline {text}"
            text = _read_text(Path(text[1:]), where)
        try:
            return [tuple(parse_timeline(text, fps, chunk_frames))]
        except TimelineError as error:
            raise ValueError(f"{where}: {error}") from error
    prompts = list(options.prompt or [])
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("--prompt: the prompt is empty; write what the video shows")
    if options.prompt_file is not None:
        lines = _read_text(options.prompt_file, f"--prompt-file {options.prompt_file}").splitlines()
        from_file = [line.strip() for line in lines if line.strip()]
        if not from_file:
            raise ValueError(f"--prompt-file {options.prompt_file}: it holds no prompts, one a line")
        prompts += from_file
    return [(TimelineEntry(0, prompt, "0s"),) for prompt in prompts]


def _read_text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: it is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ValueError(f"{where}: it cannot be read ({error.strerror})") from error


def _notes(options: argparse.Namespace, request: VideoRequest, resolved: Resolved, output: Path) -> list[str]:
    notes = []
    late = [entry.label for entry in request.entries if entry.start_latent_frame >= request.latent_frames]
    if late:
        notes.append(f"the video ends before the prompt at {late[0]}")
    if resolved.sources["negative_prompt"] == "--negative" and not request.guided:
        notes.append("--negative has no effect without guidance (--cfg other than 1)")
    if options.blend_chunks and len(request.entries) == 1:
        notes.append("--blend-chunks has no effect on a single prompt")
    idle = [OPTIONS[field] for field in CHUNKWISE if resolved.sources[field] == OPTIONS[field]]
    if idle and not request.settings.causal:
        notes.append(f"{', '.join(idle)}: no effect on a model that makes the whole video at once")
    if options.embedding_cache and request.settings.text_encoder == DEMO_ENCODER:
        notes.append("--embedding-cache has no effect: this checkpoint's prompt encoder has no weights")
    wanted = None if options.out is None else Path(options.out)
    if wanted is not None and wanted.is_file() and output != wanted:
        notes.append(f"{wanted} is there already: this goes to {output} (--overwrite replaces)")
    return notes
