"""The pack as ComfyUI sees it: its nodes, and the routes of their editors."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from comfy_api.latest import ComfyExtension

log = logging.getLogger(__name__)

# One group a module with a list NODES. A group that cannot be imported must not take the others with it.
GROUPS = ("model", "schedule", "timeline", "demo_text", "latents", "sampler", "stream", "state", "decode")


class DiagDistillExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[Any]]:
        nodes: list[type[Any]] = []
        for group in GROUPS:
            try:
                nodes += importlib.import_module(f".{group}", __package__).NODES
            except Exception:
                log.exception("ComfyUI DiagDistill: the nodes of %s.py could not be loaded; the others are", group)
        try:
            importlib.import_module(".routes", __package__).register()
        except Exception:
            log.exception("ComfyUI DiagDistill: the editors' routes could not be loaded; the nodes work without")
        return nodes
