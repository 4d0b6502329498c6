"""ComfyUI's entry into the pack. Nothing is imported, downloaded or patched before ComfyUI asks for the nodes."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    from .nodes.extension import DiagDistillExtension

    return DiagDistillExtension()
