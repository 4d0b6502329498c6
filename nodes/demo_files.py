"""The embedded checkpoint, which needs no download."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ..diag_core.demo_text import DemoTextEncoder

DEMO_NAME = "demo (embedded)"
_FOLDER = Path(__file__).resolve().parents[1] / "demo"


def dit_path() -> Path:
    return _FOLDER / "dit.safetensors"


def vae_path() -> Path:
    return _FOLDER / "vae.safetensors"


@cache
def text_encoder() -> DemoTextEncoder:
    """One for all nodes: it remembers the vectors of words."""
    return DemoTextEncoder()
