"""Prompts for videos that are being sampled: who listens, and what the browser is told.

A sampler node with a CLIP listens while it runs; the pack's route hands it what was typed. Nothing else is reached
from there: a prompt is text for the next chunk of the video of one running prompt id and node.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..diag_core.geometry import seconds_at
from ..diag_core.live import MAX_PREPARED, LivePrompts, Switch

EVENT = "diagdistill.live"

_running: dict[tuple[str, str], tuple[LivePrompts, dict[str, Any]]] = {}
"""(prompt id, node) -> who listens, and what its "listening" event tells"""
_lock = threading.Lock()


class NotListening(ValueError):
    """Nothing takes a prompt there now."""


def slots_of(text: str) -> list[str]:
    """The prompts of a text, one a line; blank lines count for nothing.

    Raises ValueError for too many.
    """
    slots = [line.strip() for line in text.splitlines() if line.strip()]
    if len(slots) > MAX_PREPARED:
        raise ValueError(f"live_prompts: {len(slots)} lines; {MAX_PREPARED} at most are encoded beforehand")
    return slots


def listeners() -> list[dict[str, Any]]:
    """Who takes prompts now, as its "listening" event has told: for a page that was opened since."""
    with _lock:
        return [{"prompt_id": prompt, "node": node, **told} for (prompt, node), (_, told) in _running.items()]


def say(prompt_id: Any, node_id: Any, prompt: Any) -> str:
    """Hands a prompt to the node that is running under this prompt id; returns it as it will be shown.

    Raises:
        NotListening: no node of that id runs there, or it takes no prompts.
        ValueError: what was sent is no prompt.
    """
    if not all(isinstance(value, str) for value in (prompt_id, node_id, prompt)):
        raise ValueError("three texts are expected: prompt_id, node_id and prompt")
    with _lock:
        found = _running.get((prompt_id, node_id))
        others = bool(_running)
    if found is None:
        raise NotListening(
            "this node is not taking prompts now: another video is being sampled"
            if others
            else "no video is being sampled that takes prompts; connect a CLIP to the sampler and run it"
        )
    return found[0].say(prompt)


@contextlib.contextmanager
def listening(
    clip: Any,
    slots: Sequence[str],
    fps: float,
    model: Any,
    device: torch.device,
    *,
    batch: int,
    memory: Callable[[], float],
    reloaded: Callable[[], None],
    keep_past: bool,
    on_switch: Callable[[Switch], None],
) -> Iterator[LivePrompts]:
    """The executing node takes prompts inside.

    Args:
        clip: the text encoder. Encoding may push the MODEL `model` out of VRAM on a small card; it is brought back.
        batch: of the video that is sampled.
        memory: -> bytes that sampling goes on to take, beside the weights and what is allocated already.
        reloaded: called when the MODEL has been brought back.
        keep_past: see `LivePrompts`.
        on_switch: called when a prompt has taken effect.
    """
    import comfy.utils
    from comfy_execution.utils import get_executing_context

    from . import comfy_bridge

    context = get_executing_context()
    key = ("", "") if context is None else (context.prompt_id, context.node_id)
    tell = _teller(*key)

    def encode(prompt: str) -> Tensor:
        encoded = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        comfy_bridge.load_model(model, memory())
        reloaded()
        return comfy.utils.repeat_to_batch_size(encoded[0][0].to(device, torch.float32), batch)

    def switched(switch: Switch) -> None:
        on_switch(switch)
        at = seconds_at(switch.start_latent_frame, fps)
        tell(state="switched", prompt=switch.prompt, seconds=at, waited=switch.waited)

    live = LivePrompts(
        encode,
        prepared=slots,
        keep_past=keep_past,
        on_switch=switched,
        on_error=lambda prompt, error: tell(state="failed", prompt=prompt, error=str(error)),
    )
    live.prepare()
    told = {"slots": list(live.slots), "workflow": _workflow_of(key[0])}
    with _lock:
        _running[key] = live, told
    tell(state="listening", **told)
    try:
        yield live
    finally:
        with _lock:
            _running.pop(key, None)
        tell(state="ended")


def _workflow_of(prompt_id: str) -> str | None:
    """The id of the workflow that was queued, for nodes of another one may have the same numbers; None where whoever
    queued it sent none."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    running = [] if server is None else server.prompt_queue.get_current_queue()[0]
    for _, own, _, extra, *_ in running:
        if own == prompt_id:
            workflow = (extra.get("extra_pnginfo") or {}).get("workflow")
            return workflow.get("id") if isinstance(workflow, dict) else None
    return None


def _teller(prompt_id: str, node_id: str) -> Callable[..., None]:
    """Sends what happens to the browser that queued the video."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)

    def tell(**what: Any) -> None:
        if server is not None:
            server.send_sync(EVENT, {"prompt_id": prompt_id, "node": node_id, **what}, server.client_id)

    return tell
