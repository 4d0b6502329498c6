"""HTTP routes of the editors, whose notation has one home, in Python; and of the live prompt.

Nothing here reads or writes files, and what is sent is limited in size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..diag_core import ScheduleError
from ..diag_core.diagonal_schedule import DEFAULT_SHIFT
from ..diag_core.geometry import DEFAULT_FPS, seconds_at
from ..diag_core.settings import PRESETS
from ..diag_core.timeline_text import TimelineError, parse_timeline
from .choice import widget_values
from .live import NotListening, listeners, say
from .schedule_parts import CUSTOM, describe, parts_of, schedule_of

MAX_TEXT = 100_000  # characters
MAX_CHUNKS = 1000  # told at once
MAX_STEPS = 4000  # a browser still draws so many handles while one is dragged


def read_schedule(query: Mapping[str, str]) -> dict[str, Any]:
    """The parts of the schedule node -> what the editor draws, or {"error": ..}."""
    try:
        chunks = min(max(1, int(query.get("chunks", "7"))), MAX_CHUNKS)
        schedule = schedule_of(
            query.get("preset", CUSTOM), query.get("steps", ""), query.get("cycle", ""), query.get("after_switch", ""),
            float(query.get("shift", DEFAULT_SHIFT)),
        )  # fmt: skip
    except ScheduleError as error:
        return {"error": str(error), "position": getattr(error.__cause__, "position", None)}
    except ValueError as error:
        return {"error": str(error), "position": None}
    lists = (*schedule.chunks, *schedule.cycle, *schedule.after_switch)
    if sum(map(len, lists)) > MAX_STEPS:
        reason = f"The schedule counts, but its {len(lists)} step lists are too many to draw."
        return {"error": reason, "position": None}
    return describe(schedule, chunks)


def write_schedule(lists: Any) -> dict[str, Any]:
    """Edited lists {"chunks", "cycle", "after_switch", "shift"} -> the texts of the node's fields, or {"error": ..}."""
    try:
        shift = lists.get("shift", DEFAULT_SHIFT)
        return dict(parts_of(lists["chunks"], lists.get("cycle", ()), lists.get("after_switch", ()), shift))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return {"error": str(error) or "lists of steps are expected"}


def read_timeline(query: Mapping[str, str]) -> dict[str, Any]:
    """The text of the timeline node -> its entries, or {"error": .., "line": .., "column": ..}."""
    try:
        fps = float(query.get("fps", DEFAULT_FPS))
        entries = parse_timeline(query.get("text", ""), fps, int(query.get("chunk_frames", "3")))
    except TimelineError as error:
        return {"error": error.reason, "line": error.line, "column": error.column}
    except ValueError as error:
        return {"error": str(error), "line": None, "column": None}
    return {
        "entries": [
            {
                "label": entry.label,
                "prompt": entry.prompt,
                "latent_frame": entry.start_latent_frame,
                "seconds": float(entry.label[:-1])
                if entry.label.endswith("s")
                else seconds_at(entry.start_latent_frame, fps),
            }
            for entry in entries
        ]
    }


def presets() -> dict[str, Any]:
    """The sampler's presets as its widgets show them."""
    return {name: {"schedule": settings.schedule, **widget_values(settings)} for name, settings in PRESETS.items()}


def hear(body: str) -> tuple[int, dict[str, Any]]:
    """{"prompt_id", "node_id", "prompt"} as JSON -> status, and {"prompt": as it will be shown} or {"error": ..}."""
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        return 400, {"error": f"no JSON: {error}"}
    if not isinstance(sent, dict):
        return 400, {"error": "an object with prompt_id, node_id and prompt is expected"}
    try:
        return 200, {"prompt": say(sent.get("prompt_id"), sent.get("node_id"), sent.get("prompt"))}
    except NotListening as error:
        return 409, {"error": str(error)}
    except ValueError as error:
        return 400, {"error": str(error)}


async def read_body(request: Any) -> str | None:
    """The text of a request; None where it is longer than MAX_TEXT bytes, however it was sent."""
    data = b""
    async for piece in request.content.iter_any():
        data += piece
        if len(data) > MAX_TEXT:
            return None
    return data.decode("utf-8", "replace")


def register() -> None:
    """Adds the routes to ComfyUI's server; without a server (nodes checked by a tool) there is nothing to add to."""
    from aiohttp import web
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    routes = server.routes

    def answering(read: Callable[[Mapping[str, str]], dict[str, Any]]) -> Callable[[Any], Any]:
        async def answer(request: Any) -> Any:
            if len(request.query_string) > MAX_TEXT:
                return web.json_response({"error": f"more than {MAX_TEXT} characters"}, status=413)
            return web.json_response(read(request.query))

        return answer

    async def answer_presets(request: Any) -> Any:
        return web.json_response(presets())

    async def answer_lists(request: Any) -> Any:
        body = await read_body(request)
        if body is None:
            return web.json_response({"error": f"more than {MAX_TEXT} characters"}, status=413)
        try:
            lists = json.loads(body)
        except (ValueError, RecursionError) as error:
            return web.json_response({"error": f"no JSON: {error}"}, status=400)
        return web.json_response(write_schedule(lists))

    async def answer_live(request: Any) -> Any:
        body = await read_body(request)
        if body is None:
            return web.json_response({"error": f"more than {MAX_TEXT} characters"}, status=413)
        status, answer = hear(body)
        return web.json_response(answer, status=status)

    async def answer_listeners(request: Any) -> Any:
        return web.json_response({"running": listeners()})

    routes.get("/diagdistill/live")(answer_listeners)
    routes.post("/diagdistill/live")(answer_live)
    routes.get("/diagdistill/schedule")(answering(read_schedule))
    routes.post("/diagdistill/schedule")(answer_lists)
    routes.get("/diagdistill/timeline")(answering(read_timeline))
    routes.get("/diagdistill/presets")(answer_presets)
