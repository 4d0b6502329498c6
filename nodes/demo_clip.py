"""The demo's text encoder in the shape of ComfyUI's CLIP.

Legend: L text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .demo_files import text_encoder


class DemoClip:
    """What ComfyUI's text nodes ask of a CLIP. It has no weights: asked for any, it says which nodes to use instead."""

    def __init__(self) -> None:
        self.encoder = text_encoder()

    def clone(self) -> DemoClip:
        return self

    def tokenize(self, text: str, return_word_ids: bool = False, **_: Any) -> str:
        return text

    def encode_from_tokens(self, tokens: str, return_pooled: bool = False, return_dict: bool = False) -> Any:
        """One prompt -> context [1,L,D], alone or as ComfyUI's callers want it."""
        context = self.encoder.encode([tokens])
        if return_dict:
            return {"cond": context, "pooled_output": None}
        return (context, None) if return_pooled else context

    def encode_from_tokens_scheduled(
        self, tokens: str, unprojected: bool = False, add_dict: Mapping[str, Any] | None = None, **_: Any
    ) -> list[Any]:
        """One prompt -> CONDITIONING [[context [1,L,D], {}]]."""
        return [[self.encode_from_tokens(tokens), dict(add_dict or {})]]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the demo's text encoder has no weights and no '{name}': connect it to CLIP Text Encode or Prompt "
            "Timeline only, and use LoraLoaderModelOnly for a LoRA"
        )
